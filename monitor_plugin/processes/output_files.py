"""The regular files that processes write their standard output and standard error to.

Such a file is opened while its process runs, so that it can be read after the end of the process,
also if it was renamed or deleted meanwhile. It is opened through /proc/PID/fd, never by its path,
which may name another file by then. Only a regular file that the process has open for writing is
opened: a terminal, a pipe, a socket or a device never is, nor a file that the process could not
open itself and holds with O_PATH.

Several processes may write to one file, such as the log file of their host, which they inherit. A
read of that file returns the lines of all of them.
"""

from __future__ import annotations

import contextlib
import os
import stat
import threading
from collections import Counter
from typing import NamedTuple

from ..config.descriptors import max_output_files
from ..domain.logs import LogTail
from .kernel_files import read_text
from .process import Process

_NUMBERS = {"stdout": 1, "stderr": 2}
_KINDS = {"pipe:": "a pipe", "socket:": "a socket", "/dev/null": "/dev/null", "/dev/": "a device"}

_FileIdentity = tuple[int, int]  # the numbers of its device and of its inode


class OutputFileTable:
    """Holds open files, each once, at most `max_output_files()`. Safe to call from any thread.

    At the limit, the files of the process that ended first are closed to make room.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards the attributes below, without I/O on the files
        self._descriptors: dict[_FileIdentity, int] = {}
        self._users: Counter[_FileIdentity] = Counter()
        self._ended: dict[OutputFiles, None] = {}  # oldest first

    def __len__(self) -> int:
        return len(self._descriptors)

    def may_hold(self) -> bool:
        """Whether `hold` may have room for another file."""
        return len(self._descriptors) < max_output_files() or bool(self._ended)

    def hold(self, descriptor: int) -> _FileIdentity | None:
        """Hold an open file until `release`; None if there is no room, and the file is closed."""
        status = os.fstat(descriptor)
        file = status.st_dev, status.st_ino
        while True:
            with self._lock:
                is_held = file in self._descriptors
                has_room = is_held or len(self._descriptors) < max_output_files()
                oldest = None if has_room else next(iter(self._ended), None)
                if has_room:
                    self._users[file] += 1
                    self._descriptors.setdefault(file, descriptor)
            if is_held or oldest is None:
                break
            oldest.close()
        if is_held or not has_room:
            os.close(descriptor)
        return file if has_room else None

    def release(self, file: _FileIdentity) -> None:
        """Close a file if nothing else holds it."""
        with self._lock:
            self._users[file] -= 1
            descriptor = None
            if not self._users[file]:
                del self._users[file]
                descriptor = self._descriptors.pop(file)
        if descriptor is not None:
            os.close(descriptor)

    def open(self, file: _FileIdentity) -> int | None:
        """Return a descriptor of a file, which the caller closes; None if the file is not held.

        Raises:
            OSError: no descriptor is free.
        """
        with self._lock:
            descriptor = self._descriptors.get(file)
            return None if descriptor is None else os.dup(descriptor)

    def add_ended(self, files: OutputFiles) -> None:
        """Allow the table to close the files of an ended process when it needs room."""
        with self._lock:
            self._ended[files] = None

    def forget_ended(self, files: OutputFiles) -> None:
        """Forget an ended process, whose files are closed."""
        with self._lock:
            self._ended.pop(files, None)

    def close(self) -> None:
        """Close the files of all processes that have ended."""
        with self._lock:
            ended = list(self._ended)
        for each in ended:
            each.close()


class _Target(NamedTuple):
    """What a descriptor points to. Reading this does not touch the file system of the file."""

    path: str
    mount: str | None = None
    inode: str | None = None
    is_writable: bool = False


class OutputFiles:
    """The files that one process writes its standard output and standard error to.

    Safe to call from any thread. A file for which the table has no room is opened for each `read`,
    and cannot be read after the end of the process.

    Args:
        process: the process.
        table: holds the files.
    """

    def __init__(self, process: Process, table: OutputFileTable) -> None:
        self._process: Process | None = process  # None after the end, so that it can be freed
        self._table = table
        self._refreshing = threading.Lock()  # never waited for: the file system may hang
        self._targets: dict[str, _Target] = {}  # by stream, as last opened or refused
        self._lock = threading.Lock()  # guards the attributes below
        self._files: dict[str, _FileIdentity] = {}  # by stream
        self._closed = False
        self.refresh()

    @property
    def is_empty(self) -> bool:
        """Whether no file is held."""
        return not self._files

    def refresh(self) -> None:
        """Open the files that the process writes to now. Do nothing while another thread does so.

        A file stays open after the process has closed it, until it writes to another file.
        """
        if not self._refreshing.acquire(blocking=False):
            return
        try:
            for stream, number in _NUMBERS.items():
                process = self._process
                if process is None or self._closed:
                    return
                target = _read_target(process.pid, number)
                if target is None or target == self._targets.get(stream):
                    continue
                if self._files or self._table.may_hold():
                    self._hold(process, stream, number, target)
        finally:
            self._refreshing.release()

    def _hold(self, process: Process, stream: str, number: int, target: _Target) -> None:
        descriptor = _open_of(process, number)
        if descriptor is not None:
            file = unused = self._table.hold(descriptor)
            if file is None:
                return
            with self._lock:
                if not self._closed:
                    unused = self._files.get(stream)
                    self._files[stream] = file
            if unused:
                self._table.release(unused)
        self._targets[stream] = target

    def read(self, stream: str, max_bytes: int, after: int | None = None) -> LogTail | None:
        """Read the end of the file of a stream.

        Args:
            stream: `stdout` or `stderr`.
            max_bytes: how many bytes to read at most.
            after: read from this offset, if the file has at most `max_bytes` after it.

        Returns:
            None if the process writes this stream to no file, or if the file cannot be read.
        """
        self.refresh()
        try:
            with self._lock:
                file = self._files.get(stream)
            descriptor = None if file is None else self._table.open(file)
            process = self._process
            if descriptor is None and process is not None:
                descriptor = _open_of(process, _NUMBERS[stream])
            if descriptor is None:
                return None
            try:
                return _read_end(descriptor, max_bytes, after)
            finally:
                os.close(descriptor)
        except OSError:
            return None

    def is_own(self, stream: str) -> bool:
        """Whether the monitor's own process writes to the file: a backend has inherited it."""
        with self._lock:
            file = self._files.get(stream)
        for descriptor in _NUMBERS.values():
            with contextlib.suppress(OSError):  # it is closed
                status = os.fstat(descriptor)
                if (status.st_dev, status.st_ino) == file:
                    return True
        return False

    def describe_lack(self, stream: str) -> str:
        """Describe why `read` returns None, as a clause on the process: `it writes to a pipe`."""
        process = self._process
        if process is None:
            return "it has ended, and its output was not kept open"
        target = _read_target(process.pid, _NUMBERS[stream])
        if target is None:
            return "the monitor cannot see where it writes to"
        for beginning, kind in _KINDS.items():
            if target.path.startswith(beginning):
                return f"it writes to {kind}"
        return "it writes to what is no regular file, or to a file that the monitor may not read"

    def mark_ended(self) -> None:
        """Mark the process as ended: the table may close its files when it needs room."""
        self._process = None
        with self._lock:
            if not self._closed:
                self._table.add_ended(self)

    def close(self) -> None:
        """Close the files, and open none any more."""
        with self._lock:
            self._closed = True
            files, self._files = self._files, {}
        self._table.forget_ended(self)
        for each in files.values():
            self._table.release(each)


def _read_target(pid: int | str, number: int) -> _Target | None:
    """Read what a descriptor points to; None if it is not open, or may not be read."""
    try:
        path = os.readlink(f"/proc/{pid}/fd/{number}")  # noqa: PTH115 - it need not be a path
        if not path.startswith("/"):  # a pipe or a socket, as `pipe:[4711]`
            return _Target(path)
        lines = read_text(f"/proc/{pid}/fdinfo/{number}").splitlines()
    except OSError:
        return None
    facts = {name: value.strip() for name, _, value in (each.partition(":") for each in lines)}
    flags = int(facts.get("flags", "0"), 8)
    # Linux 5.14 was the first with `ino`. An O_PATH descriptor is never writable.
    is_writable = flags & os.O_ACCMODE in (os.O_WRONLY, os.O_RDWR)
    return _Target(path, facts.get("mnt_id"), facts.get("ino"), is_writable)


def _open_of(process: Process, number: int) -> int | None:
    """Open the file of a descriptor of a process; None if that is not possible."""
    descriptor = _open_output(process.pid, number)
    # Open first, then check that the PID was not reused.
    if descriptor is not None and process.ended():
        os.close(descriptor)
        return None
    return descriptor


def _open_output(pid: int, number: int) -> int | None:
    """Open the regular file that a process writes to, for reading; None if that is not possible.

    An O_PATH descriptor opens nothing, so that no device and no pipe notices it.
    """
    try:
        handle = os.open(f"/proc/{pid}/fd/{number}", os.O_PATH)
    except OSError:
        return None
    try:
        own, target = _read_target("self", handle), _read_target(pid, number)
        if own is None or target is None or not target.is_writable:
            return None
        # The process may have changed its descriptor since `handle` was opened.
        if (own.mount, own.inode) != (target.mount, target.inode):
            return None
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            return None
        return os.open(f"/proc/self/fd/{handle}", os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError:
        return None
    finally:
        os.close(handle)


def _read_end(descriptor: int, max_bytes: int, after: int | None) -> LogTail:
    size = os.fstat(descriptor).st_size
    start = max(0, size - max_bytes)
    if after is not None and start <= after <= size:
        start = after
    parts, position = [], start
    while more := os.pread(descriptor, size - position, position):
        parts.append(more)
        position += len(more)
    return LogTail(b"".join(parts), position)
