"""The hook executor: order, times, threads and figures, with implementations that misbehave."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from monitor_plugin import StartFailed, hookimpl
from monitor_plugin.concurrency import thread_pool as workers
from monitor_plugin.concurrency.thread_pool import MAX_IDLE
from monitor_plugin.plugins.executor import (
    HookCall,
    HookExecutor,
    HookNotCalled,
    HookOverran,
    WrongType,
)
from monitor_plugin.plugins.manager import PluginManager

from ..support import eventually, refuse_thread

HOOK = "monitor_closing"


class Plugin:
    """Implements a hook without arguments by a function."""

    def __init__(self, behave: Callable[[], Any]) -> None:
        self.behave = behave
        self.threads: list[threading.Thread] = []

    @hookimpl
    def monitor_closing(self) -> Any:
        self.threads.append(threading.current_thread())
        return self.behave()


class Rig:
    """A hook executor and the plugins that it calls, in their order."""

    def __init__(self) -> None:
        self.manager = PluginManager()
        self.executor = HookExecutor([self.manager])
        self.plugins: list[Plugin] = []

    def add(self, *behave: Callable[[], Any]) -> list[Plugin]:
        plugins = [Plugin(each) for each in behave]
        for number, plugin in reversed([*enumerate(plugins)]):
            self.manager.register(plugin, f"p{number}")
        self.plugins = plugins
        return plugins

    def call(self, seconds: float | None = 10.0, **options: Any) -> list[tuple[str, object]]:
        validate = options.pop("validate", lambda value: value)
        outcomes = self.executor.call(HookCall(HOOK, seconds, {}, validate, **options))
        return [(name, value if error is None else type(error)) for name, value, error in outcomes]

    def figures(self, place: int) -> tuple[int, int, int]:
        _, each = self.executor.figures(HOOK)[place]
        return each.calls, each.errors, each.overruns


@pytest.fixture
def rig() -> Iterator[Rig]:
    """A rig that is closed after the test."""
    rig = Rig()
    yield rig
    rig.executor.close()


def give(value: object) -> Callable[[], object]:
    return lambda: value


def fail(error: BaseException) -> Callable[[], object]:
    def behave() -> None:
        raise error

    return behave


def test_one_thread_calls_all_implementations(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """One thread of the pool calls all implementations in order; it ends after the close."""
    monkeypatch.setattr(workers, "_IDLE_SECONDS", 60.0)
    plugins = rig.add(*[give(None)] * 50)
    for _ in range(3):
        assert rig.call() == []
    for call in range(3):
        assert len({plugin.threads[call] for plugin in plugins}) == 1
    assert threading.current_thread() not in plugins[0].threads
    assert [len(plugin.threads) for plugin in plugins] == [3] * 50
    rig.executor.close()
    eventually(lambda: not any(thread.is_alive() for thread in plugins[0].threads))
    assert rig.call() == []
    eventually(lambda: not plugins[0].threads[-1].is_alive())


def test_executor_keeps_a_bounded_number_of_threads(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many calls at once as there are have a thread each; few of those stay."""
    monkeypatch.setattr(workers, "_IDLE_SECONDS", 60.0)
    barrier = threading.Barrier(MAX_IDLE + 5)
    (plugin,) = rig.add(barrier.wait)
    callers = [threading.Thread(target=rig.call) for _ in range(MAX_IDLE + 5)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(30)
    assert len(set(plugin.threads)) == MAX_IDLE + 5
    eventually(lambda: sum(each.is_alive() for each in plugin.threads) == MAX_IDLE)
    rig.executor.close()
    assert not any(each.is_alive() for each in plugin.threads)


@pytest.mark.parametrize(
    "error", [KeyError(), SystemExit(3), asyncio.CancelledError(), KeyboardInterrupt()]
)
def test_any_error_ends_one_implementation_only(rig: Rig, error: BaseException) -> None:
    """The other implementations are called in order, and the thread survives."""
    plugins = rig.add(give(1), fail(error), give(3))
    for _ in range(2):
        assert rig.call() == [("p0", 1), ("p1", type(error)), ("p2", 3)]
    assert {*plugins[0].threads} == {*plugins[2].threads}
    assert [rig.figures(place) for place in range(3)] == [(2, 0, 0), (2, 2, 0), (2, 0, 0)]


def test_hooks_without_a_time_limit_run_on_the_calling_thread(rig: Rig) -> None:
    """The caller gets a KeyboardInterrupt."""
    plugins = rig.add(give(1), fail(SystemExit()), fail(asyncio.CancelledError()), give(3))
    outcomes = [("p0", 1), ("p1", SystemExit), ("p2", asyncio.CancelledError), ("p3", 3)]
    assert rig.call(None) == outcomes
    assert plugins[3].threads == [threading.current_thread()]
    rig.manager.register(Plugin(fail(KeyboardInterrupt())))
    with pytest.raises(KeyboardInterrupt):
        rig.call(None)


def test_overrun_costs_its_time_once(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    """The other implementations are called; a slow one is called again after its return."""
    go = threading.Event()
    wait: Callable[[], object] = lambda: go.wait(60) and None  # noqa: E731
    plugins = rig.add(give(0), wait, give(2), wait, wait, give(5))
    overran = [(name, HookOverran) for name in ("p1", "p3", "p4")]
    expected = sorted([("p0", 0), ("p2", 2), ("p5", 5), *overran])
    assert rig.call(0.05) == expected
    assert caplog.text.count("did not return within 0.05 s") == 3
    assert rig.call(0.05) == expected
    assert [len(plugin.threads) for plugin in plugins] == [2, 1, 2, 1, 1, 2]
    assert caplog.text.count("did not return within 0.05 s") == 3
    assert [rig.figures(place) for place in (0, 1, 3)] == [(2, 0, 0), (1, 0, 1), (1, 0, 1)]
    before = [each.seconds_total for _, each in rig.executor.figures(HOOK)]
    assert before[1] >= 0.05
    go.set()
    eventually(lambda: not any(each.overdue_calls for each in rig.executor.implementations(HOOK)))
    assert rig.call() == [("p0", 0), ("p2", 2), ("p5", 5)]
    _, slow = rig.executor.figures(HOOK)[1]
    assert slow.seconds_total >= slow.seconds_max > before[1]
    assert (slow.calls, slow.errors, slow.overruns) == (2, 0, 1)


def test_late_result_is_dropped(rig: Rig) -> None:
    """A late result is ignored; a late error is counted."""
    go = threading.Event()

    def late() -> None:
        go.wait(60)
        raise KeyError

    rig.add(late, give(1))
    outcomes = rig.call(0.05)
    go.set()
    eventually(lambda: rig.figures(0) == (1, 1, 1))
    assert outcomes == [("p0", HookOverran), ("p1", 1)]


def test_implementations_after_the_last_outcome_are_not_called(rig: Rig) -> None:
    """A value, an overrun, or an implementation that is still overdue may end the call."""
    go = threading.Event()
    plugins = rig.add(give(None), lambda: go.wait(60) and None, give(2), give(3))

    def has_value(outcome: Any) -> bool:
        return outcome.value is not None

    def is_late(outcome: Any) -> bool:
        return outcome.error is not None

    assert rig.call(0.05, is_last=has_value) == [("p1", HookOverran), ("p2", 2)]
    assert plugins[3].threads == []
    assert rig.call(0.05, is_last=is_late) == [("p1", HookOverran)]
    go.set()
    eventually(lambda: rig.call(0.05, is_last=is_late) != [("p1", HookOverran)])
    assert rig.call(0.05, is_last=has_value) == [("p2", 2)]
    assert len(plugins[3].threads) == 1  # of the call that had no end


def test_result_is_validated_within_its_time(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    """A wrong result is logged with its type; the validation counts towards the time limit."""
    go = threading.Event()

    def validate(value: Any) -> Any:
        if value == "slow":
            go.wait(60)
        if not isinstance(value, int):
            raise WrongType(value, "a number")
        return None if value == 0 else value

    async def coroutine() -> None:
        pass

    rig.add(give("slow"), give("s3cret"), give(0), give(1), coroutine)
    outcomes = rig.call(0.05, validate=validate)
    go.set()
    wrong = [("p1", WrongType), ("p3", 1), ("p4", WrongType)]
    assert outcomes == [("p0", HookOverran), *wrong]
    assert (
        "plugin 'p1': hook monitor_closing returned str, and should return a number" in caplog.text
    )
    assert "s3cret" not in caplog.text
    assert rig.figures(1) == (1, 1, 0)


def test_plugins_come_and_go_during_calls(rig: Rig) -> None:
    """A plugin may unregister itself or register another during its call; the figures stay."""
    plugins = rig.add(give(0), lambda: rig.manager.unregister(plugins[1]) and None, give(2))
    assert rig.call() == [("p0", 0), ("p2", 2)]
    assert rig.call() == [("p0", 0), ("p2", 2)]
    assert [rig.figures(place) for place in range(2)] == [(2, 0, 0), (2, 0, 0)]
    rig.manager.register(Plugin(lambda: rig.add(give(7)) and None), "brings")
    rig.manager.unregister(name="p0")
    assert rig.call() == [("p2", 2)]
    assert rig.call()[0] == ("p0", 7)


def test_hook_may_call_hooks(rig: Rig) -> None:
    """Nested calls run on hook threads, and `on_hook_thread` says so."""
    depth = [0]

    def again() -> object:
        depth[0] += 1
        if depth[0] < 5:
            return [rig.executor.on_hook_thread(), *rig.call()]
        return None

    rig.add(again)
    assert rig.call() == [("p0", [True, ("p0", [True, ("p0", [True, ("p0", [True])])])])]
    assert not rig.executor.on_hook_thread()


def test_run_starts_before_outcomes_are_requested(rig: Rig) -> None:
    """`outcomes` may be called at any later time."""
    (plugin,) = rig.add(give(1))
    (run,) = rig.executor.begin(HookCall(HOOK, 0.05, {}, lambda value: value))
    eventually(lambda: plugin.threads)
    assert [outcome.value for outcome in run.outcomes()] == [1]
    assert sys.getrefcount(plugin) < 20


def test_overrun_may_end_the_call(rig: Rig) -> None:
    """Later implementations are not called, and the late result is ignored."""
    go = threading.Event()
    plugins = rig.add(lambda: go.wait(60) and None, give(1))
    assert rig.call(0.05, is_last=lambda outcome: outcome.error is not None) == [
        ("p0", HookOverran)
    ]
    go.set()
    eventually(lambda: not rig.executor.implementations(HOOK)[0].overdue_calls)
    assert plugins[1].threads == []


def test_each_implementation_has_one_outcome(rig: Rig) -> None:
    """An implementation that returns while it is being skipped has overrun, and nothing else."""
    go = threading.Event()
    rig.add(give(1))
    outcomes = rig.call(0.05, is_last=lambda outcome: outcome.value is not None and go.wait(60))
    go.set()
    assert outcomes == [("p0", HookOverran)]


def test_figures_add_up_over_many_calls(rig: Rig) -> None:
    """Calls that return None are counted as well."""
    values = iter([None, 7, None, None] * 50)
    rig.add(give(None), lambda: next(values))
    began = time.perf_counter()
    for _ in range(200):
        rig.call()
    seconds = time.perf_counter() - began
    assert [rig.figures(place) for place in range(2)] == [(200, 0, 0)] * 2
    each, other = (figures for _, figures in rig.executor.figures(HOOK))
    assert 0 < each.seconds_max <= each.seconds_total
    assert each.seconds_total + other.seconds_total < seconds


@pytest.fixture
def no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """No hook thread can be started."""
    refuse_thread(monkeypatch, "monitor-hook")


@pytest.mark.usefixtures("no_threads")
def test_implementations_are_not_called_if_no_thread_can_be_started(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Each has an outcome, which the log has as well; no figure changes; later calls work."""
    plugins = rig.add(give(1), give(2))
    assert rig.call() == [("p0", HookNotCalled), ("p1", HookNotCalled)]
    for name in ("p0", "p1"):
        words = f"plugin '{name}': hook monitor_closing: it was not called: can't start new thread"
        assert words in caplog.text
    assert [rig.figures(place) for place in range(2)] == [(0, 0, 0)] * 2
    runs = rig.executor.begin(*[HookCall(HOOK, 60.0, {})] * 2)
    assert [[each.plugin_name for each in run.outcomes()] for run in runs] == [["p0", "p1"]] * 2
    monkeypatch.undo()
    assert rig.call() == [("p0", 1), ("p1", 2)]
    assert len(plugins[0].threads) == 1


def test_thread_that_cannot_take_over_ends_the_call(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The implementations after one that overruns are not called, and the call ends."""
    go, overrun = threading.Event(), HookOverran
    rig.add(lambda: go.wait(60) and None, give(2))
    (run,) = rig.executor.begin(HookCall(HOOK, 0.2, {}, lambda value: value))

    def refuse(job: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(rig.executor._workers, "run", refuse)
    outcomes = [(each.plugin_name, type(each.error)) for each in run.outcomes()]
    go.set()
    if outcomes[0][1] is overrun:  # else not even the first thread has started in time
        assert outcomes == [("p0", overrun), ("p1", HookNotCalled)]


def test_call_ends_at_its_deadline(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    """The implementation that has not returned has overrun; later ones are not called."""
    go = threading.Event()
    plugins = rig.add(give(1), lambda: go.wait(60) and None, give(3))
    validate: Callable[[Any], Any] = lambda value: value  # noqa: E731
    began = time.monotonic()
    call = HookCall(HOOK, 60.0, {}, validate, ends_at=began + 0.3)
    (run,) = rig.executor.begin(call)
    outcomes = [(each.plugin_name, type(each.error)) for each in run.outcomes()]
    assert time.monotonic() - began < 30
    go.set()
    if len(plugins[1].threads) == 1:  # else the machine was too slow to call it in time
        assert outcomes == [("p0", type(None)), ("p1", HookOverran)]
        assert "plugin 'p1': hook monitor_closing did not return within 0." in caplog.text
        assert rig.figures(1)[2] == 1
    assert plugins[2].threads == []


def test_call_after_its_deadline_leaves_nothing_unwatched(rig: Rig) -> None:
    """No implementation goes on that has neither returned nor overrun."""
    go = threading.Event()
    (plugin,) = rig.add(lambda: go.wait(60) and None)
    for _ in range(20):
        rig.executor.call(HookCall(HOOK, 60.0, {}, ends_at=time.monotonic() - 1.0))
    assert len(plugin.threads) <= 1
    assert rig.executor.implementations(HOOK)[0].overdue_calls == [None] * len(plugin.threads)
    go.set()


def test_wait_ends_at_its_time_and_the_run_goes_on(rig: Rig) -> None:
    """`wait` returns whether the run has ended; `outcomes` may be called later."""
    go = threading.Event()
    rig.add(lambda: go.wait(60) and 1)
    (run,) = rig.executor.begin(HookCall(HOOK, 60.0, {}, lambda value: value))
    assert not run.wait(time.monotonic() + 0.05)
    go.set()
    assert run.wait()
    assert [each.value for each in run.outcomes()] == [True]


@pytest.mark.parametrize("begins", [False, True])
def test_following_run_does_not_wait_for_a_hook_that_hangs(rig: Rig, begins: bool) -> None:
    """It begins when the first run ends, or earlier if it is asked to; once in any case."""
    go, calls = threading.Event(), []

    class Second:
        @hookimpl
        def monitor_add_routes(self) -> None:
            calls.append(threading.current_thread())

    rig.add(lambda: go.wait(60) and None)
    rig.manager.register(Second())
    seconds = 60.0 if begins else 0.1
    first, second = rig.executor.begin(
        HookCall(HOOK, seconds, {}), HookCall("monitor_add_routes", 60.0, {})
    )
    if begins:
        assert not first.wait(time.monotonic())
        second.begin()
        second.begin()
    else:
        assert first.wait()
        second.begin()
    assert second.outcomes() == []
    go.set()
    assert first.wait()
    rig.executor.close()
    assert len(calls) == 1


def test_error_is_logged_without_a_caller_that_waits(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    """A reading that gives up early hides no error of a hook."""
    rig.add(fail(KeyError("boom")))
    rig.executor.begin(HookCall(HOOK, 60.0, {}))
    eventually(lambda: "plugin 'p0': hook monitor_closing raised" in caplog.text)


@pytest.mark.parametrize("error", [ValueError("a prompt"), StartFailed("m", "a prompt")])
def test_error_of_a_hook_that_sees_logs_is_logged_without_its_message(
    error: Exception, rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    """The message may quote what a backend has written, such as a line that cannot be parsed."""

    class SeesLogs:
        @hookimpl
        def monitor_read_log(self) -> None:
            raise error  # a prompt

        @hookimpl
        def monitor_backend_postmortem(self) -> None:
            raise error  # a prompt

    error.__cause__ = KeyError("a prompt")
    rig.manager.register(SeesLogs(), "p0")
    for hook in ("monitor_read_log", "monitor_backend_postmortem"):
        rig.executor.call(HookCall(hook, 60.0, {}))
        assert f"plugin 'p0': hook {hook} raised {type(error).__name__}" in caplog.text
    assert "in monitor_read_log" in caplog.text  # the place
    assert "a prompt" not in caplog.text


def test_late_return_is_reported_to_the_caller(rig: Rig) -> None:
    """Once, after the implementation may be called again."""
    go, returned = threading.Event(), threading.Event()
    rig.add(lambda: go.wait(60) and None)
    (implementation,) = rig.executor.implementations(HOOK)
    call = HookCall(HOOK, 0.05, {}, on_late_return=returned.set)
    while not rig.executor.call_some([implementation], call):
        pass  # the thread had not started in time
    assert not returned.is_set()
    go.set()
    assert returned.wait(30)
    assert implementation.overdue_calls == []
