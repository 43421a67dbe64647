"""What is counted of `Status` calls: each once, with its duration and its code."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from monitor_plugin import Backend, Monitor, Status, hookimpl
from monitor_plugin.status_counts import DURATION_BOUNDS, StatusCounter, StatusCounts

from .support import Client, Spawner, eventually


@pytest.fixture
def monitor(make_monitor: Callable[..., Monitor]) -> Monitor:
    """A monitor that asks nobody by itself."""
    return make_monitor(sweep_interval_seconds=0.0)


def counted(monitor: Monitor, model: str) -> StatusCounts | None:
    (backend,) = [each for each in monitor.backends() if each.model == model]
    return monitor._parts.status_client.counts(backend)


def test_calls_are_counted_up_to_each_bound() -> None:
    """Each bound counts the calls that took no longer than it; the last number is all of them."""
    counter = StatusCounter()
    for seconds in (0.0005, 0.001, 0.002, 0.7, 31.0):
        counter.add(seconds, None)
    counts = counter.counts()
    at_most = dict(zip(DURATION_BOUNDS, counts.calls, strict=False))
    assert (at_most[0.001], at_most[0.005], at_most[0.5], at_most[1.0]) == (2, 3, 3, 4)
    assert (at_most[30.0], counts.calls[-1]) == (4, 5)
    assert counts.seconds == 0.0005 + 0.001 + 0.002 + 0.7 + 31.0
    assert counts.failures == {}


def test_failures_are_counted_by_code() -> None:
    """A call that failed counts as a call, and once by its code."""
    counter = StatusCounter()
    for code in ("UNAVAILABLE", "INTERNAL", None, "UNAVAILABLE"):
        counter.add(0.1, code)
    assert counter.counts().failures == {"UNAVAILABLE": 2, "INTERNAL": 1}
    assert counter.counts().calls[-1] == 4


def test_a_counter_takes_under_1_kib() -> None:
    """However many calls were counted, and however they failed."""
    counter = StatusCounter()
    for code in grpc.StatusCode:
        for _ in range(1000):
            counter.add(5.0, code.name)
    parts = [counter, counter.__dict__, *counter.__dict__.values()]
    assert sum(map(sys.getsizeof, parts)) < 1024


def test_one_call_is_counted_once_however_many_readers_joined_it(
    monitor: Monitor, client: Client, spawner: Spawner
) -> None:
    """Eight who read at once while a call is under way are one call."""
    backend = spawner.backend("--status-seconds", "0.5")
    monitor.hook.monitor_backend_spawned(model="m", pid=backend.pid, address=backend.address)
    ready = threading.Barrier(8)

    def read(_: int) -> int:
        ready.wait()
        return client.monitor("m").status

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(read, range(8))) == {200}
    counts = counted(monitor, "m")
    assert counts is not None
    assert counts.calls[-1] == 1
    assert counts.seconds >= 0.5
    assert counts.calls[DURATION_BOUNDS.index(0.1)] == 0


def test_failures_of_real_calls_are_counted(
    monitor: Monitor, client: Client, spawner: Spawner
) -> None:
    """A backend without Status is asked once, and one that is not there each time."""
    backend = spawner.backend("--no-status")
    sleeper = spawner.sleeper()
    monitor.hook.monitor_backend_spawned(model="old", pid=backend.pid, address=backend.address)
    monitor.hook.monitor_backend_spawned(model="m", pid=sleeper.pid, address="127.0.0.1:1")
    for _ in range(2):
        client.monitor("old")
        client.monitor("m")
    old = counted(monitor, "old")
    assert old
    assert (old.calls[-1], old.failures) == (1, {"UNIMPLEMENTED": 1})
    eventually(lambda: (counted(monitor, "m") or old).failures == {"UNAVAILABLE": 2})


class Answers:
    @hookimpl
    def monitor_query_status(self, backend: Backend, timeout_seconds: float) -> Status:
        return Status(2)


def test_a_hooks_status_is_no_call(make_monitor: Callable[..., Monitor], spawner: Spawner) -> None:
    """Where a hook answers, no call was made, and none is counted."""
    monitor = make_monitor(plugins=[Answers()])
    process = spawner.sleeper()
    monitor.hook.monitor_backend_spawned(model="m", pid=process.pid, address="127.0.0.1:1")
    assert monitor.read("m").source == "hook"
    assert counted(monitor, "m") is None


def test_what_was_counted_is_dropped_with_the_backend(
    monitor: Monitor, client: Client, spawner: Spawner
) -> None:
    """Nothing is kept of a backend that is gone."""
    backend = spawner.backend()
    monitor.hook.monitor_backend_spawned(model="m", pid=backend.pid, address=backend.address)
    client.monitor("m")
    (registered,) = monitor.backends()
    assert monitor._parts.status_client.counts(registered)
    backend.process.kill()
    eventually(lambda: not monitor.backends())
    eventually(lambda: monitor._parts.status_client.counts(registered) is None)
