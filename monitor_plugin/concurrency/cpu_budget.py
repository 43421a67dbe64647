"""Limits the CPU time of a thread to a share of one core."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator


class CpuBudget:
    """Limits the CPU time of a thread to a share of one core on average. Not thread-safe.

    Credit grows with time, up to a maximum. Work may begin while the credit is not negative.
    Afterwards, the CPU time of the work is subtracted. So the pause grows with the cost of the work
    before it.

    Args:
        share: the share of one core, such as 0.02.
        max_credit_seconds: the CPU time that may be used without a pause after a long pause.
        clock: tells the time in seconds.
        cpu_clock: tells the CPU time of the calling thread in seconds.
    """

    def __init__(
        self,
        share: float,
        max_credit_seconds: float,
        clock: Callable[[], float] = time.monotonic,
        cpu_clock: Callable[[], float] = time.thread_time,
    ) -> None:
        self._share = share
        self._max_credit_seconds = max_credit_seconds
        self._clock = clock
        self._cpu_clock = cpu_clock
        self._credit_seconds = max_credit_seconds
        self._updated_at = clock()

    def wait_seconds(self) -> float:
        """Return the time until work may begin; 0 if it may begin now."""
        now = self._clock()
        grown = self._credit_seconds + self._share * (now - self._updated_at)
        self._credit_seconds, self._updated_at = min(grown, self._max_credit_seconds), now
        return max(0.0, -self._credit_seconds / self._share)

    @contextlib.contextmanager
    def spend(self) -> Iterator[None]:
        """Subtract the CPU time that the calling thread uses in the `with` statement."""
        began = self._cpu_clock()
        try:
            yield
        finally:
            self._credit_seconds -= self._cpu_clock() - began
