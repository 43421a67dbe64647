"""CPU and memory of each backend over the last minutes, as the sweeps measured them."""

from __future__ import annotations

import math
import threading
from array import array
from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

from ..domain.models import Backend, Observation

HISTORY_SECONDS = 900.0
_MAX_POINTS = 900


class Series(NamedTuple):
    """A backend's points, the last of which is from the last sweep. None: it was not known.

    Attributes:
        backend: the backend.
        cpu_percent: CPU of its process tree, in percent of one core.
        memory: its total memory in bytes, as in lists.
    """

    backend: Backend
    cpu_percent: list[float | None]
    memory: list[int | None]


class TimeSeries:
    """The points of each backend of the last sweep. Its methods may be called from any thread.

    A point takes 8 bytes: CPU and memory as single-precision floats, exact to seven digits.

    Args:
        interval_seconds: the time between two sweeps; 0 if there are none.
    """

    def __init__(self, interval_seconds: float) -> None:
        self.interval_seconds = interval_seconds
        points = HISTORY_SECONDS / interval_seconds if interval_seconds else 0
        self._max_points = max(1, min(_MAX_POINTS, math.ceil(points)))
        self._lock = threading.Lock()
        self._times: deque[float] = deque(maxlen=self._max_points)
        self._points: dict[Backend, tuple[array[float], array[float]]] = {}

    def add(self, time: float, observations: Iterable[Observation]) -> None:
        """Add a point for each observed backend, and drop the other backends.

        Args:
            time: the time of the sweep, in seconds since the epoch.
            observations: the result of the sweep.
        """
        with self._lock:
            self._times.append(time)
            previous, self._points = self._points, {}
            for each in observations:
                cpu, memory = previous.get(each.backend) or (array("f"), array("f"))
                percent = each.tree.cpu_percent if each.tree else None
                cpu.append(math.nan if percent is None else percent)
                memory.append(math.nan if each.memory is None else each.memory.total)
                del cpu[: -self._max_points], memory[: -self._max_points]
                self._points[each.backend] = cpu, memory

    def read(self, model: str | None = None) -> tuple[list[float], list[Series]]:
        """Return the times of the sweeps, in seconds since the epoch, and each backend's points.

        Args:
            model: the model whose backends to return; None for all.
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
