"""Ends of log files, which supervisord's own handler writes and rotates."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from supervisor.loggers import FileHandler, LogRecord, RotatingFileHandler

from monitor_plugin.domain.logs import LogTail
from monitor_plugin.hosts.log_files import LogFiles


def log(handler: FileHandler, data: bytes) -> None:
    handler.setFormat("%(message)s")
    handler.emit(LogRecord(20, data))


def read(logs: LogFiles, path: Path, max_bytes: int = 1000) -> tuple[bytes, int]:
    tail = logs.read(str(path), max_bytes)
    assert tail
    return tail.data, tail.end


def test_end_of_a_log_is_read_as_bytes(tmp_path: Path) -> None:
    """Bytes that are no text are read as they are; the end is the size of the file."""
    path, logs = tmp_path / "log", LogFiles()
    handler = FileHandler(str(path), "ab")
    assert read(logs, path) == (b"", 0)
    log(handler, b"first\n")
    log(handler, b"\x00\xff\x1b[0m\r\n")
    assert read(logs, path) == (b"first\n\x00\xff\x1b[0m\r\n", 14)
    assert read(logs, path, 4) == (b"0m\r\n", 14)
    log(handler, b"more")
    assert read(logs, path, 5) == (b"\nmore", 18)
    handler.close()


def test_rotated_files_are_parts_of_the_log(tmp_path: Path) -> None:
    """All bytes that were written count, also those of a file that was removed."""
    path, logs = tmp_path / "log", LogFiles()
    handler = RotatingFileHandler(str(path), maxBytes=10, backupCount=3)
    written = b""
    for number in range(100, 120):
        log(handler, b"%d\n" % number)
        written += b"%d\n" % number
        assert read(logs, path, 8) == (written[-8:], len(written))
    data, end = read(logs, path)
    assert (data, end) == (written[-len(data) :], len(written))
    assert len(data) >= 36
    handler.close()
    reopened = LogFiles()  # as after a restart of the monitor: counts what is there
    assert read(reopened, path) == (data, len(data))


def test_log_is_read_up_to_an_earlier_end(tmp_path: Path) -> None:
    """The end may be in a rotated file; if its bytes were removed, nothing is read."""
    path, logs = tmp_path / "log", LogFiles()
    handler = RotatingFileHandler(str(path), maxBytes=10, backupCount=2)
    log(handler, b"first\n")
    _, end = read(logs, path)
    for text in (b"second\n", b"third\n"):
        log(handler, text)
    assert logs.read(str(path), 4, end) == LogTail(b"rst\n", end)
    assert logs.read(str(path), 100, end) == LogTail(b"first\n", end)
    assert logs.read(str(path), 100, end + 1) == LogTail(b"first\ns", end + 1)
    assert logs.read(str(path), 100, 1000) == LogTail(b"first\nsecond\nthird\n", end + 13)
    for _ in range(3):
        log(handler, b"0123456789")
        read(logs, path)
    assert logs.read(str(path), 100, end) == LogTail(b"", end)
    handler.close()


@pytest.mark.parametrize("backups", [0, 2])
def test_bytes_that_were_removed_before_a_read_are_missing(backups: int, tmp_path: Path) -> None:
    """The end then is beyond the end before and what is there, so that a gap is seen."""
    path, logs = tmp_path / "log", LogFiles()
    handler = RotatingFileHandler(str(path), maxBytes=20, backupCount=backups)
    log(handler, b"0123456789")
    assert read(logs, path) == (b"0123456789", 10)
    for number in range(100, 125):
        log(handler, b"%d\n" % number)
    data, end = read(logs, path)
    assert len(data) < 100
    assert end == 10 + 1 + len(data)
    log(handler, b"x")
    assert read(logs, path, 1) == (b"x", end + 1)
    handler.close()


def test_cleared_log_counts_on(tmp_path: Path) -> None:
    """`supervisorctl clear` removes the file; the new one may have the inode of the old one."""
    path, logs = tmp_path / "log", LogFiles()
    path.write_bytes(b"old old old")
    assert read(logs, path)[1] == 11
    path.write_bytes(b"new, and longer than before")  # the same inode
    assert read(logs, path) == (b"new, and longer than before", 11 + 1 + 27)


def test_log_without_a_file_for_a_moment_is_read(tmp_path: Path) -> None:
    """A rotation renames the file, and then makes the next file."""
    path, logs = tmp_path / "log", LogFiles()
    path.write_bytes(b"before")
    assert read(logs, path) == (b"before", 6)

    def rotate(*_: object) -> None:
        path.write_bytes(b" and after")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "sleep", rotate)
        path.rename(f"{path}.1")
        assert read(logs, path) == (b"before and after", 16)


def test_only_regular_files_are_logs(tmp_path: Path) -> None:
    """A FIFO or a device is not read, and a missing file is an error."""
    os.mkfifo(tmp_path / "fifo")
    logs = LogFiles()
    assert logs.read(str(tmp_path / "fifo"), 10) is None
    assert logs.read("/dev/null", 10) is None
    with pytest.raises(FileNotFoundError):
        logs.read(str(tmp_path / "none"), 10)
