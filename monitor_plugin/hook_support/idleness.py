"""Estimates from sweeps how long each backend has been idle, or has used no CPU and no GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from ..domain.models import Backend, Observation, Reading, State

_WINDOW_SECONDS = 10.0
_ACTIVE_SHARE = 0.01  # of one core; a process tree that uses as much or more is active
_TICK_SECONDS = 0.01  # the resolution of CPU time
_ACTIVE_GPU_PERCENT = 1.0  # a backend whose GPUs are in use for as much of the time is active


def says_busy(observation: Observation) -> bool:
    """Whether a backend reports that it is BUSY or has requests, or its status call timed out.

    A timeout can mean the same, as a server with one thread does not answer while it works.
    """
    reading = observation.reading
    if reading is None:
        return False
    if reading.status is not None:
        return reading.status.has_requests
    return reading.rpc_error == "DEADLINE_EXCEEDED"


def held_bytes(observation: Observation, component: str | None = None) -> int | None:
    """Return the memory of a backend in bytes, or None if unknown: its total, or a component.

    The component `vram` is the sum of itself and all `vram:...`. While the PSS of several processes
    is outdated, the last PSS counts: RSS may be many times as much if the processes share pages.
    """
    memory = observation.memory
    if memory is None:
        return None
    if component is None:
        return _last_pss(observation) if _rss_may_mislead(observation) else memory.total
    names = [each for each in memory.breakdown if f"{each}:".startswith(f"{component}:")]
    return sum(memory.breakdown[each] for each in names) if names else None


def unreclaimable_bytes(observation: Observation) -> int | None:
    """Return the memory of a backend that the kernel cannot drop, in bytes; None if unknown.

    The pages of mapped files do not count, such as a model that llama.cpp maps. The whole total
    counts if the backend reported it, because it is not known whether the total includes files, and
    if the monitor may not read the kinds of memory. While the kinds are outdated, the last reading
    counts.
    """
    memory, tree = observation.memory, observation.tree
    if memory is None or observation.memory_source == "backend" or tree is None:
        return memory.total if memory else None
    total = _last_pss(observation) if observation.awaits_pss else memory.total
    return None if total is None else max(0, total - (tree.file or 0))


def _rss_may_mislead(observation: Observation) -> bool:
    is_rss = observation.awaits_pss and observation.memory_source == "rss"
    return is_rss and (observation.tree is None or observation.tree.processes > 1)


def _last_pss(observation: Observation) -> int | None:
    return observation.tree.pss if observation.tree else None


class QuietTimes:
    """Tracks how long each backend has been quiet. Not thread-safe.

    A backend is quiet while `may_be_quiet` says so, its process tree uses less than 1 % of one
    core, and the GPUs that only this tree uses are in use for less than 1 % of the time. A GPU
    counts only where its utilization is known (`Observation.gpu_utilization_percent`). A backend
    counts as active if its CPU usage is unknown, or if its state changed between two sweeps (it may
    have been BUSY between them). Quiet time begins with the first sweep in which the backend is
    quiet, and begins again after a sweep without the backend.

    Args:
        may_be_quiet: whether a backend is quiet if it uses neither the CPU nor a GPU.
        window_seconds: the window in which CPU time is measured; at most, and by default, 10 s.
    """

    def __init__(
        self, may_be_quiet: Callable[[Observation], bool], window_seconds: float | None = None
    ) -> None:
        self._may_be_quiet = may_be_quiet
        self._window_seconds = min(window_seconds or _WINDOW_SECONDS, _WINDOW_SECONDS)
        self._traces: dict[Backend, _Trace] = {}

    def note(self, observations: Iterable[Observation], now: float) -> None:
        """Record a sweep of all backends at the time `now` (seconds, monotonic clock)."""
        before, self._traces = self._traces, {}
        for each in observations:
            self._traces[each.backend] = self._trace(each, before.get(each.backend), now)

    def quiet_seconds(self, backend: Backend, now: float) -> float:
        """Return how long a backend has been quiet, in seconds; 0 if active or not in the sweep."""
        trace = self._traces.get(backend)
        return now - trace.active_at if trace else 0.0

    def _trace(self, observation: Observation, trace: _Trace | None, now: float) -> _Trace:
        cpu_seconds = observation.tree.cpu_seconds if observation.tree else None
        uses_gpu = (observation.gpu_utilization_percent or 0.0) >= _ACTIVE_GPU_PERCENT
        is_quiet = not uses_gpu and self._may_be_quiet(observation)
        changed_at = observation.state_changed_at
        active = _Trace(now, now, cpu_seconds, changed_at, is_quiet)
        if trace is None or trace.cpu_seconds is None or cpu_seconds is None:
            return active
        if changed_at != trace.state_changed_at or not (is_quiet and trace.is_quiet):
            return active
        grown, elapsed = cpu_seconds - trace.cpu_seconds, now - trace.measured_at
        # The tree's CPU time shrinks when one of its processes ends and no other one waits for it.
        # That counts as activity.
        if grown < 0 or grown >= _ACTIVE_SHARE * max(elapsed, self._window_seconds) + _TICK_SECONDS:
            return active
        if elapsed < self._window_seconds:
            return trace
        return active._replace(active_at=trace.active_at)


class Activity(QuietTimes):
    """Tracks how long each backend has been idle. Not thread-safe.

    A backend is idle while it is quiet, its own status says READY, and it reports no requests and
    no tokens that it has generated. It counts as active if its status is missing or not READY.
    READY counts as a missing status where it does not deny requests: from a hook or a protocol
    without BUSY, such as grpc.health.v1, unless the status has the number of running requests.

    Args:
        window_seconds: the window in which CPU time is measured; at most, and by default, 10 s.
        cpu_suffices: also count a backend as idle whose status is missing, unless its status call
            timed out, or the last state that it reported was not READY.
    """

    def __init__(self, window_seconds: float | None = None, cpu_suffices: bool = False) -> None:
        super().__init__(self._may_be_idle, window_seconds)
        self._cpu_suffices = cpu_suffices

    def idle_seconds(self, backend: Backend, now: float) -> float:
        """Return how long a backend has been idle, in seconds; 0 if active or not in the sweep."""
        return self.quiet_seconds(backend, now)

    def may_be_busy(self, observation: Observation, now: float) -> bool:
        """Whether a backend may be serving a request, in a sweep that `note` has recorded.

        True if the backend is BUSY, has requests, is in an unknown state or was not read, or if its
        status call timed out. Without a status, and with a READY that does not deny requests, true
        unless the backend is idle.
        """
        if observation.reading is None or says_busy(observation):
            return True
        state = _known_state(observation.reading)
        if state is None:
            return not self.idle_seconds(observation.backend, now)
        return state not in State.__members__.values()

    def _may_be_idle(self, observation: Observation) -> bool:
        """Whether a backend is idle if it uses neither the CPU nor a GPU."""
        reading = observation.reading
        if reading is None or says_busy(observation):
            return False
        if reading.status and reading.status.tokens_per_second:
            return False  # it has worked since the reading before
        state = _known_state(reading)
        if state is None:
            return self._cpu_suffices and observation.last_state in (None, State.READY)
        return state == State.READY


def _known_state(reading: Reading) -> int | None:
    """Return the state that a backend reported; None if there is none, or a READY that says little.

    A backend may be READY while it serves a request, unless it was asked by LocalAI's protocol,
    which has BUSY, or reports how many requests it is working on.
    """
    status = reading.status
    if status is None:
        return None
    has_busy = reading.source == "grpc" and reading.protocol in (None, "localai")
    if status.state == State.READY and not has_busy and status.requests_running is None:
        return None
    return status.state


class _Trace(NamedTuple):
    active_at: float
    measured_at: float
    cpu_seconds: float | None
    state_changed_at: float | None
    is_quiet: bool  # apart from its use of the CPU
