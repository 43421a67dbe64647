"""Reads the ends of log files that a host writes and rotates."""

from __future__ import annotations

import contextlib
import os
import stat
import time
from typing import NamedTuple

from ..domain.logs import LogTail

# The number of files of one log that are opened: supervisord keeps 10 backups by default.
_MAX_FILES = 32
# How often the files are opened if the log is rotated meanwhile, and the pause if there is no file.
_ATTEMPTS = 5
_PAUSE_SECONDS = 0.005
# How many bytes before a position are compared, as a new file may have the inode of a removed file.
_COMPARED_BYTES = 64


class _Position(NamedTuple):
    """Where a read of a log ended.

    Attributes:
        inode, offset: the file, and the place in it.
        last_bytes: the last bytes before the offset.
        end: how many bytes were written to the log up to the offset.
    """

    inode: int
    offset: int
    last_bytes: bytes
    end: int


class _File:
    """One file of a log, open. `size` is the number of its bytes when it was opened."""

    def __init__(self, path: str) -> None:
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
        self._descriptor = os.open(path, flags)
        status = os.fstat(self._descriptor)
        self.inode, self.size = status.st_ino, status.st_size
        self.is_regular = stat.S_ISREG(status.st_mode)

    def close(self) -> None:
        os.close(self._descriptor)

    def read_before(self, offset: int, count: int) -> bytes:
        """Read up to `count` bytes that end at the offset."""
        start = max(0, offset - count)
        return os.pread(self._descriptor, offset - start, start)

    def has(self, position: _Position) -> bool:
        """Whether the position is in this file."""
        return (
            self.inode == position.inode
            and self.size >= position.offset
            and self.read_before(position.offset, _COMPARED_BYTES) == position.last_bytes
        )


class LogFiles:
    """Reads the ends of log files that a host rotates to `FILE.1`, `FILE.2` and so on.

    May be used from any thread. The host removes the oldest file at a rotation. So the end of the
    last read of each log is stored, to count the bytes that the host has written since.
    """

    def __init__(self) -> None:
        self._positions: dict[str, _Position] = {}  # by the path of the log

    def read(self, path: str, max_bytes: int, end: int | None = None) -> LogTail | None:
        """Read the last bytes of a log, also of its rotated files; None if it is no regular file.

        The first read of a log counts the bytes of its files. If the host has removed all files of
        the last read since, the number of missing bytes is not known, and counts as one.

        Args:
            path: the path of the log.
            max_bytes: how many bytes to read at most.
            end: the `end` of an earlier read, at which to end; None reads up to the end of the log.

        Raises:
            OSError: the file cannot be read.
        """
        with contextlib.ExitStack() as stack:
            files = _open_files(path, stack)
            if not files:
                return None
            newest = files[0]
            last = _count_bytes(files, self._positions.get(path))
            last_bytes = newest.read_before(newest.size, _COMPARED_BYTES)
            self._positions[path] = _Position(newest.inode, newest.size, last_bytes, last)
            end = last if end is None else min(end, last)
            data, left_out = b"", last - end
            for file in files:
                offset = max(0, file.size - left_out)
                left_out -= file.size - offset
                data = file.read_before(offset, max_bytes - len(data)) + data
            return LogTail(data, end)


def _open_files(path: str, stack: contextlib.ExitStack) -> list[_File]:
    """Open the files of a log, the newest first. Return none if the log is no regular file.

    Raises:
        OSError: the file cannot be read.
    """
    files: list[_File] = []
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            files = _open_files_once(path, stack)
            if not files or os.stat(path).st_ino == files[0].inode:
                return files
        except FileNotFoundError:  # during a rotation there is none for a moment
            if attempt == _ATTEMPTS:
                raise
            time.sleep(_PAUSE_SECONDS)
    return files


def _open_files_once(path: str, stack: contextlib.ExitStack) -> list[_File]:
    newest = _File(path)
    stack.callback(newest.close)
    if not newest.is_regular:
        return []
    files = {newest.inode: newest}
    for number in range(1, _MAX_FILES):
        try:
            file = _File(f"{path}.{number}")
        except OSError:
            break
        stack.callback(file.close)
        if file.is_regular:
            files.setdefault(file.inode, file)  # a file may just have been renamed
    return list(files.values())


def _count_bytes(files: list[_File], last: _Position | None) -> int:
    """Count the bytes that were written to a log; `files` begins with the newest."""
    newer = 0
    for file in files:
        if last and file.has(last):
            return last.end + file.size - last.offset + newer
        newer += file.size
    return newer + (last.end + 1 if last else 0)
