"""The last minutes of each backend: CPU and memory, as the background sweeps found them."""

from __future__ import annotations

import math
import threading
from array import array
from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

from ..domain.models import Backend, Observation

HISTORY_SECONDS = 900.0
_MOST_POINTS = 900


class Series(NamedTuple):
    """A backend's points, the last of which is of the last sweep; None where it was not known.

    Attributes:
        backend: whose they are.
        cpu_percent: percent of one core, of its process tree.
        memory: bytes, as in lists.
    """

    backend: Backend
    cpu_percent: list[float | None]
    memory: list[int | None]


class TimeSeries:
    """A ring of points for each backend that was there in the last sweep. Safe from any thread.

    It keeps 8 bytes a point: bytes and percentages to seven digits.

    Args:
        interval_seconds: between two sweeps; 0 for none.
    """

    def __init__(self, interval_seconds: float) -> None:
        self.interval_seconds = interval_seconds
        points = HISTORY_SECONDS / interval_seconds if interval_seconds else 0
        self._most = max(1, min(_MOST_POINTS, math.ceil(points)))
        self._lock = threading.Lock()
        self._times: deque[float] = deque(maxlen=self._most)
        self._points: dict[Backend, tuple[array[float], array[float]]] = {}

    def add(self, time: float, observations: Iterable[Observation]) -> None:
        """Add a point for each backend, and forget those that are not there.

        Args:
            time: of the sweep, in seconds since the epoch.
            observations: what it found.
        """
        with self._lock:
            self._times.append(time)
            before, self._points = self._points, {}
            for each in observations:
                cpu, memory = before.get(each.backend) or (array("f"), array("f"))
                percent = each.tree.cpu_percent if each.tree else None
                cpu.append(math.nan if percent is None else percent)
                memory.append(math.nan if each.memory is None else each.memory.total)
                del cpu[: -self._most], memory[: -self._most]
                self._points[each.backend] = cpu, memory

    def read(self, model: str | None = None) -> tuple[list[float], list[Series]]:
        """Give the times of the sweeps, in seconds since the epoch, and each backend's points.

        Args:
            model: of its backends alone.
        """
        with self._lock:
            times = list(self._times)
            points = [
                (backend, cpu[:], memory[:])
                for backend, (cpu, memory) in self._points.items()
                if model in (None, backend.model)
            ]
        return times, [
            Series(
                backend,
                [None if math.isnan(value) else round(value, 2) for value in cpu],
                [None if math.isnan(value) else int(value) for value in memory],
            )
            for backend, cpu, memory in points
        ]
