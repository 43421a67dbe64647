"""The logs that circus keeps of its watchers: files that it writes their output to."""

from __future__ import annotations

import contextlib

from ...domain.logs import LogTail
from ..log_files import LogFiles
from ..log_spans import LogSpans
from .client import WatcherState


class WatcherLogs:
    """Reads the logs of watchers. May be used from any thread.

    A log has the output of all processes of its watcher, in their order. Where it ends is recorded
    when circus has reaped a process, because the last output of the process is often requested when
    the next process already writes.
    """

    def __init__(self) -> None:
        self._files = LogFiles()
        self._spans = LogSpans()  # of logs by the name of the watcher and the stream

    def record_end(self, watcher: WatcherState, pid: int) -> None:
        """Record where the logs end now: they have all output of the process."""
        for stream, path in watcher.logs.items():
            with contextlib.suppress(OSError):
                if tail := self._files.read(path, 0):
                    self._spans.end((watcher.name, stream), pid, tail.end)

    def record_begin(self, watcher: WatcherState, pid: int) -> None:
        """Record that a process has begun."""
        for stream in watcher.logs:
            self._spans.begin((watcher.name, stream), pid)

    def read(
        self, watcher: WatcherState, pid: int | None, stream: str, max_bytes: int
    ) -> LogTail | None:
        """Read the end of a watcher's log, or of the part of it that an ended process has written.

        Args:
            watcher: the watcher.
            pid: the watcher's process, which may have ended; None reads the end of the log.
            stream: `stdout` or `stderr`.
            max_bytes: how many bytes to read at most.

        Returns:
            None: circus does not write this stream to a file, or the file does not exist.

        Raises:
            OSError: the file cannot be read.
        """
        if stream not in watcher.logs:
            return None
        log = (watcher.name, stream)
        try:
            end = self._spans.end_of(log, pid)
            tail = self._files.read(watcher.logs[stream], max_bytes, end)
            return tail and self._spans.cut(log, pid, tail)
        except FileNotFoundError:
            return None
