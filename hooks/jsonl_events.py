"""Writes exits, state changes, shutdowns, actions of watchdogs and more to a file, as JSON lines.

    {"type": "ended", "at": "2026-11-24T13:50:12.123456Z", "model": "llama", "pid": 4711, ...}

Only the monitor's user may read the file (mode 0600). The hook opens the file for each line, so the
file may be moved. A line that cannot be written in full (a full disk, a missing folder) is lost.
The log reports the first lost line, and the number of lost lines when writing works again.

To enable it, copy or link this file into the folder of the monitor's setting `hooks_dir`, and set
environment variables MONITOR_HOOK_JSONL_EVENTS_...

    PATH        the file, in a folder that exists
    MAX_BYTES   the size in bytes at which PATH is renamed to PATH.1, PATH.1 to PATH.2... (10MiB)
    BACKUPS     the number of renamed files to keep (5)
"""

from __future__ import annotations

import errno
import json
import logging
import os
import threading
from contextlib import suppress
from pathlib import Path

from monitor_plugin.hook_support.events import EventHooks, EventItem
from monitor_plugin.hook_support.settings import HookSettings, count, size

_logger = logging.getLogger(__name__)


class EventFile:
    """Appends lines to a file, and rotates the file. Thread-safe."""

    def __init__(self, path: Path, max_bytes: int, backups: int) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._backups = backups
        self._lost = 0
        self._lock = threading.Lock()  # contended only after a hook has overrun

    def write(self, event: EventItem) -> None:
        """Write an event, or count it as lost."""
        with self._lock:
            try:
                self._append(json.dumps(event).encode() + b"\n")
            except OSError as error:
                self._lost += 1
                if self._lost == 1:
                    _logger.error("%s: events are lost: %s", self._path, error.strerror)
                return
            lost, self._lost = self._lost, 0
        if lost:
            _logger.warning("%s: events are written again; %d were lost", self._path, lost)

    def _append(self, line: bytes) -> None:
        size = self._path.stat().st_size if self._path.exists() else 0
        if 0 < size > self._max_bytes - len(line):
            self._rotate()
        with open(self._path, "ab", buffering=0, opener=_open) as file:
            size = os.fstat(file.fileno()).st_size
            written = file.write(line)
            if written is None:  # a full pipe
                raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
            if written < len(line):
                file.truncate(size)  # remove the incomplete line
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _rotate(self) -> None:
        for number in range(self._backups, 0, -1):
            newer = self._path if number == 1 else Path(f"{self._path}.{number - 1}")
            with suppress(FileNotFoundError):
                newer.replace(f"{self._path}.{number}")


def _open(path: str, flags: int) -> int:
    # O_NONBLOCK: opening a pipe would block until it has a reader.
    return os.open(path, flags | os.O_NONBLOCK, 0o600)


def _path(text: str) -> Path:
    try:
        os.close(_open(text, os.O_WRONLY | os.O_APPEND | os.O_CREAT))
    except OSError as error:
        raise ValueError(error.strerror) from None
    return Path(text).absolute()


def _make_file(settings: HookSettings) -> EventFile | None:
    wanted = "the path of a file that the monitor may write, in a folder that exists"
    path = settings.get("PATH", _path, wanted, None)
    if path is None:
        _logger.info("the hook does nothing: %s is not set", settings.variable("PATH"))
        return None
    return EventFile(
        path,
        settings.get("MAX_BYTES", size, "bytes, as 10MiB", 10 * 1024 * 1024),
        settings.get("BACKUPS", count, "the number of files, as 5", 5),
    )


_file = _make_file(HookSettings(__name__))


def _write(event: EventItem) -> None:
    if _file:
        _file.write(event)


_events = EventHooks(_write)
monitor_backend_gone = _events.monitor_backend_gone
monitor_backend_left_behind = _events.monitor_backend_left_behind
monitor_state_changed = _events.monitor_state_changed
monitor_shutdown_finished = _events.monitor_shutdown_finished
monitor_watchdog_acted = _events.monitor_watchdog_acted
