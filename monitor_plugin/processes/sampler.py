"""What psutil says of one registered process, with a CPU figure that its readers do not spoil."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import psutil

from ..domain.models import Sample
from .process import Process, ProcessGone

T = TypeVar("T")

# A CPU figure is measured from the newest mark of at least this age; marks come every
# MARK_SECONDS, so it spans one to three seconds.
_SPAN_SECONDS = 1.0
MARK_SECONDS = 2.0
# A figure over less would be the kernel's clock ticks (10 ms) rather than the process's work.
_LEAST_SPAN_SECONDS = 0.1
# What a read of the CPU time and of the clock may take, so that the one is of the other's time.
_CPU_READ_SECONDS = 0.02
_CPU_TRIES = 5


class Sampler:
    """Samples one process. Safe to call from any thread; sampling never moves another's interval.

    Args:
        process: whose figures they are; not closed here.
    """

    def __init__(self, process: Process) -> None:
        self._process = process
        self._marks: tuple[tuple[float, float], ...] = ()
        self.mark()

    def mark(self) -> None:
        """Note the CPU time used so far; to be called every MARK_SECONDS."""
        if (mark := self._read(self._cpu_seconds)) is not None:
            self._marks = (*self._marks[-2:], mark)

    def sample(self) -> Sample:
        """Read the process now; within 0.1 s of its registration, waits until that is over.

        Raises:
            ProcessGone: it has ended; its PID may be another's by now.
        """
        cpu_percent = self._read(self._wait_for_cpu_percent)
        with self._process.psutil_process.oneshot():
            percent = self._read(self._process.psutil_process.memory_percent)
            memory = self._read(self._process.psutil_process.memory_info)
        if memory and not memory.vms:
            # It is about to end, or its first thread has ended before the others: /proc says 0 of
            # it, whatever is held. Once it does, it stays so.
            memory = percent = None
        if self._process.ended():  # read first, then look whether it was the right process
            raise ProcessGone(self._process.pid)
        return Sample(
            rss=memory.rss if memory else None,
            vms=memory.vms if memory else None,
            memory_percent=percent,
            cpu_percent=cpu_percent,
        )

    def _read(self, figure: Callable[[], T]) -> T | None:
        """One figure that may not be read is None, and the others stand."""
        try:
            return figure()
        except psutil.NoSuchProcess:
            raise ProcessGone(self._process.pid) from None
        except (psutil.AccessDenied, OSError):
            return None

    def _cpu_seconds(self) -> tuple[float, float]:
        """Say when it was read (monotonic), and the CPU time used by then."""
        for _ in range(_CPU_TRIES):
            began = time.monotonic()
            times = self._process.psutil_process.cpu_times()
            now = time.monotonic()
            if now - began < _CPU_READ_SECONDS:  # else this thread had no turn: when was it?
                break
        return now, float(times.user + times.system)

    def _wait_for_cpu_percent(self) -> float | None:
        marks = self._marks
        if marks and (young := _LEAST_SPAN_SECONDS - (time.monotonic() - marks[0][0])) > 0:
            time.sleep(young)
        now, seconds = self._cpu_seconds()
        return self.cpu_percent(seconds, now)

    def cpu_percent(self, cpu_seconds: float, now: float) -> float | None:
        """Say how much of one core was used since a mark one to three seconds ago, in percent.

        Args:
            cpu_seconds: all that was used so far.
            now: when that was read (monotonic).

        Returns:
            None within 0.1 s of registration, or where the marks could not be read.
        """
        marks = self._marks
        old_enough = [mark for mark in marks if now - mark[0] >= _SPAN_SECONDS] or marks[:1]
        if not old_enough or now - old_enough[-1][0] < _LEAST_SPAN_SECONDS:
            return None
        since, before = old_enough[-1]
        return 100 * max(0.0, cpu_seconds - before) / (now - since)
