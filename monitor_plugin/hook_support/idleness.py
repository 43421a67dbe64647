"""Estimates from sweeps how long each backend has been idle."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from ..domain.models import Backend, Observation, State

_WINDOW_SECONDS = 10.0
_ACTIVE_SHARE = 0.01  # of one core; a process tree that uses as much or more is active
_TICK_SECONDS = 0.01  # the resolution of CPU time


def says_busy(observation: Observation) -> bool:
    """Whether a backend reports BUSY or its status call timed out, which can mean the same."""
    reading = observation.reading
    if reading is None:
        return False
    busy = reading.status is not None and reading.status.state == State.BUSY
    return busy or reading.rpc_error == "DEADLINE_EXCEEDED"


def held_bytes(observation: Observation, component: str | None = None) -> int | None:
    """Return the memory of a backend in bytes, or None if unknown: its total, or a component.

    The component `vram` is the sum of itself and all `vram:...`.
    """
    memory = observation.memory
    if memory is None:
        return None
    if component is None:
        return memory.total
    names = [each for each in memory.breakdown if f"{each}:".startswith(f"{component}:")]
    return sum(memory.breakdown[each] for each in names) if names else None


class Activity:
    """Tracks how long each backend has been idle. Not thread-safe.

    A backend counts as active if it reports BUSY or a state that the protocol does not know, if its
    status call timed out, if its process tree used 1 % of one core or an unknown amount, or if its
    state changed between two sweeps (it may have been busy then). Idle time begins with the first
    sweep that contains the backend, and begins again after a sweep without it.

    Args:
        window_seconds: the window in which CPU time is measured; at most, and by default, 10 s.
    """

    def __init__(self, window_seconds: float | None = None) -> None:
        self._window_seconds = min(window_seconds or _WINDOW_SECONDS, _WINDOW_SECONDS)
        self._traces: dict[Backend, _Trace] = {}

    def note(self, observations: Iterable[Observation], now: float) -> None:
        """Record a sweep of all backends at the time `now` (seconds, monotonic clock)."""
        before, self._traces = self._traces, {}
        for each in observations:
            self._traces[each.backend] = self._trace(each, before.get(each.backend), now)

    def idle_seconds(self, backend: Backend, now: float) -> float:
        """Return how long a backend has been idle, in seconds; 0 if active or not in the sweep."""
        trace = self._traces.get(backend)
        return now - trace.active_at if trace else 0.0

    def may_be_busy(self, observation: Observation, now: float) -> bool:
        """Whether a backend may be busy: `says_busy`, no reading, or no status and not idle."""
        reading = observation.reading
        if reading is None or says_busy(observation):
            return True
        return reading.status is None and not self.idle_seconds(observation.backend, now)

    def _trace(self, observation: Observation, trace: _Trace | None, now: float) -> _Trace:
        cpu_seconds = observation.tree.cpu_seconds if observation.tree else None
        active = _Trace(now, now, cpu_seconds, observation.state_changed_at)
        if trace is None or trace.cpu_seconds is None or cpu_seconds is None:
            return active
        if observation.state_changed_at != trace.state_changed_at:
            return active
        reading = observation.reading
        if reading is None or says_busy(observation):
            return active
        if reading.status is not None and reading.status.state not in State.__members__.values():
            return active
        grown, elapsed = cpu_seconds - trace.cpu_seconds, now - trace.measured_at
        # The tree's CPU time shrinks when one of its processes ends, which counts as activity.
        if grown < 0 or grown >= _ACTIVE_SHARE * max(elapsed, self._window_seconds) + _TICK_SECONDS:
            return active
        if elapsed < self._window_seconds:
            return trace
        return active._replace(active_at=trace.active_at)


class _Trace(NamedTuple):
    active_at: float
    measured_at: float
    cpu_seconds: float | None
    state_changed_at: float | None
