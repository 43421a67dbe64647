"""Events reach each plugin on a thread of its own: a slow plugin delays nobody else."""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from monitor_plugin import Backend, BackendExit, Monitor, State, Status, hookimpl
from monitor_plugin.plugins import event_queue, plugin_queue
from monitor_plugin.plugins.event_queue import EventQueue
from monitor_plugin.plugins.executor import HookExecutor
from monitor_plugin.plugins.manager import PluginManager

from ..support import (
    Client,
    Spawner,
    eventually,
    load_sleeper,
    logged,
    refuse_thread,
    started_since,
)

EXIT = BackendExit("exited", 0, None, None, 1.0)
FLIP = itertools.cycle([State.BUSY, State.READY])


def backend(pid: int = 1) -> Backend:
    return Backend("m", pid, "a", 1.0)


class Recorder:
    """A plugin that records what its hooks get, and may wait in the hooks that are named."""

    def __init__(self, *slow: str) -> None:
        self.slow = slow
        self.go = threading.Event()
        self.events: list[tuple[Any, ...]] = []

    def _record(self, *event: Any) -> None:
        self.events.append(event)
        if event[0] in self.slow:
            self.go.wait(60)

    @hookimpl
    def monitor_backend_registered(self, backend: Backend) -> None:
        self._record("registered", backend.pid)

    @hookimpl
    def monitor_state_changed(self, backend: Backend, current: State) -> None:
        self._record("state", backend.pid, current)

    @hookimpl
    def monitor_backend_gone(self, backend: Backend) -> None:
        self._record("gone", backend.pid)

    @hookimpl
    def monitor_shutdown_finished(self, backend: Backend, outcome: str) -> None:
        self._record("finished", backend.pid, outcome)


class Rig:
    """An event queue, what it logs, and the plugins that it calls."""

    def __init__(self, seconds: float = 60.0) -> None:
        self.manager = PluginManager()
        self.executor = HookExecutor([self.manager])
        self.logged: list[str] = []
        self.queue = EventQueue(self.executor, seconds, lambda hook, _: self.logged.append(hook))
        self.plugins: list[Recorder] = []

    def add(self, *plugins: Recorder) -> None:
        for plugin in plugins:
            self.manager.register(plugin, f"p{len(self.plugins)}")
            self.plugins.append(plugin)

    def change(self, pid: int = 1) -> None:
        arguments = {"previous": None, "current": next(FLIP)}
        self.queue.publish("monitor_state_changed", backend=backend(pid), **arguments)

    def end(self, pid: int = 1) -> None:
        self.queue.publish("monitor_backend_gone", backend=backend(pid), exit=EXIT)

    def close(self) -> None:
        for plugin in self.plugins:
            plugin.go.set()
        self.queue.close()
        self.executor.close()


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig()
    yield rig
    rig.close()


@pytest.fixture
def impatient_rig() -> Iterator[Rig]:
    """Its hooks have 50 ms each."""
    rig = Rig(0.05)
    yield rig
    rig.close()


def test_slow_plugin_delays_neither_others_nor_the_log(rig: Rig) -> None:
    """While the hook of one plugin runs, the other one gets all its events."""
    slow, other = Recorder("state"), Recorder()
    rig.add(slow, other)
    rig.queue.start()
    for _ in range(50):
        rig.change()
        eventually(lambda: rig.queue.figures(other).waiting == 0)
    rig.end()
    eventually(lambda: other.events[-1:] == [("gone", 1)])
    assert len(other.events) == 51
    eventually(lambda: len(rig.logged) == 51)
    assert len(slow.events) == 1
    figures = rig.queue.figures(slow)
    assert 1 < figures.waiting <= plugin_queue.MAX_STATES + 1
    assert figures.waiting + figures.coalesced == 50
    assert figures.oldest_seconds > 0
    slow.go.set()
    eventually(lambda: slow.events[-1] == ("gone", 1))
    assert rig.queue.figures(slow).waiting == 0


def test_exits_of_a_slow_plugin_come_before_states_of_other_backends(rig: Rig) -> None:
    """However many backends have changed their state meanwhile."""
    slow = Recorder("state")
    rig.add(slow)
    rig.queue.start()
    for pid in range(1, 101):
        rig.change(pid)
    eventually(lambda: slow.events)
    rig.end(101)
    slow.go.set()
    eventually(lambda: len(slow.events) == 101)
    assert slow.events[1] == ("gone", 101)


@pytest.mark.parametrize("slow", ["registered", "state", "gone", "finished"])
def test_hook_that_hangs_takes_bounded_memory_and_no_thread(
    impatient_rig: Rig, slow: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It runs once; the events after it are merged, wait, or are dropped, which is said once."""
    monkeypatch.setattr(plugin_queue, "MAX_EVENTS", 10)
    rig, plugin, before = impatient_rig, Recorder(slow), set(threading.enumerate())
    rig.add(plugin)
    rig.queue.start()
    for pid in range(1001):
        rig.queue.publish("monitor_backend_registered", backend=backend(pid))
        rig.change(pid)
        rig.end(pid)
        rig.queue.publish("monitor_shutdown_finished", backend=backend(pid), outcome="", seconds=1)
        if pid == 0:
            eventually(lambda: plugin.events and plugin.events[-1][0] == slow)
    eventually(lambda: "did not return within 0.05 s" in caplog.text)
    figures = rig.queue.figures(plugin)
    assert figures.waiting <= 10
    assert figures.dropped > 0
    assert sum(event[0] == slow for event in plugin.events) == 1
    if slow != "state":  # other events do not wait for a late `monitor_state_changed`
        eventually(lambda: caplog.text.count("an event is dropped") == 1)
    assert len(started_since(before)) < 10  # and not one for each event
    plugin.go.set()
    eventually(lambda: rig.queue.figures(plugin).waiting == 0)
    order = ["registered", "state", "gone", "finished"]
    for pid in {event[1] for event in plugin.events}:
        of_one = [order.index(event[0]) for event in plugin.events if event[1] == pid]
        assert of_one == sorted(of_one)


def test_exit_reaches_a_plugin_whose_state_hook_hangs(impatient_rig: Rig) -> None:
    """The hooks of a plugin are independent, as far as the order of its events allows."""
    plugin = Recorder("state")
    impatient_rig.add(plugin)
    impatient_rig.queue.start()
    for pid in (1, 2, 1):
        impatient_rig.change(pid)
    impatient_rig.end(1)
    impatient_rig.end(3)
    eventually(lambda: plugin.events[1:] == [("gone", 1), ("gone", 3)])
    plugin.go.set()
    eventually(lambda: plugin.events[3:4] and plugin.events[3][:2] == ("state", 2))


def test_hook_that_exceeds_its_time_gets_every_exit(impatient_rig: Rig) -> None:
    """Its next event waits for its return."""
    plugin = Recorder("gone")
    impatient_rig.add(plugin)
    impatient_rig.queue.start()
    for pid in range(20):
        impatient_rig.end(pid)
    (gone,) = impatient_rig.executor.implementations("monitor_backend_gone")
    eventually(lambda: gone.overdue_calls)
    plugin.go.set()
    eventually(lambda: plugin.events == [("gone", pid) for pid in range(20)])
    assert impatient_rig.queue.figures(plugin).dropped == 0


def test_wait_lasts_until_the_plugins_have_returned(rig: Rig) -> None:
    """Plugins without the hook are not waited for."""
    slow, other = Recorder("registered"), Recorder()
    rig.add(slow, other)
    rig.queue.start()
    delivery = rig.queue.publish("monitor_backend_registered", backend=backend())
    eventually(lambda: other.events)
    eventually(lambda: slow.events)
    assert not delivery.done.is_set()
    slow.go.set()
    rig.queue.wait([delivery])
    assert delivery.done.is_set()


def test_wait_is_for_no_hook_that_is_late_already(impatient_rig: Rig) -> None:
    """A plugin that hangs delays a host once, and not at every registration."""
    plugin = Recorder("registered")
    impatient_rig.add(plugin)
    impatient_rig.queue.start()
    impatient_rig.queue.publish("monitor_backend_registered", backend=backend())
    (hook,) = impatient_rig.executor.implementations("monitor_backend_registered")
    eventually(lambda: hook.overdue_calls)
    for name in ("monitor_backend_registered", "monitor_shutdown_finished"):
        delivery = impatient_rig.queue.publish(
            name, backend=backend(), **({"outcome": "", "seconds": 1} if "shut" in name else {})
        )
        assert delivery.done.is_set()


def test_events_before_the_start_are_delivered_after_it(rig: Rig) -> None:
    """Hosts may register backends before `Monitor.start()`."""
    plugin = Recorder()
    rig.add(plugin)
    rig.end()
    delivery = rig.queue.publish("monitor_backend_registered", backend=backend(2))
    rig.queue.wait([delivery])  # does not wait, as nothing would deliver
    assert rig.queue.figures(plugin).waiting == 2
    rig.queue.start()
    eventually(lambda: plugin.events == [("gone", 1), ("registered", 2)])


def test_two_implementations_of_a_plugin_get_every_change(rig: Rig) -> None:
    """A plugin may implement a hook twice, by `specname`; changes of state are merged for both."""
    found: list[tuple[str, State | None, State]] = []
    go = threading.Event()

    class Twice:
        @hookimpl(specname="monitor_state_changed")
        def first(self, previous: State | None, current: State) -> None:
            go.wait(60)
            found.append(("first", previous, current))

        @hookimpl(specname="monitor_state_changed")
        def second(self, previous: State | None, current: State) -> None:
            found.append(("second", previous, current))

    rig.manager.register(plugin := Twice())
    rig.queue.start()
    for _ in range(100):
        rig.change()
    go.set()
    eventually(lambda: rig.queue.figures(plugin).waiting == 0)
    rig.queue.close()
    changes = {name: [each[1:] for each in found if each[0] == name] for name, *_ in found}
    assert changes["first"] == changes["second"]
    assert len(found) > 2


def test_close_delivers_what_is_queued_and_ends_the_threads(rig: Rig) -> None:
    """Also with a plugin that has been unregistered, which gets nothing more."""
    before = set(threading.enumerate())
    plugin, gone = Recorder(), Recorder()
    rig.add(plugin, gone)
    for pid in range(100):
        rig.end(pid)
    rig.manager.unregister(gone)
    rig.queue.start()
    rig.queue.close()
    rig.executor.close()
    assert len(plugin.events) == 100
    assert gone.events == []
    eventually(lambda: not started_since(before))


def test_close_does_not_wait_for_a_hook_that_is_late(
    impatient_rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    """Its other events are lost, which is what a hook that hangs costs, and logged."""
    plugin = Recorder("gone")
    impatient_rig.add(plugin)
    impatient_rig.queue.start()
    impatient_rig.end(1)
    impatient_rig.end(2)
    (gone,) = impatient_rig.executor.implementations("monitor_backend_gone")
    eventually(lambda: gone.overdue_calls)
    closing = threading.Thread(target=impatient_rig.queue.close)
    closing.start()
    closing.join(60)
    assert not closing.is_alive()
    assert plugin.events == [("gone", 1)]
    assert (
        logged(caplog)[-1] == "plugin 'p0': events not delivered before the monitor was closed: 1"
    )


def test_close_ends_before_a_slow_plugin_has_all_events(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The events that are left are logged, and not delivered later."""
    monkeypatch.setattr(event_queue, "_CLOSE_SECONDS", 0.0)
    before, plugin = set(threading.enumerate()), Recorder("gone")
    rig.add(plugin)
    rig.queue.start()
    for pid in range(3):
        rig.end(pid)
    eventually(lambda: plugin.events)
    rig.queue.close()
    assert logged(caplog) == ["plugin 'p0': events not delivered before the monitor was closed: 2"]
    plugin.go.set()
    eventually(lambda: not any("events-p" in name for name in started_since(before)))
    assert plugin.events == [("gone", 0)]


def test_idle_threads_end_and_forget_unregistered_plugins(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The counts of a plugin stay as long as it is registered; its next event is delivered."""
    monkeypatch.setattr(event_queue, "_IDLE_SECONDS", 0.01)
    before = set(threading.enumerate())
    plugin, leaving = Recorder(), Recorder()
    rig.add(plugin, leaving)
    rig.queue.start()
    rig.end(1)
    rig.manager.unregister(leaving)
    eventually(lambda: not any("events-p" in name for name in started_since(before)))
    rig.end(2)
    eventually(lambda: plugin.events == [("gone", 1), ("gone", 2)])
    assert [each.plugin for each in rig.queue._subscribers.values()] == [plugin]


def test_plugin_gets_the_next_event_after_an_unexpected_error(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The error is logged with the plugin and the hook."""
    plugin, call_some, errors = Recorder(), rig.executor.call_some, [ValueError("unexpected")]

    def fail_once(*arguments: Any) -> Any:
        if errors:
            raise errors.pop()
        return call_some(*arguments)

    monkeypatch.setattr(rig.executor, "call_some", fail_once)
    rig.add(plugin)
    rig.queue.start()
    rig.end(1)
    rig.end(2)
    eventually(lambda: plugin.events == [("gone", 2)])
    assert logged(caplog) == ["plugin 'p0': hook monitor_backend_gone could not be called"]


def test_thread_that_cannot_start_is_reported_and_tried_again(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """No event is lost, whichever of the threads cannot be started."""
    plugin = Recorder()
    rig.add(plugin)
    rig.queue.start()
    monkeypatch.setattr(event_queue, "_RETRY_SECONDS", 0.01)
    with monkeypatch.context() as patch:
        refuse_thread(patch)
        rig.end(1)
        eventually(lambda: "plugin 'p0': its events wait" in caplog.text)
    with monkeypatch.context() as patch:
        refuse_thread(patch, "monitor-hook")
        rig.end(2)
        eventually(lambda: "monitor_backend_gone: it was not called: can't start" in caplog.text)
        assert plugin.events == []
    eventually(lambda: plugin.events == [("gone", 1), ("gone", 2)])


def test_close_keeps_events_whose_hook_could_not_be_called(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The log counts them, and a later start delivers them in order."""
    plugin = Recorder()
    rig.add(plugin)
    with monkeypatch.context() as patch:
        refuse_thread(patch, "monitor-hook")
        rig.queue.start()
        rig.end(1)
        rig.end(2)
        eventually(lambda: "it was not called: can't start" in caplog.text)
        rig.queue.close()
    assert logged(caplog)[-1].endswith("events not delivered before the monitor was closed: 2")
    rig.queue.start()
    eventually(lambda: plugin.events == [("gone", 1), ("gone", 2)])


def test_start_that_fails_leaves_nothing_to_close(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A later start delivers the events, also after a `close` that undid the start."""
    rig.add(plugin := Recorder())
    rig.end()
    with monkeypatch.context() as patch:
        refuse_thread(patch)
        with pytest.raises(RuntimeError):
            rig.queue.start()
    rig.queue.close()
    assert rig.queue.figures(plugin).waiting == 1
    for pid in (1, 2):
        rig.queue.start()
        rig.end(pid + 1)
        eventually(lambda pid=pid: plugin.events[pid:] == [("gone", pid + 1)])  # type: ignore[misc]
        rig.queue.close()


def test_log_that_raises_or_blocks_harms_no_hook() -> None:
    """Its lines are bounded as well."""
    manager, plugin, go = PluginManager(), Recorder(), threading.Event()
    executor = HookExecutor([manager])
    calls: list[str] = []

    def log(hook: str, _: object) -> None:
        calls.append(hook)
        if len(calls) == 1:
            raise OSError("No space left on device")
        go.wait(60)

    manager.register(plugin)
    queue = EventQueue(executor, 60.0, log)
    queue.start()
    for pid in range(3):
        queue.publish("monitor_backend_gone", backend=backend(pid), exit=EXIT)
    eventually(lambda: len(plugin.events) == 3)
    eventually(lambda: len(calls) == 2)
    go.set()
    queue.close()
    executor.close()
    assert len(calls) == 3


class Flipping:
    """Gives every backend another state at each reading."""

    @hookimpl
    def monitor_query_status(self) -> Status:
        return Status(next(FLIP))


def test_slow_hook_delays_no_reading_exit_or_event(
    make_monitor: Callable[..., Monitor], spawner: Spawner, caplog: pytest.LogCaptureFixture
) -> None:
    """Readings, /events, the log and another plugin go on while a hook takes its time."""
    caplog.set_level(logging.INFO, "monitor_plugin.logs")
    slow, other = Recorder("state", "gone"), Recorder()
    monitor = make_monitor([Flipping(), slow, other], hook_timeout_seconds=60.0)
    client, process = Client(monitor.url), load_sleeper(monitor, spawner)
    for _ in range(20):
        assert client.monitor("m").status == 200
    process.kill()
    eventually(lambda: ("gone", process.pid) in other.events)
    events = client.request("GET", "/events").json["events"]
    assert [each["type"] for each in events] == ["registered", *["state_changed"] * 20, "ended"]
    eventually(lambda: f"(process {process.pid}) was killed" in caplog.text)
    assert len(slow.events) == 2
    (lag,) = [
        each["events"]
        for each in client.request("GET", "/hooks").json["plugins"]
        if each["name"] == "Recorder"
    ]
    assert 1 < lag["waiting"] <= plugin_queue.MAX_STATES + 1
    assert lag["oldest_seconds"] > 0
    assert lag["waiting"] + lag["coalesced"] == 20
    assert lag["dropped"] == 0
    slow.go.set()


def test_plugins_without_event_hooks_have_no_lag(make_monitor: Callable[..., Monitor]) -> None:
    """`events` is null for them, and zeros for a plugin that has got no event yet."""
    monitor = make_monitor([Flipping(), Recorder()])
    listed = Client(monitor.url).request("GET", "/hooks").json["plugins"]
    zeros = {"waiting": 0, "oldest_seconds": 0.0, "coalesced": 0, "dropped": 0}
    assert [each["events"] for each in listed] == [None, zeros]
