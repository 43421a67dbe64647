"""Samples one process with psutil; concurrent readers do not affect each other's CPU figures."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import psutil

from ..domain.models import Sample
from .process import Process, ProcessGone

T = TypeVar("T")

# A CPU figure is measured from the newest baseline of at least this age. As baselines are recorded
# every BASELINE_INTERVAL_SECONDS, the figure covers one to three seconds.
_BASELINE_MIN_AGE_SECONDS = 1.0
BASELINE_INTERVAL_SECONDS = 2.0
# Over a shorter interval the resolution of CPU times (10 ms) would dominate the figure.
MIN_MEASURED_SECONDS = 0.1
# CPU time and clock are read one after the other. If more time passes between the two, they are
# read again.
_CPU_READ_SECONDS = 0.02
_CPU_READ_ATTEMPTS = 5


def percent_of(amount: int, whole: int) -> float | None:
    """Return an amount in percent of the whole; None if the whole is 0."""
    return 100 * amount / whole if whole else None


class Sampler:
    """Samples one process. Safe to call from any thread.

    psutil's own `cpu_percent` measures since its previous call, whichever reader made that call. A
    sampler measures since baselines that all readers share.

    Args:
        process: the process; the sampler does not close it.
    """

    def __init__(self, process: Process) -> None:
        self._process = process
        # (monotonic seconds, CPU seconds) of the last two. An immutable tuple, which is replaced,
        # so that readers need no lock.
        self._baselines: tuple[tuple[float, float], ...] = ()
        self.record_baseline()

    def record_baseline(self) -> None:
        """Record the CPU time used so far. Call this every BASELINE_INTERVAL_SECONDS.

        Raises:
            ProcessGone: the process has ended.
        """
        if (baseline := self._read(self._cpu_seconds)) is not None:
            self._baselines = (*self._baselines[-1:], baseline)

    def sample(self, usable_bytes: int) -> Sample:
        """Sample the process; blocks until 0.1 s have passed since this object was created.

        Figures that may not be read are None.

        Args:
            usable_bytes: the memory that the process may use: the base of `memory_percent`.

        Raises:
            ProcessGone: the process has ended; another process may have its PID.
        """
        cpu_percent = self._read(self._wait_for_cpu_percent)
        memory = self._read(self._process.psutil_process.memory_info)
        if memory and not memory.vms:
            # /proc shows 0 bytes from the time when the process begins to exit, or when its first
            # thread exits before other threads.
            memory = None
        if self._process.ended():  # read first, then check that the PID was not reused
            raise ProcessGone(self._process.pid)
        return Sample(
            rss=memory.rss if memory else None,
            vms=memory.vms if memory else None,
            memory_percent=percent_of(memory.rss, usable_bytes) if memory else None,
            cpu_percent=cpu_percent,
        )

    def _read(self, figure: Callable[[], T]) -> T | None:
        try:
            return figure()
        except psutil.NoSuchProcess:
            raise ProcessGone(self._process.pid) from None
        except (psutil.AccessDenied, OSError):
            return None

    def _cpu_seconds(self) -> tuple[float, float]:
        """Return when the CPU time was read (monotonic seconds), and the CPU seconds used."""
        for _ in range(_CPU_READ_ATTEMPTS):
            began = time.monotonic()
            times = self._process.psutil_process.cpu_times()
            now = time.monotonic()
            if now - began < _CPU_READ_SECONDS:  # otherwise this thread was suspended in between
                break
        return now, float(times.user + times.system)

    def _wait_for_cpu_percent(self) -> float | None:
        baselines = self._baselines
        if baselines and (left := baselines[0][0] + MIN_MEASURED_SECONDS - time.monotonic()) > 0:
            time.sleep(left)
        now, seconds = self._cpu_seconds()
        return self.cpu_percent(seconds, now)

    def cpu_percent(self, cpu_seconds: float, now: float) -> float | None:
        """Compute the CPU usage since the newest baseline that is at least 1 s old.

        If none is that old, the oldest baseline is used.

        Args:
            cpu_seconds: CPU time that the process has used so far.
            now: when `cpu_seconds` was read (monotonic seconds).

        Returns:
            Percent of one core; None if the baseline is younger than 0.1 s, or if CPU times may not
            be read.
        """
        baselines = self._baselines
        if not baselines:
            return None
        old_enough = [each for each in baselines if now - each[0] >= _BASELINE_MIN_AGE_SECONDS]
        at, before = old_enough[-1] if old_enough else baselines[0]
        if now - at < MIN_MEASURED_SECONDS:
            return None
        return 100 * max(0.0, cpu_seconds - before) / (now - at)
