"""Idle times and memory, computed from sweeps."""

from __future__ import annotations

import time
from typing import Any

import pytest
from msgspec.structs import replace

from monitor_plugin import Backend, Memory, Reading, State, Status
from monitor_plugin.domain.models import Observation, TreeUsage
from monitor_plugin.hook_support.idleness import (
    Activity,
    QuietTimes,
    held_bytes,
    unreclaimable_bytes,
)

BACKEND = Backend("m", 4711, "127.0.0.1:1", 0.0)


def seen(
    cpu_seconds: float | None = 0.0,
    state: int | None = 2,
    rpc_error: str | None = None,
    memory: Memory | None = None,
    changed_at: float | None = None,
    source: str = "grpc",
    last_state: State | None = None,
    gpu_percent: float | None = None,
    protocol: str | None = None,
    **load: float,
) -> Observation:
    status = None if state is None else replace(Status(state), **load)
    reading = Reading(BACKEND, status, None, source, rpc_error, time.time(), protocol=protocol)
    tree = None if cpu_seconds is None else TreeUsage(processes=1, cpu_seconds=cpu_seconds)
    return Observation(
        backend=BACKEND,
        reading=reading,
        tree=tree,
        memory=memory,
        last_state=last_state,
        state_changed_at=changed_at,
        gpu_utilization_percent=gpu_percent,
    )


def failed(rpc_error: str, **facts: Any) -> Observation:
    return seen(state=None, rpc_error=rpc_error, source="psutil", **facts)


def idle_after(*sweeps: Observation | None, **options: Any) -> float:
    """Return the idle seconds after sweeps 5 s apart; None is a sweep without the backend."""
    activity = Activity(**options)
    for number, sweep in enumerate(sweeps):
        activity.note([sweep] if sweep else [], 1000 + 5 * number)
    return activity.idle_seconds(BACKEND, 1000 + 5 * (len(sweeps) - 1))


def test_idle_is_counted_from_the_first_sweep() -> None:
    """Activity before the first sweep is unknown."""
    assert idle_after(seen()) == 0
    assert idle_after(*[seen()] * 5) == 20


ACTIVE = {
    "busy": seen(state=1),
    "missed": failed("DEADLINE_EXCEEDED"),
    "uninitialized": seen(state=0),
    "error": seen(state=-1),
    "odd state": seen(state=77),
    "unknown cpu": seen(cpu_seconds=None),
    "not seen": None,
    "not read": Observation(backend=BACKEND),
    "busy by a hook": seen(state=1, source="hook"),
    "works on a request": seen(source="http", requests_running=1),
    "has a request that waits": seen(source="http", requests_running=0, requests_waiting=1),
    "has generated tokens": seen(source="http", requests_running=0, tokens_per_second=0.5),
    "works by a hook": seen(source="hook", requests_running=1),
    "loading by a hook": seen(state=0, source="hook"),
    "busy before": failed("UNAVAILABLE", last_state=State.BUSY),
    "loading before": failed("UNAVAILABLE", last_state=State.UNINITIALIZED),
    "unknown cpu, no status": failed("UNIMPLEMENTED", cpu_seconds=None),
}
UNKNOWN = {
    "no Status": failed("UNIMPLEMENTED"),
    "unreachable": failed("UNAVAILABLE"),
    "no token": failed("UNAUTHENTICATED"),
    "no free channel": failed("RESOURCE_EXHAUSTED"),
    "ready before": failed("INTERNAL", last_state=State.READY),
    "ready by a hook": seen(source="hook"),
    "ready by HTTP": seen(source="http", protocol="openai"),
    "ready by another protocol of gRPC": seen(protocol="grpc-health"),
    "only waiting requests are known": seen(source="http", requests_waiting=0),
}
NO_REQUESTS = {
    "localai": seen(protocol="localai"),
    "http": seen(source="http", requests_running=0, requests_waiting=0, tokens_per_second=0.0),
    "hook": seen(source="hook", requests_running=0),
}


@pytest.mark.parametrize("cpu_suffices", [False, True])
@pytest.mark.parametrize("what", ACTIVE)
def test_possible_activity_restarts_the_idle_time(what: str, cpu_suffices: bool) -> None:
    """A state but READY, a missed status and an unknown usage count as activity."""
    for sweeps, most in (((3, 0), 0.0), ((3, 3), 15.0), ((1, 2), 10.0)):
        before, after = ([seen()] * each for each in sweeps)
        assert idle_after(*before, ACTIVE[what], *after, cpu_suffices=cpu_suffices) <= most


@pytest.mark.parametrize("what", NO_REQUESTS)
def test_backend_that_reports_no_requests_is_idle(what: str) -> None:
    """READY is idle where the status tells of requests, and then it is not busy either."""
    assert idle_after(*[NO_REQUESTS[what]] * 5) == 20
    assert not Activity().may_be_busy(NO_REQUESTS[what], 0)


@pytest.mark.parametrize("what", UNKNOWN)
def test_unknown_status_is_idle_only_if_cpu_time_suffices(what: str) -> None:
    """A backend whose `Status` does not say READY may be serving a request at any CPU usage."""
    sweep = UNKNOWN[what]
    assert idle_after(*[sweep] * 5) == 0
    assert idle_after(seen(), seen(), sweep) == 0
    assert idle_after(seen(), sweep, seen(), seen()) <= 10
    assert idle_after(*[sweep] * 5, cpu_suffices=True) == 20
    works = [replace(sweep, tree=seen(float(n)).tree) for n in range(5)]
    assert idle_after(*works, cpu_suffices=True) == 0


@pytest.mark.parametrize(
    ("cpu_seconds", "idle"),
    [
        ((0.0, 0.04, 0.08, 0.12, 0.16), 20),  # 0.8 % of a core
        ((0.0, 0.04, 0.15, 0.15, 0.15), 10),
        ((0.0, 0.0, 0.0, 0.0, 0.2), 0),
        ((5.0, 5.0, 5.0, 0.0, 0.0), 5),  # a process of its tree ended
    ],
)
def test_cpu_time_is_activity(cpu_seconds: tuple[float, ...], idle: float) -> None:
    """At least 1 % of one core over ten seconds counts."""
    assert idle_after(*map(seen, cpu_seconds)) == idle


def test_use_of_a_gpu_is_activity() -> None:
    """A utilization of at least 1 % counts; an unknown utilization does not."""
    works, rests = seen(gpu_percent=1.0), seen(gpu_percent=0.9)
    assert idle_after(*[rests] * 5) == 20
    assert idle_after(*[works] * 5) == 0
    assert idle_after(rests, works, rests, rests, seen()) == 10
    silent = failed("UNIMPLEMENTED", gpu_percent=50.0)
    assert idle_after(*[silent] * 5, cpu_suffices=True) == 0
    activity = Activity(cpu_suffices=True)
    for now in (0, 5):
        activity.note([silent], now)
        assert activity.may_be_busy(silent, now)


def test_quiet_time_begins_with_the_first_quiet_sweep() -> None:
    """The backend may have been active for long after the sweep before."""
    times = QuietTimes(lambda observation: observation.state is None)
    for now, sweep in ((0, seen()), (60, failed("DEADLINE_EXCEEDED"))):
        times.note([sweep], now)
    assert times.quiet_seconds(BACKEND, 60) == 0
    times.note([failed("DEADLINE_EXCEEDED")], 65)
    assert times.quiet_seconds(BACKEND, 65) == 5


def test_state_change_between_sweeps_is_activity() -> None:
    """Another reading found the backend BUSY between two sweeps."""
    assert idle_after(*[seen(changed_at=1.0)] * 3, seen(changed_at=17.0)) == 0
    assert idle_after(*[seen(changed_at=1.0)] * 2, *[seen(changed_at=8.0)] * 3) == 10


def test_window_is_as_short_as_the_limit() -> None:
    """CPU time must be measured at least once within the limit."""
    bursts = [seen(each) for each in (0.0, 0.07, 0.07, 0.07)]
    assert idle_after(*bursts) == 15
    assert idle_after(*bursts, window_seconds=5) == 10
    assert Activity(3600)._window_seconds == Activity()._window_seconds == 10


def test_another_process_is_another_backend() -> None:
    """Also with the same PID; backends that have ended are forgotten."""
    activity = Activity()
    activity.note([seen()], 0)
    other = Backend("m", 4711, "127.0.0.1:1", 1.0)
    activity.note([Observation(backend=other, reading=seen().reading, tree=seen().tree)], 5)
    assert activity.idle_seconds(other, 5) == activity.idle_seconds(BACKEND, 5) == 0
    assert list(activity._traces) == [other]


@pytest.mark.parametrize("what", UNKNOWN)
def test_backend_of_unknown_status_may_be_busy(what: str) -> None:
    """Nothing but a low use of CPU time denies it, and only if CPU time suffices."""
    sweep = UNKNOWN[what]
    for cpu_suffices in (False, True):
        activity = Activity(cpu_suffices=cpu_suffices)
        activity.note([sweep], 0)
        assert activity.may_be_busy(sweep, 0)
        activity.note([sweep], 5)
        assert activity.may_be_busy(sweep, 5) is not cpu_suffices


def test_known_state_tells_whether_a_backend_may_be_busy() -> None:
    """A backend's own state other than BUSY means that it is not busy, also while it is active."""
    activity = Activity()
    for sweep in (seen(), seen(state=0), seen(state=-1), seen(state=0, source="hook")):
        assert not activity.may_be_busy(sweep, 0)
    works = seen(source="http", requests_running=1, requests_waiting=0)
    for sweep in (seen(state=1), seen(state=77), failed("DEADLINE_EXCEEDED"), works):
        assert activity.may_be_busy(sweep, 0)
    assert activity.may_be_busy(Observation(backend=BACKEND), 0)


def test_component_includes_its_parts() -> None:
    """A component is the sum of its parts; an unreported component is unknown."""
    memory = Memory(100, {"vram:0": 30, "vram:1": 20, "vram_cache": 7, "weights": 10})
    observation = seen(memory=memory)
    assert held_bytes(observation) == 100
    assert held_bytes(observation, "vram") == 50
    assert held_bytes(observation, "vram:1") == 20
    assert held_bytes(observation, "vram:") is None
    assert held_bytes(observation, "weights") == 10
    assert held_bytes(observation, "kv") is None
    assert held_bytes(seen(), "vram") is held_bytes(seen()) is None


@pytest.mark.parametrize(
    ("total", "source", "file", "expected"),
    [
        (520, "pss", 500, 20),
        (900, "rss", 500, 400),
        (100, "rss", 500, 0),
        (520, "pss", None, 520),
        (520, "backend", 500, 520),
        (None, None, 500, None),
    ],
)
def test_pages_of_files_can_be_dropped(
    total: int | None, source: str | None, file: int | None, expected: int | None
) -> None:
    """A total counts in full if its kinds are unknown, or if the backend reports it."""
    memory = None if total is None else Memory(total)
    tree = TreeUsage(processes=1, file=file)
    observation = Observation(backend=BACKEND, memory=memory, memory_source=source, tree=tree)
    assert unreclaimable_bytes(observation) == expected
    alone = Observation(backend=BACKEND, memory=memory, memory_source=source)
    assert unreclaimable_bytes(alone) == total


@pytest.mark.parametrize(
    ("processes", "pss", "held", "unreclaimable"),
    [(1, 500, 9000, 100), (2, 500, 500, 100), (1, None, 9000, None), (2, None, None, None)],
)
def test_outdated_memory_counts_as_it_was_read(
    processes: int, pss: int | None, held: int | None, unreclaimable: int | None
) -> None:
    """A server that forks 20 workers holds no more for that, and its RSS grows 20 times."""
    tree = TreeUsage(processes=processes, pss=pss, file=None if pss is None else 400)
    observation = Observation(
        backend=BACKEND, memory=Memory(9000), memory_source="rss", tree=tree, awaits_pss=True
    )
    assert held_bytes(observation) == held
    assert unreclaimable_bytes(observation) == unreclaimable
    told = replace(observation, memory_source="backend")
    assert held_bytes(told) == unreclaimable_bytes(told) == 9000
