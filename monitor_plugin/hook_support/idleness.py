"""Which backends do nothing, and since when, as far as that can be seen from outside."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from ..domain.models import Backend, Observation, State

_WINDOW_SECONDS = 10.0
_AT_WORK = 0.01  # of a core
_STEP_SECONDS = 0.01  # by which CPU time is counted


def says_busy(observation: Observation) -> bool:
    """Whether a backend says that it is busy, or says nothing in time, which can mean the same."""
    reading = observation.reading
    if reading is None:
        return False
    busy = reading.status is not None and reading.status.state == State.BUSY
    return busy or reading.rpc_error == "DEADLINE_EXCEEDED"


def held_bytes(observation: Observation, component: str | None = None) -> int | None:
    """Say what a backend holds, in all or of a component: `vram` is that and each `vram:...`.

    So is `vram:amdgpu` each `vram:amdgpu:...`.

    Returns:
        Bytes; None where it is not known.
    """
    memory = observation.memory
    if memory is None:
        return None
    if component is None:
        return memory.total
    names = [each for each in memory.breakdown if f"{each}:".startswith(f"{component}:")]
    return sum(memory.breakdown[each] for each in names) if names else None


class Activity:
    """Since when each backend does nothing. For one thread at a time.

    A backend did something where it may be busy, is in a state that the protocol does not know, or
    its process tree used 1 % of a core, or an unknown amount; also where somebody saw its state
    change between two sweeps, as it was perhaps busy then. What is unknown is not idle, so that it
    begins when a backend is first seen, and anew after a sweep that did not see it.

    Args:
        window_seconds: over how long CPU time is measured, 10 s at most; None for that.
    """

    def __init__(self, window_seconds: float | None = None) -> None:
        self._window_seconds = min(window_seconds or _WINDOW_SECONDS, _WINDOW_SECONDS)
        self._traces: dict[Backend, _Trace] = {}

    def note(self, observations: Iterable[Observation], now: float) -> None:
        """Take in what a sweep found of all backends, at `now` on the monotonic clock."""
        before, self._traces = self._traces, {}
        for each in observations:
            self._traces[each.backend] = self._trace(each, before.get(each.backend), now)

    def idle_seconds(self, backend: Backend, now: float) -> float:
        """Say for how long a backend did nothing: 0 where it just did, or that is not known."""
        trace = self._traces.get(backend)
        return now - trace.active_at if trace else 0.0

    def may_be_busy(self, observation: Observation, now: float) -> bool:
        """Whether it may be at work: it says so, or it cannot say and was not idle just now."""
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
        if says_busy(observation) or not _is_understood(observation):
            return active
        grown, elapsed = cpu_seconds - trace.cpu_seconds, now - trace.marked_at
        # It shrinks where a process of the tree ended: something happened.
        if grown < 0 or grown >= _AT_WORK * max(elapsed, self._window_seconds) + _STEP_SECONDS:
            return active
        if elapsed < self._window_seconds:
            return trace
        return active._replace(active_at=trace.active_at)


class _Trace(NamedTuple):
    active_at: float
    marked_at: float
    cpu_seconds: float | None
    state_changed_at: float | None


def _is_understood(observation: Observation) -> bool:
    reading = observation.reading
    if reading is None:
        return False
    return reading.status is None or reading.status.state in State.__members__.values()
