"""Hooks: what they may give, and that one that misbehaves costs the others nothing."""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from monitor_plugin import (
    Backend,
    Memory,
    Monitor,
    PluginError,
    Settings,
    State,
    Status,
    hookimpl,
    hookspecs,
)
from monitor_plugin.hookspecs import HOOK_NAMES

from ..support import Client, Spawner, eventually


class Plugin:
    """Implements the hooks of readings by functions that are passed in."""

    def __init__(
        self,
        status: Callable[[], Any] = lambda: None,
        metadata: Callable[[], Any] = dict,
        components: Callable[[], Any] = dict,
    ) -> None:
        self.status, self.metadata, self.components = status, metadata, components
        self.pids: Sequence[int] = ()
        self.changes: list[tuple[State | None, State]] = []

    @hookimpl
    def monitor_query_status(self, backend: Backend, timeout_seconds: float) -> Status | None:
        assert 0 < timeout_seconds <= 30
        return self.status()  # type: ignore[no-any-return]

    @hookimpl
    def monitor_call_metadata(self, backend: Backend) -> Mapping[str, str]:
        return self.metadata()  # type: ignore[no-any-return]

    @hookimpl
    def monitor_memory_components(self, backend: Backend, pids: Sequence[int]) -> Mapping[str, int]:
        self.pids = pids
        return self.components()  # type: ignore[no-any-return]

    @hookimpl
    def monitor_state_changed(
        self, backend: Backend, previous: State | None, current: State
    ) -> None:
        self.changes.append((previous, current))


def register(monitor: Monitor, spawner: Spawner, *switches: str) -> int:
    start = spawner.backend if "--fork-workers" in switches else spawner.backend_served_here
    backend = start(*switches)
    monitor.hook.monitor_backend_spawned(model="m", pid=backend.pid, address=backend.address)
    return backend.pid


def fail() -> None:
    raise RuntimeError("broken")


def leave() -> None:
    sys.exit(3)


def cancel() -> None:
    raise asyncio.CancelledError


def block() -> None:
    threading.Event().wait(30)


async def coroutine() -> None:
    pass


BAD = [fail, leave, cancel, block, coroutine, lambda: 5, lambda: "x", lambda: [1]]
BAD_STATUS = [
    *BAD,
    lambda: Status("2"),  # type: ignore[arg-type]
    lambda: Status(2**63),
    lambda: Status(2, Memory(-1)),
    lambda: Status(2, Memory(2**64)),
    lambda: Status(2, Memory(1, {"a": 1.5})),  # type: ignore[dict-item]
    lambda: Status(2, {"total": 1}),  # type: ignore[arg-type]
]


@pytest.mark.parametrize("bad", BAD_STATUS)
def test_invalid_status_is_ignored(
    bad: Callable[[], Any],
    make_monitor: Callable[..., Monitor],
    spawner: Spawner,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A hook that raises, blocks or returns nonsense is logged; the next hook, or gRPC, answers."""
    monitor = make_monitor([Plugin()], hook_timeout_seconds=0.3)
    monitor.plugin_manager.register(Plugin(status=bad), "the-bad-one")
    register(monitor, spawner)
    assert monitor.read("m").source == "grpc"
    assert "'the-bad-one'" in caplog.text
    monitor.plugin_manager.register(Plugin(status=lambda: Status(1, Memory(7))), "good")
    reading = monitor.read("m")
    assert (reading.source, reading.memory_source) == ("hook", "backend")
    assert reading.status == Status(1, Memory(7))


def test_components_are_not_requested_after_the_deadline(
    make_monitor: Callable[..., Monitor], spawner: Spawner
) -> None:
    """Neither is the process tree listed for the hook."""
    called = threading.Event()

    def list_pids() -> Sequence[int]:
        called.set()
        return ()

    monitor = make_monitor([Plugin(components=called.set)])
    register(monitor, spawner)
    (backend,) = monitor.backends()
    assert monitor._services.hooks.memory_components(backend, list_pids, time.monotonic()) == {}
    assert not called.is_set()


@pytest.mark.parametrize(
    "bad", [*BAD, lambda: {"a": "1"}, lambda: {"\ud800": 1}, lambda: {1: 1}, lambda: {"a": True}]
)
def test_invalid_components_are_ignored(
    bad: Callable[[], Any],
    make_monitor: Callable[..., Monitor],
    spawner: Spawner,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """An invalid result affects neither the components of other hooks nor the reading."""
    monitor = make_monitor([Plugin(components=lambda: {"gpu0": 5})], hook_timeout_seconds=0.3)
    monitor.plugin_manager.register(Plugin(components=bad), "the-bad-one")
    register(monitor, spawner, "--weights-mib", "1", "--kv-cache-mib", "0")
    status = monitor.read("m").status
    assert status == Status(2, Memory(1 << 20, {"gpu0": 5, "weights": 1 << 20}))
    assert "'the-bad-one'" in caplog.text


class ByteSize(int):
    """A number of bytes as some libraries define it: a subclass of int."""


@pytest.mark.parametrize(
    "given",
    [
        {"status": lambda: Status(2, Memory(ByteSize(9), {"gpu0": ByteSize(5)}))},
        {"status": lambda: Status(2, Memory(9)), "components": lambda: {"gpu0": ByteSize(5)}},
    ],
)
def test_components_of_an_int_subclass_are_accepted(
    given: dict[str, Any], make_monitor: Callable[..., Monitor], spawner: Spawner
) -> None:
    """The reading and the list contain them, although msgspec cannot encode the class."""
    monitor = make_monitor([Plugin(**given)])
    register(monitor, spawner)
    client, memory = Client(monitor.url), {"total": 9, "breakdown": {"gpu0": 5}}
    assert client.monitor("m").json == {"state": 2, "memory": memory}
    assert client.request("GET", "/backends").json["backends"][0]["memory"] == memory


def test_components_of_the_backend_win_over_hooks(
    make_monitor: Callable[..., Monitor], spawner: Spawner
) -> None:
    """A hook adds components, but replaces none of the backend or of an earlier hook."""
    late = Plugin(components=lambda: {"weights": 1, "a": 1})
    early = Plugin(components=lambda: {"a": 2})
    monitor = make_monitor([late, early])
    pid = register(monitor, spawner, "--kv-cache-mib", "0", "--fork-workers", "2")
    status = monitor.read("m").status
    assert status == Status(2, Memory(2 << 20, {"a": 2, "weights": 2 << 20}))
    assert early.pids[0] == pid
    assert len(early.pids) == 3


@pytest.mark.parametrize("bad", [*BAD, lambda: {"A B": "x"}, lambda: {"a": "\n"}, lambda: {"a": 1}])
def test_invalid_metadata_is_ignored(
    bad: Callable[[], Any], make_monitor: Callable[..., Monitor], spawner: Spawner
) -> None:
    """The valid token of another hook reaches the backend."""
    good = Plugin(metadata=lambda: {"authorization": "Bearer s3cret"})
    monitor = make_monitor([good, Plugin(metadata=bad)], hook_timeout_seconds=0.3)
    register(monitor, spawner, "--token", "s3cret")
    assert monitor.read("m").rpc_error is None


def test_metadata_key_in_upper_case_is_logged(
    make_monitor: Callable[..., Monitor], spawner: Spawner, caplog: pytest.LogCaptureFixture
) -> None:
    """HTTP headers are often written in upper case; gRPC refuses such keys."""
    monitor = make_monitor([Plugin(metadata=lambda: {"Authorization": "Bearer s3cret"})])
    register(monitor, spawner)
    monitor.read("m")
    assert "keys in lower case" in caplog.text
    assert "s3cret" not in caplog.text


def test_blocking_hook_is_not_called_again(
    make_monitor: Callable[..., Monitor], spawner: Spawner
) -> None:
    """An overrun delays one reading; the hook is called again after it has returned."""
    calls: list[int] = []
    go = threading.Event()

    def slow() -> None:
        calls.append(1)
        go.wait(60)

    monitor = make_monitor([Plugin(status=slow)], hook_timeout_seconds=0.2)
    register(monitor, spawner)
    for _ in range(5):
        assert monitor.read("m").source == "grpc"
    assert len(calls) == 1
    go.set()
    eventually(lambda: monitor.read("m") and len(calls) > 1)


def test_state_changes_reach_hooks(make_monitor: Callable[..., Monitor], spawner: Spawner) -> None:
    """Each change is reported once, in order; numbers that State does not know are ignored."""
    states = iter([1, 1, 2, 77, 2, -1])
    plugin = Plugin(status=lambda: Status(next(states)))
    monitor = make_monitor([plugin])
    register(monitor, spawner)
    numbers = [monitor.read("m").status.state for _ in range(6)]  # type: ignore[union-attr]
    assert numbers == [1, 1, 2, 77, 2, -1]
    eventually(lambda: len(plugin.changes) == 3)
    assert plugin.changes == [
        (None, State.BUSY),
        (State.BUSY, State.READY),
        (State.READY, State.ERROR),
    ]


def test_hooks_may_call_back_and_leave(
    make_monitor: Callable[..., Monitor], spawner: Spawner
) -> None:
    """A hook may read, register, stop and unregister itself during a call, without a deadlock."""
    outcomes: list[str] = []

    class Recursive:
        @hookimpl
        def monitor_started(self, monitor: Monitor) -> None:
            self.monitor = monitor

        @hookimpl
        def monitor_backend_registered(self, backend: Backend) -> None:
            self.monitor.read(backend.model)
            if backend.model == "m":
                process = spawner.sleeper()
                self.monitor.hook.monitor_backend_spawned(
                    model="inner", pid=process.pid, address="127.0.0.1:2"
                )
                self.monitor.shutdown("inner")
                self.monitor.plugin_manager.unregister(self)

        @hookimpl
        def monitor_shutdown_finished(self, backend: Backend, outcome: str, seconds: float) -> None:
            outcomes.append(f"{backend.model} {outcome}")

    monitor = make_monitor([Recursive()], hook_timeout_seconds=30)
    started = time.monotonic()
    register(monitor, spawner)
    assert time.monotonic() - started < 30
    assert [backend.model for backend in monitor.backends()] == ["m"]
    assert monitor.read("m").source == "grpc"


def test_failing_event_hook_does_not_affect_others(
    make_monitor: Callable[..., Monitor], spawner: Spawner, caplog: pytest.LogCaptureFixture
) -> None:
    """Events reach the good plugin though another one raises, blocks, or returns something."""
    good = Plugin()

    class Bad:
        def __init__(self, behave: Callable[[], Any]) -> None:
            self.behave = behave

        @hookimpl
        def monitor_state_changed(self, backend: Backend) -> Any:
            return self.behave()

    bad = [Bad(behave) for behave in (fail, block, lambda: 1)]
    monitor = make_monitor([good, *bad], hook_timeout_seconds=0.3)
    register(monitor, spawner)
    monitor.read("m")
    eventually(lambda: good.changes == [(None, State.READY)])
    for words in ("raised", "did not return within", "returned int"):
        eventually(lambda words=words: words in caplog.text)  # type: ignore[misc]


class StopSignal:
    """Implements `monitor_stop_signal` by a function that is passed in."""

    def __init__(self, choose: Callable[[], Any]) -> None:
        self.choose = choose

    @hookimpl
    def monitor_stop_signal(self, backend: Backend) -> Any:
        return self.choose()


@pytest.mark.parametrize(
    "bad",
    [
        *(fail, leave, cancel, block, coroutine, lambda: "SIGINT", lambda: True),
        *(lambda: 0, lambda: -2, lambda: 4096, lambda: 2.0),
        *(lambda: signal.SIGKILL, lambda: signal.SIGSTOP, lambda: signal.SIGCONT),
    ],
)
def test_invalid_stop_signal_is_ignored(
    bad: Callable[[], Any], make_monitor: Callable[..., Monitor], caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged, and the next hook chooses the signal; without one it is SIGTERM."""
    backend = Backend("m", 1, "127.0.0.1:1", 0.0)
    monitor = make_monitor(hook_timeout_seconds=0.3)
    monitor.plugin_manager.register(StopSignal(bad), "the-bad-one")
    assert monitor._services.hooks.stop_signal(backend) == signal.SIGTERM
    assert "'the-bad-one'" in caplog.text
    monitor.plugin_manager.register(StopSignal(lambda: signal.SIGQUIT), "second")
    monitor.plugin_manager.register(StopSignal(lambda: int(signal.SIGINT)), "first")
    monitor.plugin_manager.register(StopSignal(lambda: None), "without")
    assert monitor._services.hooks.stop_signal(backend) == signal.SIGINT


class Misspelled:
    @hookimpl
    def monitor_backend_goen(self) -> None:
        pass


class OfTheHost:
    @hookimpl
    def monitor_backend_spawned(self) -> None:
        pass


class Wrapper:
    @hookimpl(hookwrapper=True)
    def monitor_backend_gone(self) -> Any:
        yield


class WrongArguments:
    @hookimpl
    def monitor_backend_gone(self, reason: str) -> None:
        pass


@pytest.mark.parametrize(
    ("plugin", "words"),
    [
        (Misspelled(), "no hook 'monitor_backend_goen'; the hooks are monitor_add_routes"),
        (OfTheHost(), "implemented by the monitor alone"),
        (Wrapper(), "is a wrapper"),
        (WrongArguments(), "reason"),
    ],
)
def test_unusable_plugins_are_refused(plugin: object, words: str) -> None:
    """A plugin that cannot be called is refused by name, and is not registered."""
    monitor = Monitor(Settings(listen=None))
    with pytest.raises(PluginError, match=words):
        monitor.plugin_manager.register(plugin, "the-plugin")
    assert not monitor.plugin_manager.has_plugin("the-plugin")
    assert not monitor.plugin_manager.hook.monitor_backend_gone.get_hookimpls()


def test_hookspecs_have_these_hooks() -> None:
    """The docstring of each hook says when, on which thread, and what it may return."""
    assert set(HOOK_NAMES) == {
        *("monitor_backend_spawned", "monitor_backend_exited", "monitor_started"),
        *("monitor_closing", "monitor_backend_registered", "monitor_query_status"),
        *("monitor_call_metadata", "monitor_memory_components", "monitor_before_shutdown"),
        *("monitor_stop_backend", "monitor_shutdown_finished", "monitor_state_changed"),
        *("monitor_readings_swept", "monitor_backend_gone", "monitor_backend_left_behind"),
        *("monitor_add_routes", "monitor_stop_signal", "monitor_list_gpus"),
        *("monitor_list_models", "monitor_start_model", "monitor_watchdog_acted"),
        *("monitor_read_log", "monitor_backend_postmortem"),
        *("monitor_describe_unit", "monitor_explain_exit"),
    }
    for name in HOOK_NAMES:
        text = getattr(hookspecs, name).__doc__
        assert "When:" in text, name
        assert "Thread:" in text or "readings_swept" in name
        assert "Returns" in text, name
