"""Which part of a program's log each of its processes has written."""

from __future__ import annotations

from collections.abc import Hashable

from ..domain.logs import LogTail

# The maximum number of processes whose parts are known.
_MAX_PROCESSES = 2000

_Key = tuple[Hashable, int]  # a log, and a PID


class LogSpans:
    """The parts of logs that processes have written, by the ends of these processes.

    A log has the output of all processes of its program, in their order. The part of a process
    begins where that of an earlier process has ended. So it may have output of earlier processes
    whose ends were not seen, and never lacks output of its own.
    """

    def __init__(self) -> None:
        self._last_ends: dict[Hashable, int] = {}  # by log
        self._begins: dict[_Key, int] = {}
        self._ends: dict[_Key, int] = {}

    def begin(self, log: Hashable, pid: int) -> None:
        """Record that a process has begun, after the last end that is known of the log."""
        self._ends.pop((log, pid), None)  # the kernel may reuse a PID
        self._begins.pop((log, pid), None)
        self._begins[log, pid] = self._last_ends.get(log, 0)
        if len(self._begins) > _MAX_PROCESSES:
            del self._begins[next(iter(self._begins))]

    def end(self, log: Hashable, pid: int, position: int) -> None:
        """Record that a process has ended, and where the log ended then."""
        self.rest(log, position)
        self._ends[log, pid] = position
        if len(self._ends) > _MAX_PROCESSES:
            del self._ends[next(iter(self._ends))]

    def rest(self, log: Hashable, position: int) -> None:
        """Record where a log ends while no process of its program runs."""
        self._last_ends[log] = position

    def has_rested(self, log: Hashable) -> bool:
        """Whether an end of a log was recorded."""
        return log in self._last_ends

    def end_of(self, log: Hashable, pid: int | None) -> int | None:
        """Return where the part of a process ends; None if the process has not ended."""
        return None if pid is None else self._ends.get((log, pid))

    def cut(self, log: Hashable, pid: int | None, tail: LogTail) -> LogTail:
        """Remove what earlier processes have written from a tail of the part of an ended process.

        The log of a process that runs is returned with that of the processes before it.
        """
        if pid is None or (log, pid) not in self._ends:
            return tail
        length = max(0, tail.end - self._begins.get((log, pid), 0))
        return LogTail(tail.data[max(0, len(tail.data) - length) :], tail.end)
