"""The order of starts, shutdowns and restarts of one model, with real processes."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest

from monitor_plugin import ModelNotLoaded, Monitor, MonitorError, StartFailed, hookimpl
from monitor_plugin.concurrency.group_lock import GroupLock

from ..support import Spawner, count_pidfds, eventually, load_sleeper, started_since
from .support import EmbeddedHost


@pytest.fixture
def host(spawner: Spawner) -> EmbeddedHost:
    host = EmbeddedHost(spawner)
    host.programs["m"] = lambda: host.process_of("m")
    return host


@pytest.fixture
def monitor(host: EmbeddedHost, make_monitor: Callable[..., Monitor]) -> Monitor:
    """A monitor of a host whose model is ready at once."""
    return make_monitor([host, host.answers()], respawn_watch_seconds=0.0)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(40) as pool:
        yield pool


def order_of(monitor: Monitor) -> GroupLock:
    return monitor._services.operations._order


def count_callers(monitor: Monitor) -> int:
    """Count the threads in operations on the model, and those that wait for their turn."""
    return sum(each.callers for each in list(order_of(monitor)._groups.get("m", ())))


def arrive(
    pool: ThreadPoolExecutor, monitor: Monitor, function: Callable[..., Any], **options: Any
) -> Future[Any]:
    """Call a method of the monitor on another thread, and wait until it has arrived."""
    before = count_callers(monitor)
    future = pool.submit(partial(function, "m", **options))
    eventually(lambda: count_callers(monitor) > before or future.done())
    return future


def test_starts_at_the_same_time_share_one_start(
    host: EmbeddedHost, monitor: Monitor, pool: ThreadPoolExecutor
) -> None:
    """The host is asked once; all callers get the result, also if it is an error."""
    host.may_start.clear()
    futures = [arrive(pool, monitor, monitor.start_model) for _ in range(10)]
    host.may_start.set()
    assert [each.result(60) for each in futures] == [None] * 10
    assert host.calls == ["m"]
    monitor.start_model("m")
    assert host.calls == ["m"]
    monitor.shutdown("m")
    host.may_start.clear()
    host.fails = "no disk"
    futures = [arrive(pool, monitor, monitor.start_model) for _ in range(3)]
    host.may_start.set()
    assert ["no disk" in str(each.exception(60)) for each in futures] == [True] * 3
    assert host.calls == ["m", "m"]


def test_shutdown_waits_for_the_start_before_it(
    host: EmbeddedHost, monitor: Monitor, pool: ThreadPoolExecutor
) -> None:
    """The shutdown then stops the new backend, although none was there when it was requested."""
    host.may_start.clear()
    start = arrive(pool, monitor, monitor.start_model)
    eventually(lambda: host.calls)
    stop = arrive(pool, monitor, monitor.shutdown)
    again = arrive(pool, monitor, monitor.shutdown)
    assert not start.done()
    assert not stop.done()
    host.may_start.set()
    start.result(60)
    stop.result(60)
    again.result(60)
    assert monitor.backends() == []


def test_start_waits_for_the_shutdown_before_it(
    host: EmbeddedHost, make_monitor: Callable[..., Monitor], pool: ThreadPoolExecutor
) -> None:
    """Otherwise the backend that is about to end would pass for a loaded model."""
    stopping, may_stop = threading.Event(), threading.Event()

    class Guard:
        @hookimpl
        def monitor_before_shutdown(self) -> None:
            stopping.set()
            may_stop.wait(60)

    monitor = make_monitor([host, host.answers(), Guard()], respawn_watch_seconds=0.0)
    monitor.start_model("m")
    (before,) = monitor.backends()
    stop = arrive(pool, monitor, monitor.shutdown)
    assert stopping.wait(60)
    start = arrive(pool, monitor, monitor.start_model)
    assert host.calls == ["m"]
    may_stop.set()
    stop.result(60)
    start.result(60)
    (after,) = monitor.backends()
    assert after.pid != before.pid


def test_last_arrival_decides(
    host: EmbeddedHost, monitor: Monitor, pool: ThreadPoolExecutor
) -> None:
    """A shutdown, a start and a shutdown in a row end with a stopped model."""
    monitor.start_model("m")
    host.may_start.clear()
    calls: list[Callable[..., Any]] = [monitor.shutdown, monitor.start_model, monitor.shutdown]
    futures = [arrive(pool, monitor, each) for each in calls]
    host.may_start.set()
    for each in futures:
        each.result(60)
    assert monitor.backends() == []
    assert host.calls == ["m", "m"]


@pytest.mark.parametrize("last", ["start", "shutdown", "restart"])
def test_mixed_operations_of_many_threads_end_in_the_last_state(
    last: str, host: EmbeddedHost, monitor: Monitor, pool: ThreadPoolExecutor
) -> None:
    """No caller waits forever, and what arrived last holds."""
    chooser = random.Random(last)
    calls: dict[str, Callable[..., Any]] = {
        "start": monitor.start_model,
        "shutdown": monitor.shutdown,
        "restart": monitor.restart_model,
        "forced": partial(monitor.shutdown, force=True),
    }
    futures = [pool.submit(calls[chooser.choice(list(calls))], "m") for _ in range(20)]
    eventually(lambda: count_callers(monitor) + sum(each.done() for each in futures) >= 20)
    chosen = pool.submit(calls[last], "m")
    for each in futures:
        assert isinstance(each.exception(120), (MonitorError, type(None)))
    if last == "shutdown":
        assert isinstance(chosen.exception(120), (ModelNotLoaded, type(None)))
        assert monitor.backends() == []
    else:
        chosen.result(120)
        assert len(monitor.backends()) == 1
    assert order_of(monitor)._groups == {}


def test_forced_shutdown_ends_the_starts_before_it(
    host: EmbeddedHost, monitor: Monitor, pool: ThreadPoolExecutor
) -> None:
    """A start that waits for its turn ends too; a later start runs."""
    host.loads_forever.add("m")
    start = arrive(pool, monitor, monitor.start_model)
    eventually(monitor.backends)
    restart = arrive(pool, monitor, monitor.restart_model)
    stop = arrive(pool, monitor, monitor.shutdown, force=True)
    for each in (start, restart):
        with pytest.raises(StartFailed, match="a shutdown by force ended the wait"):
            each.result(60)
    stop.result(60)
    assert monitor.backends() == []
    host.loads_forever.clear()
    monitor.start_model("m")


def test_forced_shutdown_ends_the_drain_of_a_shutdown_before_a_start(
    host: EmbeddedHost, make_monitor: Callable[..., Monitor], pool: ThreadPoolExecutor
) -> None:
    """A start between both does not keep it from that."""
    host.busy.add("m")
    monitor = make_monitor(
        [host, host.answers()], drain_timeout_seconds=300.0, respawn_watch_seconds=0.0
    )
    monitor.start_model("m")
    first = arrive(pool, monitor, monitor.shutdown)
    eventually(lambda: {each.phase for each in host.progress()} == {"draining"})
    start = arrive(pool, monitor, monitor.start_model)
    stop = arrive(pool, monitor, monitor.shutdown, force=True)
    first.result(60)
    with pytest.raises(StartFailed):
        start.result(60)
    assert isinstance(stop.exception(60), (ModelNotLoaded, type(None)))
    assert monitor.backends() == []


def test_start_that_does_not_get_its_turn_says_so(
    host: EmbeddedHost, monitor: Monitor, pool: ThreadPoolExecutor
) -> None:
    """The time limit of a start includes the wait for the operations before it."""
    host.may_start.clear()
    start = arrive(pool, monitor, monitor.start_model)
    with pytest.raises(StartFailed, match=r"another operation on it has not ended within 0\.1 s"):
        monitor.start_model("m", timeout_seconds=0.1)
    host.may_start.set()
    start.result(60)


def test_restart_starts_another_process(host: EmbeddedHost, monitor: Monitor) -> None:
    """A model that is not loaded is only started."""
    monitor.restart_model("m")
    (before,) = monitor.backends()
    monitor.restart_model("m")
    (after,) = monitor.backends()
    assert after.pid != before.pid
    assert host.calls == ["m", "m"]


def test_restart_by_pid_spares_the_other_replicas(host: EmbeddedHost, monitor: Monitor) -> None:
    """The restart waits until as many replicas are ready as before."""
    monitor.start_model("m")
    host.process_of("m")
    first, second = monitor.backends()
    monitor.restart_model("m", pid=first.pid)
    pids = [each.pid for each in monitor.backends()]
    assert pids[0] == second.pid
    assert len(pids) == 2
    assert first.pid not in pids


def test_restart_waits_for_as_many_backends_as_there_were(
    host: EmbeddedHost, monitor: Monitor
) -> None:
    """If one of two backends is ready, the restart fails, and the error says so."""
    monitor.start_model("m")
    host.process_of("m")
    with pytest.raises(StartFailed, match=r"1 of 2 backends are ready within 0\.5 s"):
        monitor.restart_model("m", timeout_seconds=0.5)


def test_restart_without_a_host_that_starts_models_stops_nothing(
    make_monitor: Callable[..., Monitor], spawner: Spawner
) -> None:
    """Otherwise a restart would be a shutdown."""
    monitor = make_monitor()
    process = load_sleeper(monitor, spawner)
    with pytest.raises(StartFailed, match="no host of this monitor can start models"):
        monitor.restart_model("m")
    assert [each.pid for each in monitor.backends()] == [process.pid]
    assert process.poll() is None


def test_restart_that_cannot_stop_starts_nothing(
    host: EmbeddedHost, make_monitor: Callable[..., Monitor]
) -> None:
    """The error is that of the shutdown."""

    class Guard:
        @hookimpl
        def monitor_before_shutdown(self) -> str:
            return "it is needed"

    monitor = make_monitor([host, host.answers(), Guard()])
    monitor.start_model("m")
    (before,) = monitor.backends()
    with pytest.raises(MonitorError, match="it is needed"):
        monitor.restart_model("m")
    with pytest.raises(MonitorError, match="PID 1;"):
        monitor.restart_model("m", pid=1)
    assert monitor.backends() == [before]
    assert host.calls == ["m"]


def test_close_ends_all_starts(
    host: EmbeddedHost, make_monitor: Callable[..., Monitor], pool: ThreadPoolExecutor
) -> None:
    """The host blocks one start, one start loads, and one waits; no thread still waits."""
    before, pidfds = threading.enumerate(), count_pidfds()
    monitor = make_monitor([host, host.answers()], hook_timeout_seconds=0.5)
    host.programs["n"] = lambda: host.process_of("n")
    host.loads_forever.add("n")
    loading = pool.submit(monitor.start_model, "n")
    eventually(monitor.backends)
    host.may_start.clear()
    blocked = arrive(pool, monitor, monitor.start_model)
    eventually(lambda: host.calls == ["n", "m"])
    waiting = arrive(pool, monitor, monitor.restart_model)
    monitor.close()
    for each in (loading, blocked, waiting):
        with pytest.raises(StartFailed, match="the end of the monitor"):
            each.result(60)
    with pytest.raises(StartFailed, match="the end of the monitor"):
        monitor.start_model("m")

    def monitors_threads() -> list[str]:
        return [each for each in started_since(before) if each.startswith("monitor")]

    eventually(lambda: monitors_threads() == ["monitor-hook"])  # the host's call still blocks
    host.may_start.set()
    eventually(lambda: monitors_threads() == [])
    eventually(lambda: count_pidfds() == pidfds)
