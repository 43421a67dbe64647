"""The logs of watchers, which circus' own stream writes and rotates."""

from __future__ import annotations

from pathlib import Path

from circus.stream import FileStream

from monitor_plugin import LogTail
from monitor_plugin.hosts.circus.client import WatcherState
from monitor_plugin.hosts.circus.logs import WatcherLogs


def watcher(path: Path) -> WatcherState:
    return WatcherState("w", "active", [], 1, True, {"stderr": str(path)})


def test_log_of_an_ended_process_ends_where_the_next_one_begins(tmp_path: Path) -> None:
    """The end is kept across a rotation; the PID may be used again. `stdout` has no log here."""
    path, logs = tmp_path / "log", WatcherLogs()
    given = watcher(path)
    assert logs.read(given, 7, "stderr", 99) is None  # circus has not written yet
    stream = FileStream(str(path), max_bytes=20, backup_count=2)
    stream({"data": b"last words\n", "pid": 7})
    assert logs.read(given, 7, "stderr", 6) == LogTail(b"words\n", 11)
    logs.record_end(given, 7)
    stream({"data": b"it begins\n", "pid": 8})
    assert (tmp_path / "log.1").exists()
    assert logs.read(given, 7, "stderr", 99) == LogTail(b"last words\n", 11)
    for pid in (8, None):
        assert logs.read(given, pid, "stderr", 99) == LogTail(b"last words\nit begins\n", 21)
    assert logs.read(given, 7, "stdout", 99) is None
    logs.record_begin(given, 7)
    assert logs.read(given, 7, "stderr", 99) == LogTail(b"last words\nit begins\n", 21)
    stream.close()


def test_ended_process_that_wrote_nothing_has_no_words_of_earlier_ones(tmp_path: Path) -> None:
    """While it runs, its log has theirs as well."""
    path, logs = tmp_path / "log", WatcherLogs()
    given = watcher(path)
    stream = FileStream(str(path))
    logs.record_begin(given, 7)
    stream({"data": b"last words\n", "pid": 7})
    logs.record_end(given, 7)
    logs.record_begin(given, 8)
    assert logs.read(given, 8, "stderr", 99) == LogTail(b"last words\n", 11)
    logs.record_end(given, 8)
    assert logs.read(given, 8, "stderr", 99) == LogTail(b"", 11)
    logs.record_begin(given, 9)
    stream({"data": b"mine\n", "pid": 9})
    logs.record_end(given, 9)
    assert logs.read(given, 9, "stderr", 99) == LogTail(b"mine\n", 16)
    assert logs.read(given, 7, "stderr", 99) == LogTail(b"last words\n", 11)
    stream.close()
