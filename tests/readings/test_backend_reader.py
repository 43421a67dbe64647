"""The reader of one backend: hooks, gRPC and the process, within one deadline."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest

from monitor_plugin import Backend, Memory, Reading, State, Status, hookimpl
from monitor_plugin.processes.tree_memory import TreeTotal
from monitor_plugin.readings.backend_reader import complete_memory, reports_memory
from monitor_plugin.readings.replicas import NO_MEMORY
from monitor_plugin.testing import BackendFactory, MonitorFactory, RunningBackend

from ..support import Client, Spawner, eventually, logged, refuse_thread, register

# The deadline of a reading, and of a hook. A reading that takes two deadlines exceeds the limit.
SECONDS, LIMIT = 2.0, 3.9


class Plugin:
    """Gives a status and components until `misbehave`, and then what it is told to."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.status: Callable[[], Any] = lambda: Status(2)
        self.components: Callable[[], Any] = dict

    def misbehave(self, status: str, components: str) -> None:
        self.status = self._behaviour(status, lambda: None)
        self.components = self._behaviour(components, lambda: {"vram": 5})

    def _behaviour(self, kind: str, otherwise: Callable[[], Any]) -> Callable[[], Any]:
        return {
            "raises": self._fail,
            "hangs": lambda: self.go.wait(60) and None,
            "nonsense": lambda: 5,
        }.get(kind, otherwise)

    def _fail(self) -> None:
        raise RuntimeError("boom")

    @hookimpl
    def monitor_query_status(self, backend: Backend) -> Any:
        return self.status()

    @hookimpl
    def monitor_memory_components(self, backend: Backend) -> Any:
        return self.components()


@pytest.fixture(scope="module")
def serving() -> Iterator[RunningBackend]:
    """A backend that each of several tests registers and reads."""
    factory = BackendFactory()
    yield factory()
    factory.close()


@pytest.fixture(scope="module")
def hanging() -> Iterator[list[RunningBackend]]:
    """Three backends that never answer `Status`, which several tests register and read."""
    factory = BackendFactory()
    yield [factory(hang_status=True) for _ in range(3)]
    factory.close()


@pytest.fixture
def plugin() -> Iterator[Plugin]:
    plugin = Plugin()
    yield plugin
    plugin.go.set()


WORDS = {
    "raises": "hook {} raised",
    "hangs": "hook {} did not return",
    "nonsense": "hook {} returned int",
}


def expect_logged(caplog: pytest.LogCaptureFixture, status: str, components: str) -> None:
    kinds = {"monitor_query_status": status, "monitor_memory_components": components}
    for hook, kind in kinds.items():
        if kind in WORDS:
            words = WORDS[kind].format(hook)
            assert sum(words in line for line in logged(caplog)) == 1, words


def timed(read: Callable[[], Reading]) -> Reading:
    """Read, and check that this has not taken two deadlines."""
    began = time.monotonic()
    reading = read()
    assert time.monotonic() - began < LIMIT
    return reading


@pytest.mark.parametrize("components", ["fine", "raises", "hangs", "nonsense"])
@pytest.mark.parametrize("status", ["none", "raises", "hangs", "nonsense"])
def test_hooks_that_misbehave_cost_one_deadline(
    make_monitor: MonitorFactory,
    serving: RunningBackend,
    plugin: Plugin,
    caplog: pytest.LogCaptureFixture,
    status: str,
    components: str,
) -> None:
    """The backend's own status is read in that time, and the log has the error of each hook."""
    monitor = make_monitor([plugin], status_timeout_seconds=SECONDS, hook_timeout_seconds=SECONDS)
    serving.register(monitor, "m")
    assert monitor.read("m").source == "hook"
    plugin.misbehave(status, components)
    reading = timed(lambda: monitor.read("m"))
    assert (reading.source, reading.rpc_error) == ("grpc", None)
    assert reading.status
    assert reading.status.memory
    expected = 5 if components == "fine" else None
    assert reading.status.memory.breakdown.get("vram") == expected
    expect_logged(caplog, status, components)


@pytest.mark.parametrize(
    ("status", "components"),
    [
        ("none", "raises"),
        ("none", "hangs"),
        ("raises", "raises"),
        ("raises", "nonsense"),
        ("hangs", "raises"),
        ("hangs", "hangs"),
        ("nonsense", "nonsense"),
    ],
)
@pytest.mark.parametrize("replicas", [1, 3])
def test_no_error_of_a_hook_is_hidden_if_the_backend_fails_as_well(
    make_monitor: MonitorFactory,
    hanging: list[RunningBackend],
    plugin: Plugin,
    caplog: pytest.LogCaptureFixture,
    status: str,
    components: str,
    replicas: int,
) -> None:
    """The sample comes within one deadline, also of several replicas."""
    monitor = make_monitor([plugin], status_timeout_seconds=SECONDS, hook_timeout_seconds=SECONDS)
    for each in hanging[:replicas]:
        each.register(monitor, "m")
    assert monitor.read("m").source == "hook"
    plugin.misbehave(status, components)
    reading = timed(lambda: monitor.read("m"))
    assert (reading.source, reading.rpc_error) == ("psutil", "DEADLINE_EXCEEDED")
    if replicas == 1:
        expect_logged(caplog, status, components)
    else:
        text = "\n".join(logged(caplog))
        assert WORDS[components].format("monitor_memory_components") in text


@pytest.mark.parametrize("replicas", [1, 2])
def test_backend_that_hangs_in_a_hook_counts_as_a_failure(
    make_monitor: MonitorFactory, hanging: list[RunningBackend], plugin: Plugin, replicas: int
) -> None:
    """`monitor_backend_status_failures_total` has it at the first scrape."""
    monitor = make_monitor([plugin], status_timeout_seconds=0.4, hook_timeout_seconds=0.4)
    for each in hanging[:replicas]:
        each.register(monitor, "m")
    monitor.read("m")
    plugin.misbehave("hangs", "fine")
    text = Client(monitor.url).request("GET", "/metrics").body.decode()
    failures = 'monitor_backend_status_failures_total{code="DEADLINE_EXCEEDED",model="m"'
    lines = [line for line in text.splitlines() if line.startswith(failures)]
    assert [line.rpartition(" ")[2] for line in lines] == ["1.0"] * replicas


def test_hook_that_answers_late_but_in_time_is_preferred(
    make_monitor: MonitorFactory, backend: BackendFactory, plugin: Plugin
) -> None:
    """Although gRPC was asked meanwhile, and has answered."""
    monitor = make_monitor([plugin], status_timeout_seconds=60.0, hook_timeout_seconds=60.0)
    backend().register(monitor, "m")
    plugin.status = lambda: None
    assert monitor.read("m").source == "grpc"  # from now on gRPC is asked at once

    def late() -> Status:
        connection = monitor._services.status_client._connection(monitor.backends()[0])
        eventually(lambda: connection.counts().calls[-1] == 2)
        return Status(State.BUSY, Memory(7))

    plugin.status = late
    reading = monitor.read("m")
    assert (reading.source, reading.status) == ("hook", Status(State.BUSY, Memory(7)))


def test_hook_may_not_exceed_the_deadline_of_the_reading(
    make_monitor: MonitorFactory, backend: BackendFactory, plugin: Plugin
) -> None:
    """Also where `hook_timeout_seconds` is longer, and with several hooks that hang."""
    other = Plugin()
    monitor = make_monitor([plugin, other], status_timeout_seconds=1.0, hook_timeout_seconds=60.0)
    backend().register(monitor, "m")
    for each in (plugin, other):
        each.misbehave("hangs", "hangs")
    try:
        for _ in range(3):
            began = time.monotonic()
            assert monitor.read("m").source == "grpc"
            assert time.monotonic() - began < 30
        figures = [
            hook
            for each in monitor.plugins()
            for hook in each.hooks
            if hook.name.endswith("status")
        ]
        assert [(each.calls, each.overruns) for each in figures] == [(1, 1), (1, 1)]
    finally:
        other.go.set()


def test_hook_for_metadata_that_hangs_costs_one_deadline(
    make_monitor: MonitorFactory, backend: BackendFactory
) -> None:
    """Neither a reading nor a sweep waits for it; the call is made when the hook has returned."""
    go, returned = threading.Event(), threading.Event()

    class Slow:
        @hookimpl
        def monitor_call_metadata(self) -> None:
            go.wait(60)
            returned.set()

    monitor = make_monitor([Slow()], status_timeout_seconds=0.5, hook_timeout_seconds=60.0)
    backend().register(monitor, "m")
    assert monitor.read("m").rpc_error == "DEADLINE_EXCEEDED"
    (observation,) = monitor.sweep()
    assert observation.reading
    assert observation.reading.rpc_error == "DEADLINE_EXCEEDED"
    assert not returned.is_set()
    go.set()
    eventually(lambda: monitor.read("m").source == "grpc")


def test_hung_hook_keeps_one_thread(
    make_monitor: MonitorFactory, spawner: Spawner, plugin: Plugin
) -> None:
    """Also if its components are not needed, because the status fails."""
    monitor = make_monitor([plugin], status_timeout_seconds=0.3, hook_timeout_seconds=0.3)
    register(monitor, spawner.sleeper().pid)
    calls: list[int] = []

    def hang() -> Mapping[str, int]:
        calls.append(1)
        plugin.go.wait(60)
        return {}

    for _ in range(5):
        plugin.misbehave("none", "fine")
        plugin.status = lambda: Status(2)
        assert monitor.read("m").source == "hook"
        plugin.status = lambda: None
        plugin.components = hang
        assert monitor.read("m").source == "psutil"
    assert calls == [1]


def test_mixed_replicas_share_one_deadline(
    make_monitor: MonitorFactory, backend: BackendFactory, plugin: Plugin
) -> None:
    """A replica without a status adds its components only in what is left of the time."""
    monitor = make_monitor([plugin], status_timeout_seconds=SECONDS, hook_timeout_seconds=SECONDS)
    plugin.misbehave("none", "fine")
    backend().register(monitor, "m")
    for _ in range(2):
        backend(no_status=True).register(monitor, "m")
    assert monitor.read("m").status
    plugin.misbehave("hangs", "hangs")
    reading = timed(lambda: monitor.read("m"))
    assert reading.status
    assert reading.status.memory
    assert reading.rpc_error == "UNIMPLEMENTED"


def test_hook_thread_that_cannot_start_fails_no_reading(
    make_monitor: MonitorFactory,
    backend: BackendFactory,
    plugin: Plugin,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The reading goes on without the hooks, and the log says why."""
    monitor = make_monitor([plugin])
    backend().register(monitor, "m")
    plugin.misbehave("none", "fine")
    assert monitor.read("m").source == "grpc"
    refuse_thread(monkeypatch, "monitor-hook")
    monitor._services.hook_executor.close()  # the idle threads end
    reading = monitor.read("m")
    assert (reading.source, reading.rpc_error) == ("grpc", None)
    assert reading.status
    assert reading.status.memory
    assert "vram" not in reading.status.memory.breakdown
    for hook in ("monitor_query_status", "monitor_memory_components"):
        assert f"hook {hook}: it was not called: can't start new thread" in caplog.text


def test_report_of_no_memory_counts_as_no_report() -> None:
    """No process has 0 bytes; components stay."""
    assert not reports_memory(None)
    assert not reports_memory(Status(2))
    assert not reports_memory(Status(2, Memory(0, {"a": 1})))
    assert reports_memory(Status(2, Memory(1)))


PSS = TreeTotal(50, "pss", 2.0)


@pytest.mark.parametrize(
    ("status", "tree", "expected"),
    [
        (Status(2, Memory(9, {"a": 1})), PSS, (Memory(9, {"vram": 5, "a": 1}), "backend", None)),
        (Status(2, Memory(9, {"vram": 1})), None, (Memory(9, {"vram": 1}), "backend", None)),
        (Status(2, Memory(0, {"a": 1})), PSS, (Memory(50, {"vram": 5, "a": 1}), "pss", 2.0)),
        (Status(2), TreeTotal(50, "rss"), (Memory(50, {"vram": 5}), "rss", None)),
        (None, PSS, (Memory(50, {"vram": 5}), "pss", 2.0)),
        (None, None, NO_MEMORY),
    ],
)
def test_memory_is_completed_from_what_is_known(
    status: Status | None, tree: TreeTotal | None, expected: tuple[object, ...]
) -> None:
    """The backend's own figures win; without a total there is no memory."""
    assert tuple(complete_memory(status, {"vram": 5}, tree)) == expected
