"""Idle times and memory, computed from sweeps."""

from __future__ import annotations

import time

import pytest

from monitor_plugin import Backend, Memory, Reading, Status
from monitor_plugin.domain.models import Observation, TreeUsage
from monitor_plugin.hook_support.idleness import Activity, held_bytes, says_busy

BACKEND = Backend("m", 4711, "127.0.0.1:1", 0.0)


def seen(
    cpu_seconds: float | None = 0.0,
    state: int | None = 2,
    rpc_error: str | None = None,
    memory: Memory | None = None,
    changed_at: float | None = None,
) -> Observation:
    status = None if state is None else Status(state)
    reading = Reading(BACKEND, status, None, "grpc", rpc_error, time.time())
    tree = None if cpu_seconds is None else TreeUsage(processes=1, cpu_seconds=cpu_seconds)
    return Observation(
        backend=BACKEND, reading=reading, tree=tree, memory=memory, state_changed_at=changed_at
    )


def idle_after(*sweeps: Observation | None, window_seconds: float | None = None) -> float:
    """Return the idle seconds after sweeps 5 s apart; None is a sweep without the backend."""
    activity = Activity(window_seconds)
    for number, sweep in enumerate(sweeps):
        activity.note([sweep] if sweep else [], 1000 + 5 * number)
    return activity.idle_seconds(BACKEND, 1000 + 5 * (len(sweeps) - 1))


def test_idle_is_counted_from_the_first_sweep() -> None:
    """Activity before the first sweep is unknown."""
    assert idle_after(seen()) == 0
    assert idle_after(*[seen()] * 5) == 20
    assert idle_after(*[seen(state=None, rpc_error="UNIMPLEMENTED")] * 5) == 20


@pytest.mark.parametrize(
    "sweep",
    [
        seen(state=1),
        seen(state=None, rpc_error="DEADLINE_EXCEEDED"),
        seen(state=77),
        seen(cpu_seconds=None),
        None,
        Observation(backend=BACKEND),
    ],
    ids=["busy", "missed", "odd state", "unknown cpu", "not seen", "not read"],
)
def test_possible_activity_restarts_the_idle_time(sweep: Observation | None) -> None:
    """An unknown state or usage counts as activity."""
    assert idle_after(seen(), seen(), seen(), sweep) == 0
    after = idle_after(seen(), seen(), seen(), sweep, seen(), seen(), seen())
    assert after <= 15
    assert idle_after(seen(), sweep, seen(), seen()) < 15


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


def test_active_backend_without_status_may_be_busy() -> None:
    """Without a status, CPU time decides."""
    activity = Activity()
    silent = seen(state=None, rpc_error="UNIMPLEMENTED")
    activity.note([silent], 0)
    assert activity.may_be_busy(silent, 0)
    assert not activity.may_be_busy(seen(), 0)
    assert activity.may_be_busy(Observation(backend=BACKEND), 0)
    activity.note([silent], 5)
    assert not activity.may_be_busy(silent, 5)
    for busy in (seen(state=1), seen(state=None, rpc_error="DEADLINE_EXCEEDED")):
        assert says_busy(busy)
        assert activity.may_be_busy(busy, 5)


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
