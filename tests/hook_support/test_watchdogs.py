"""What watchdogs do with backends: stops, restarts that back off, and reports."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable

import pytest

from monitor_plugin import Backend, Monitor, SettingsError, hookimpl
from monitor_plugin.hook_support import watchdogs
from monitor_plugin.hook_support.settings import HookSettings
from monitor_plugin.hook_support.watchdogs import Watchdog

from ..embedded_host import EmbeddedHost
from ..support import Client, Spawner, eventually, is_running, load_sleeper

_logger = logging.getLogger("a hook")


class Reports:
    """A plugin that collects what watchdogs report."""

    def __init__(self) -> None:
        self.found: list[tuple[str, str, str, str]] = []

    @hookimpl
    def monitor_watchdog_acted(
        self, backend: Backend, watchdog: str, action: str, reason: str
    ) -> None:
        self.found.append((backend.model, watchdog, action, reason))

    @property
    def actions(self) -> list[str]:
        return [action for _, _, action, _ in self.found]


@pytest.fixture
def reports() -> Reports:
    return Reports()


MakeWatchdog = Callable[..., Watchdog]


@pytest.fixture
def make_watchdog(
    make_monitor: Callable[..., Monitor], spawner: Spawner, reports: Reports
) -> MakeWatchdog:
    """Makes a watchdog and its monitor: `make_watchdog(host, ACTION="restart")`."""

    def make(
        host: object | None = None, pause: float = 0.01, well: float = 1000.0, **settings: str
    ) -> Watchdog:
        environ = {f"MONITOR_HOOK_A_WATCHDOG_{name}": value for name, value in settings.items()}
        read = HookSettings("monitor_plugin_hooks.a_watchdog", environ)
        watchdog = Watchdog(read, _logger, pause_seconds=pause, well_seconds=well)
        plugins = [each for each in (reports, host) if each]
        watchdog.stops.monitor = make_monitor(
            plugins, hook_timeout_seconds=30, start_timeout_seconds=60
        )
        return watchdog

    return make


def monitor_of(watchdog: Watchdog) -> Monitor:
    monitor = watchdog.stops.monitor
    assert isinstance(monitor, Monitor)
    return monitor


def sweep(watchdog: Watchdog, *models: str, why: str = "it hangs", **options: bool) -> list[bool]:
    """Make a sweep in which something is wrong with each backend of some models."""
    backends = [each for each in monitor_of(watchdog).backends() if each.model in models]
    acted = [watchdog.act(each, why, **options) for each in backends]
    watchdog.end_sweep()
    return acted


def settle(watchdog: Watchdog) -> None:
    """Wait until nothing is under way."""
    eventually(lambda: not watchdog.stops.under_way())
    eventually(lambda: not any(each.is_running for each in watchdog._histories.values()))


def test_stop_is_reported_everywhere(
    make_watchdog: MakeWatchdog,
    spawner: Spawner,
    reports: Reports,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The hook, `/events` and one line of the log have the stop."""
    watchdog = make_watchdog()
    monitor = monitor_of(watchdog)
    process = load_sleeper(monitor, spawner)
    assert sweep(watchdog, "m") == [True]
    eventually(lambda: not monitor.backends())
    assert process.wait(60) == -signal.SIGTERM
    eventually(lambda: reports.found)
    assert reports.found == [("m", "a_watchdog", "stop", "it hangs")]
    events = Client(monitor.url).request("GET", "/events?after=0").json["events"]
    (event,) = [each for each in events if each["type"] == "watchdog"]
    assert (event["model"], event["pid"]) == ("m", process.pid)
    assert (event["watchdog"], event["action"]) == ("a_watchdog", "stop")
    assert event["reason"] == "it hangs"
    lines = [each for each in caplog.messages if "it hangs" in each]
    assert lines == [f"model 'm' (process {process.pid}) is being stopped: it hangs"]


def test_restarted_model_runs_again(
    make_watchdog: MakeWatchdog, spawner: Spawner, reports: Reports
) -> None:
    """The model has another process, which is ready; other models still have theirs."""
    host = EmbeddedHost(spawner, {"m": (), "other": ()})
    watchdog = make_watchdog(host, ACTION="restart")
    monitor = monitor_of(watchdog)
    before = {each.model: each.pid for each in monitor.backends()}
    assert sweep(watchdog, "m", force=True) == [True]
    settle(watchdog)
    after = {each.model: each.pid for each in monitor.backends()}
    assert host.started == ["m"]
    assert after["m"] != before["m"]
    assert after["other"] == before["other"]
    assert monitor.read("m").source == "grpc"
    assert not is_running(before["m"])
    eventually(lambda: reports.found)
    assert reports.found == [("m", "a_watchdog", "restart", "it hangs")]


def test_model_that_keeps_failing_is_left_and_told_of_once(
    make_watchdog: MakeWatchdog, spawner: Spawner, reports: Reports
) -> None:
    """The model still runs; other models are still restarted."""
    host = EmbeddedHost(spawner, {"m": (), "other": ()})
    watchdog = make_watchdog(host, ACTION="restart", RESTARTS_PER_HOUR="2")
    for _ in range(2):
        eventually(lambda: sweep(watchdog, "m") == [True])
        settle(watchdog)
    for _ in range(3):
        assert sweep(watchdog, "m") == [False]
    assert host.started == ["m", "m"]
    eventually(lambda: "gave_up" in reports.actions)
    assert reports.actions == ["restart", "restart", "gave_up"]
    assert reports.found[-1][3] == "it hangs; it was restarted 2 times within the last hour"
    assert len(monitor_of(watchdog).backends()) == 2
    assert sweep(watchdog, "other") == [True]
    settle(watchdog)
    assert host.started[2:] == ["other"]


def test_model_that_was_well_for_a_while_is_restarted_again(
    make_watchdog: MakeWatchdog,
    spawner: Spawner,
    reports: Reports,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A model with a condition is not restarted again, however old its restarts are."""
    host = EmbeddedHost(spawner, {"m": ()})
    watchdog = make_watchdog(host, well=0.0, ACTION="restart", RESTARTS_PER_HOUR="1")
    assert sweep(watchdog, "m") == [True]
    settle(watchdog)
    assert sweep(watchdog, "m") == [False]
    eventually(lambda: reports.actions == ["restart", "gave_up"])
    sweep(watchdog)  # nothing is wrong
    assert sweep(watchdog, "m") == [False]  # but the restart was within the last hour
    eventually(lambda: reports.actions == ["restart", "gave_up", "gave_up"])
    monkeypatch.setattr(watchdogs, "_HOUR_SECONDS", 0.0)
    assert sweep(watchdog, "m") == [False]
    assert sweep(watchdog, "m") == [False]
    sweep(watchdog)
    assert sweep(watchdog, "m") == [True]
    settle(watchdog)
    assert len(host.started) == 2


def test_pauses_between_restarts_grow(make_watchdog: MakeWatchdog, spawner: Spawner) -> None:
    """Each pause is twice as long as the previous pause, up to ten minutes."""
    host = EmbeddedHost(spawner, {"m": ()})
    watchdog = make_watchdog(host, pause=200.0, ACTION="restart", RESTARTS_PER_HOUR="9")
    for pause in (200.0, 400.0, 600.0, 600.0):
        assert sweep(watchdog, "m") == [True]
        settle(watchdog)
        assert sweep(watchdog, "m") == [False]
        history = watchdog._histories["m"]
        assert pause - 100 < history.next_at - time.monotonic() <= pause
        history.next_at = 0.0
    assert len(host.started) == 4


def test_failed_start_is_tried_again_until_it_is_given_up(
    make_watchdog: MakeWatchdog,
    spawner: Spawner,
    reports: Reports,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A model that does not start has no backend in any sweep, and is not forgotten."""
    host = EmbeddedHost(spawner, {"m": ()})
    watchdog = make_watchdog(host, ACTION="restart", RESTARTS_PER_HOUR="3")
    host.programs["m"] = None
    assert sweep(watchdog, "m") == [True]
    eventually(lambda: sweep(watchdog) == [] and "gave_up" in reports.actions)
    assert host.started == ["m"] * 3
    sweep(watchdog)
    settle(watchdog)
    assert reports.actions == ["restart", "restart", "restart", "gave_up"]
    assert reports.found[-1][3] == (
        "its last start failed; it was restarted 3 times within the last hour"
    )
    errors = [each for each in caplog.records if each.name == "a hook"]
    assert [each.levelno for each in errors] == [logging.ERROR] * 3
    assert "a restart failed: model 'm' could not be started: " in errors[0].getMessage()
    # Its operator has mended it, and starts it.
    host.programs["m"] = ()
    monitor_of(watchdog).start_model("m")
    sweep(watchdog)
    assert host.started == ["m"] * 4
    assert watchdog._histories["m"].stopped is None


def test_failed_start_that_succeeds_later_is_no_longer_tried(
    make_watchdog: MakeWatchdog, spawner: Spawner, reports: Reports
) -> None:
    """The second start of a restart succeeds."""
    host = EmbeddedHost(spawner, {"m": ()})
    watchdog = make_watchdog(host, ACTION="restart")
    host.programs["m"] = None
    assert sweep(watchdog, "m") == [True]
    settle(watchdog)
    host.programs["m"] = ()
    eventually(lambda: sweep(watchdog) == [] and monitor_of(watchdog).backends())
    settle(watchdog)
    sweep(watchdog)
    settle(watchdog)
    assert host.started == ["m", "m"]
    assert reports.actions == ["restart", "restart"]


def test_shutdown_by_force_ends_a_restart_for_good(
    make_watchdog: MakeWatchdog, spawner: Spawner
) -> None:
    """The watchdog does not start what a client has stopped."""
    host = EmbeddedHost(spawner, {"m": ()})
    watchdog = make_watchdog(host, ACTION="restart")
    monitor = monitor_of(watchdog)
    host.programs["m"] = ("--state", "0")
    assert sweep(watchdog, "m") == [True]
    eventually(lambda: host.started and monitor.backends())
    monitor.shutdown("m", force=True)
    settle(watchdog)
    sweep(watchdog)
    settle(watchdog)
    assert host.started == ["m"]
    assert monitor.backends() == []


class StopsOnly:
    """A host that cannot start anything."""

    @hookimpl
    def monitor_stop_backend(self) -> None:
        pass


@pytest.mark.parametrize(
    ("case", "why"),
    [
        ("no hook", "no host of this monitor can start models (hook monitor_start_model)"),
        ("not listed", "no host lists this model (hook monitor_list_models)"),
        ("listed", "its host cannot start it (hook monitor_list_models)"),
    ],
)
def test_what_cannot_be_started_again_is_not_stopped(
    case: str, why: str, make_watchdog: MakeWatchdog, spawner: Spawner, reports: Reports
) -> None:
    """The model is told of once, with the reason, and restarted when its host can start it."""
    host = EmbeddedHost(spawner, {"m": ()})
    watchdog = make_watchdog(StopsOnly() if case == "no hook" else host, ACTION="restart")
    monitor = monitor_of(watchdog)
    if case == "no hook":
        load_sleeper(monitor, spawner)
    host.can_start = False
    host.lists = ["m"] if case == "listed" else []
    (backend,) = monitor.backends()
    for _ in range(3):
        sweep(watchdog, "m")
        settle(watchdog)
    assert monitor.backends() == [backend]
    assert is_running(backend.pid)
    eventually(lambda: reports.found)
    assert reports.found == [("m", "a_watchdog", "tell", f"it hangs; it is not restarted: {why}")]
    if case != "no hook":
        host.can_start, host.lists = True, ["m"]
        eventually(lambda: sweep(watchdog, "m") and host.started)
        settle(watchdog)
        assert host.started == ["m"]


def test_condition_is_told_once_until_it_has_ended(
    make_watchdog: MakeWatchdog, spawner: Spawner, reports: Reports
) -> None:
    """Each backend, and each other condition of the same backend, is told once."""
    watchdog = make_watchdog(ACTION="tell")
    monitor = monitor_of(watchdog)
    processes = [load_sleeper(monitor, spawner, each) for each in ("a", "b")]
    for _ in range(3):
        sweep(watchdog, "a")
    sweep(watchdog, "a", "b")
    sweep(watchdog, "b")
    sweep(watchdog, "a", "b")
    a = monitor.backends()[0]
    watchdog.act(a, "it hangs")
    watchdog.act(a, "it is too large", condition="memory")
    watchdog.end_sweep()
    eventually(lambda: len(reports.found) == 4)
    assert [(model, action, why) for model, _, action, why in reports.found] == [
        ("a", "tell", "it hangs"),
        ("b", "tell", "it hangs"),
        ("a", "tell", "it hangs"),
        ("a", "tell", "it is too large"),
    ]
    assert all(is_running(each.pid) for each in processes)


@pytest.mark.parametrize("action", ["stop", "restart"])
def test_protected_models_are_only_told_of(
    action: str, make_watchdog: MakeWatchdog, spawner: Spawner, reports: Reports
) -> None:
    """Several patterns are separated by commas."""
    host = EmbeddedHost(spawner, {"llama-8b": (), "embed": (), "free": ()})
    watchdog = make_watchdog(host, ACTION=action, PROTECT="llama-*, embed")
    monitor = monitor_of(watchdog)
    before = {each.model: each.pid for each in monitor.backends()}
    assert [watchdog.may_act(each) for each in before] == [False, False, True]
    for _ in range(2):
        sweep(watchdog, "llama-8b", "embed")
    sweep(watchdog, "llama-8b", "embed", "free")
    settle(watchdog)
    eventually(lambda: not is_running(before["free"]))
    assert is_running(before["llama-8b"])
    assert is_running(before["embed"])
    eventually(lambda: len(reports.found) == 3)
    why = "it hangs; it is left as it is, because PROTECT names it"
    assert sorted(reports.found) == [
        ("embed", "a_watchdog", "tell", why),
        ("free", "a_watchdog", action, "it hangs"),
        ("llama-8b", "a_watchdog", "tell", why),
    ]


def test_restart_that_stops_nothing_does_not_count(
    make_watchdog: MakeWatchdog, spawner: Spawner, reports: Reports
) -> None:
    """Another hook refuses it. It is reported once, and tried again."""
    refuses = threading.Event()
    refuses.set()
    asked: list[None] = []

    class Refuses:
        @hookimpl
        def monitor_before_shutdown(self) -> str | None:
            asked.append(None)
            return "not today" if refuses.is_set() else None

    host = EmbeddedHost(spawner, {"m": ()})
    watchdog = make_watchdog(host, ACTION="restart", RESTARTS_PER_HOUR="1")
    watchdog.stops._retry_seconds = 0.0
    monitor = monitor_of(watchdog)
    monitor.plugin_manager.register(Refuses())
    for times in (1, 2, 3):
        eventually(lambda: sweep(watchdog, "m") == [True])
        settle(watchdog)
        assert len(asked) == times
    refuses.clear()
    eventually(lambda: sweep(watchdog, "m") == [True])
    settle(watchdog)
    assert host.started == ["m"]
    assert reports.actions == ["restart"]


def test_model_is_not_restarted_twice_at_a_time(
    make_watchdog: MakeWatchdog, spawner: Spawner
) -> None:
    """Conditions of another replica, or of the new backend, begin no second restart."""
    goes_on = threading.Event()
    host = EmbeddedHost(spawner, {"m": ()})

    class Waits:
        @hookimpl(tryfirst=True)
        def monitor_start_model(self) -> None:
            goes_on.wait(60)

    watchdog = make_watchdog(host, ACTION="restart")
    monitor = monitor_of(watchdog)
    monitor.plugin_manager.register(Waits())
    assert sweep(watchdog, "m") == [True]
    eventually(lambda: not monitor.backends())
    replica = spawner.backend_served_here()
    replica.register(monitor, "m")
    assert sweep(watchdog, "m") == [False]
    goes_on.set()
    settle(watchdog)
    assert host.started == ["m"]
    assert is_running(replica.pid)


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("ACTION", "kill", "it is none of stop, restart, tell; write stop, restart or tell"),
        (
            "PROTECT",
            "a,,b",
            "there is an empty pattern; write patterns of models, as llama-*,embed",
        ),
        ("RESTARTS_PER_HOUR", "0", "it must be an integer of at least 1; write how often"),
    ],
)
def test_invalid_settings_are_refused(
    name: str, value: str, why: str, make_watchdog: MakeWatchdog
) -> None:
    """The error says what to write."""
    with pytest.raises(SettingsError) as raised:
        make_watchdog(**{name: value})
    assert f"MONITOR_HOOK_A_WATCHDOG_{name}={value!r}: {why}" in str(raised.value)
