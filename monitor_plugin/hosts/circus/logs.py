"""The logs that circus keeps of its watchers: files that it writes their output to."""

from __future__ import annotations

import contextlib

from ...domain.logs import LogTail
from ..log_files import LogFiles
from .client import WatcherState

# The maximum number of recorded ends of logs of ended processes.
_MAX_ENDS = 2000


class WatcherLogs:
    """Reads the logs of watchers. May be used from any thread.

    A log has the output of all processes of its watcher, in their order. The end of the output of a
    process is recorded when circus has reaped the process, because its last output is often
    requested when the next process already writes.
    """

    def __init__(self) -> None:
        self._files = LogFiles()
        self._ends: dict[tuple[int, str], int] = {}  # by PID and stream

    def record_end(self, watcher: WatcherState, pid: int) -> None:
        """Record where the logs end now: they have all output of the process."""
        for stream, path in watcher.logs.items():
            with contextlib.suppress(OSError):
                if tail := self._files.read(path, 0):
                    self._ends[pid, stream] = tail.end
        while len(self._ends) > _MAX_ENDS:
            del self._ends[next(iter(self._ends))]

    def forget_end(self, watcher: WatcherState, pid: int) -> None:
        """Forget the ends of the logs of a process, because the kernel has reused its PID."""
        for stream in watcher.logs:
            self._ends.pop((pid, stream), None)

    def read(
        self, watcher: WatcherState, pid: int | None, stream: str, max_bytes: int
    ) -> LogTail | None:
        """Read the end of a watcher's log, or of the part that was written until a process ended.

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
        end = None if pid is None else self._ends.get((pid, stream))
        try:
            return self._files.read(watcher.logs[stream], max_bytes, end)
        except FileNotFoundError:
            return None
