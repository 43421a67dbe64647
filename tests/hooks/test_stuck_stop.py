"""Backends that are busy without a break, or no longer answer, are stopped by force."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import grpc
import pytest
from msgspec.structs import replace

from monitor_plugin import PluginError, State, Status, hookimpl

from ..embedded_host import EmbeddedHost
from ..gpus import OneGpu
from ..support import Backend as RunningBackend
from ..support import Spawner, eventually, free_port, is_running, suspend
from .conftest import Hooked, MakeHooked


def test_stuck_backends_are_stopped(
    hooked: MakeHooked, spawner: Spawner, caplog: pytest.LogCaptureFixture
) -> None:
    """Backends that are BUSY too long, or no longer answer after that, are stopped by force."""
    stuck = spawner.backend("--busy-seconds", "1000", "--ignore-sigterm")
    frozen = spawner.backend("--busy-seconds", "1000")
    kept = {
        "ready": spawner.backend(),
        "never answered": spawner.backend("--hang-status"),
        "silent": spawner.backend("--no-status"),
        "keep": spawner.backend("--busy-seconds", "1000"),
    }
    hook = hooked(
        "stuck_stop",
        {"SECONDS": "keep=never,*=4"},
        sweep_interval_seconds=0.2,
        status_timeout_seconds=0.2,
        stop_timeout_seconds=1.0,
        drain_timeout_seconds=1000.0,
    )
    for model, backend in {"stuck": stuck, "frozen": frozen, **kept}.items():
        hook.spawned(model, backend)
    eventually(lambda: hook.monitor.read("frozen").status)
    os.kill(frozen.pid, signal.SIGSTOP)
    eventually(lambda: len(hook.monitor.backends()) == 4)
    assert [each.model for each in hook.monitor.backends()] == [*kept]
    assert not is_running(stuck.pid)
    assert not is_running(frozen.pid)
    lines = sorted(each for each in caplog.messages if "is being stopped" in each)
    assert len(lines) == 2
    assert f"model 'stuck' (process {stuck.pid}) is being stopped: it was busy for" in lines[1]
    assert lines[1].endswith("over 4 s for '*'")


class Says:
    """Returns a configurable state for all backends, with a configurable load."""

    state: State | None = State.BUSY
    load: Mapping[str, float | None] = MappingProxyType({})

    @hookimpl
    def monitor_query_status(self) -> Status | None:
        return None if self.state is None else replace(Status(self.state), **self.load)


def busy_since(hook: Hooked) -> float | None:
    """Sweep; return since when the only backend is busy without progress."""
    hook.monitor.sweep("m")
    hook.module.monitor_readings_swept()
    busy = next(iter(hook.module._busy.values()), None)
    return None if busy is None else float(busy.since)


def test_break_restarts_the_busy_time(hooked: MakeHooked, spawner: Spawner) -> None:
    """A break that only another reading saw counts; a missing response is no break."""
    hook = hooked(
        "stuck_stop", {"SECONDS": "1000"}, sweep_interval_seconds=0, status_timeout_seconds=1.0
    )
    says = Says()
    hook.monitor.plugin_manager.register(says)
    backend = spawner.backend("--hang-status")
    hook.spawned("m", backend)

    since = busy_since(hook)
    assert since is not None
    assert busy_since(hook) == since
    says.state = None  # by gRPC it does not answer
    assert busy_since(hook) == since
    says.state = State.READY
    hook.monitor.read("m")
    says.state = State.BUSY
    later = busy_since(hook)
    assert later is not None
    assert later > since
    says.state = State.READY
    assert busy_since(hook) is None
    says.state = None
    assert busy_since(hook) is None


# Loads of consecutive sweeps, and whether each of them is progress since the one before.
LOADS: list[tuple[dict[str, float], bool]] = [
    ({"requests_running": 4}, False),
    ({"requests_running": 4, "requests_waiting": 2}, False),
    ({"requests_running": 4, "requests_waiting": 9}, False),
    ({"requests_running": 4, "requests_waiting": 8}, True),
    ({"requests_running": 3, "requests_waiting": 8}, True),
    ({"requests_running": 3, "tokens_per_second": 0.0, "kv_cache_percent": 50.0}, False),
    ({"requests_running": 3, "tokens_per_second": 0.5, "kv_cache_percent": 50.0}, True),
    ({"requests_running": 3, "tokens_per_second": 0.5, "kv_cache_percent": 50.1}, True),
    ({"requests_running": 3, "tokens_per_second": 0.5, "kv_cache_percent": 50.1}, False),
    ({"requests_running": 3}, False),
]


@pytest.mark.parametrize("state", [State.BUSY, State.READY])
def test_progress_of_requests_restarts_the_busy_time(
    state: State, hooked: MakeHooked, spawner: Spawner
) -> None:
    """A server that always has requests is not stuck while their figures move.

    A queue that grows is no progress, as clients also send requests to a server that is stuck. A
    server that can take more requests, which may be READY, is stuck by the same rule.
    """
    hook = hooked("stuck_stop", {"SECONDS": "1000"}, sweep_interval_seconds=0)
    says = Says()
    hook.monitor.plugin_manager.register(says)
    hook.monitor.hook.monitor_backend_spawned(
        model="m", pid=spawner.sleeper().pid, address="127.0.0.1:1"
    )
    says.state, says.load = state, {"requests_running": 4}
    before = busy_since(hook)
    for load, is_progress in LOADS:
        says.load = load
        since = busy_since(hook)
        assert before is not None
        assert since is not None
        assert (since > before) is is_progress, load
        before = since
    says.state = None  # and nothing answers at its address
    assert busy_since(hook) is None
    says.state, says.load = State.READY, {"requests_running": 0, "requests_waiting": 0}
    assert busy_since(hook) is None
    says.state, says.load = State.UNINITIALIZED, {"requests_waiting": 1}
    assert busy_since(hook) is None


QUICK: dict[str, Any] = {"sweep_interval_seconds": 0.2, "status_timeout_seconds": 0.3}


def sweeps(hook: Hooked, times: int) -> None:
    """Wait until the hook has checked so many background sweeps."""
    swept: list[object] = []

    class Counts:
        @hookimpl(trylast=True)
        def monitor_readings_swept(self) -> None:
            swept.append(None)

    hook.monitor.plugin_manager.register(Counts())
    eventually(lambda: len(swept) >= times)


@pytest.mark.parametrize("switches", [(), ("--state", "-1"), ("--no-status",)])
def test_backend_that_no_longer_answers_is_stopped(
    switches: tuple[str, ...],
    hooked: MakeHooked,
    spawner: Spawner,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The backend was READY, in state ERROR, or without `Status`; SIGSTOP has stopped it."""
    backend = spawner.backend(*switches)
    hook = hooked("stuck_stop", {"SECONDS": "2"}, **QUICK)
    hook.spawned("m", backend)
    hook.spawned("well", spawner.backend(*switches))
    eventually(lambda: all(each.answered for each in hook.monitor.sweep(fresh=False)))
    suspend(backend.pid)
    eventually(lambda: len(hook.monitor.backends()) == 1)
    assert [each.model for each in hook.monitor.backends()] == ["well"]
    assert not is_running(backend.pid)
    (line,) = [each for each in caplog.messages if "is being stopped" in each]
    assert "it was silent, and used no CPU, for " in line
    assert line.endswith(" s, over 2 s for '*'")


# A gRPC server with a single thread, as LocalAI's backends have by default. It answers `Status`
# with READY. `Predict` keeps the thread: it computes, or waits without any use of the CPU.
ONE_WORKER = """
import sys, threading, time
from concurrent import futures
import grpc
from monitor_plugin.rpc.protocol import SERVICE, load_messages

messages = load_messages()

def status(request, context):
    return messages["StatusResponse"](state=2)

def predict(request, context):
    print("predicting", flush=True)
    if sys.argv[1] == "waits":
        threading.Event().wait()
    while True:  # uses a fifth of a core
        ends_at = time.thread_time() + 0.02
        while time.thread_time() < ends_at:
            pass
        time.sleep(0.08)

def method(function):
    return grpc.unary_unary_rpc_method_handler(
        function, response_serializer=lambda message: message.SerializeToString()
    )

server = grpc.server(futures.ThreadPoolExecutor(1))
server.add_generic_rpc_handlers(
    (
        grpc.method_handlers_generic_handler(
            SERVICE, {"Status": method(status), "Predict": method(predict)}
        ),
    )
)
port = server.add_insecure_port("127.0.0.1:0")
server.start()
print(f"serving on 127.0.0.1:{port}", flush=True)
server.wait_for_termination()
"""


@pytest.mark.parametrize(
    ("work", "gpu_percent", "is_stuck"),
    [
        ("computes", None, False),
        ("waits", 70.0, False),
        ("waits", 0.0, True),
        ("waits", None, True),
    ],
)
def test_backend_that_works_on_its_only_thread_is_not_stuck(
    work: str, gpu_percent: float | None, is_stuck: bool, hooked: MakeHooked, spawner: Spawner
) -> None:
    """The backend misses each deadline, and uses the CPU or its GPU."""
    works, hangs = (RunningBackend(spawner.python(ONE_WORKER, each)) for each in (work, "waits"))
    gpu = OneGpu(gpu_percent, works.pid)
    hook = hooked(
        "stuck_stop", {"SECONDS": "3"}, plugins=[gpu], stop_timeout_seconds=1.0, gpu="off", **QUICK
    )
    eventually(lambda: hook.monitor.gpus())
    hook.spawned("works", works)
    hook.spawned("hangs", hangs)
    eventually(lambda: all(each.answered for each in hook.monitor.sweep(fresh=False)))
    with grpc.insecure_channel(works.address) as one, grpc.insecure_channel(hangs.address) as other:
        requests = [
            channel.unary_unary("/backend.Backend/Predict", None, None).future(b"")
            for channel in (one, other)
        ]
        for backend in (works, hangs):
            assert backend.process.stdout
            assert backend.process.stdout.readline() == "predicting\n"
        eventually(lambda: not is_running(hangs.pid))
        sweeps(hook, 10)
        eventually(lambda: is_running(works.pid) is not is_stuck)
        assert requests[0].done() is is_stuck


def test_backend_that_never_was_ready_is_not_stuck(hooked: MakeHooked, spawner: Spawner) -> None:
    """A backend that never answered is starting; UNINITIALIZED means that it is loading."""
    starting, loading = spawner.backend(), spawner.backend("--state", "0")
    hangs = spawner.backend()
    hook = hooked("stuck_stop", {"SECONDS": "2"}, start_grace_seconds=0.0, **QUICK)
    suspend(starting.pid)
    for model, backend in {"starting": starting, "loading": loading, "hangs": hangs}.items():
        hook.spawned(model, backend)
    eventually(
        lambda: [each.answered for each in hook.monitor.sweep(fresh=False)][1:] == [True] * 2
    )
    suspend(loading.pid)
    suspend(hangs.pid)
    eventually(lambda: not is_running(hangs.pid))
    sweeps(hook, 10)
    assert [each.model for each in hook.monitor.backends()] == ["starting", "loading"]


class Answers:
    """A plugin that says READY for all backends, until it says nothing."""

    ready = True

    @hookimpl
    def monitor_query_status(self) -> Status | None:
        return Status(State.READY) if self.ready else None


def test_lost_connection_does_not_end_the_silence(hooked: MakeHooked, spawner: Spawner) -> None:
    """A backend that hangs has a code of its own when the monitor can no longer connect to it."""
    answers = Answers()
    address = f"127.0.0.1:{free_port()}"
    process = spawner.sleeper()
    hook = hooked("stuck_stop", {"SECONDS": "3"}, plugins=[answers], sweep_interval_seconds=0)
    hook.monitor.hook.monitor_backend_spawned(model="m", pid=process.pid, address=address)

    def silent(code: str) -> bool:
        (observation,) = hook.monitor.sweep()
        reading = observation.reading
        assert reading
        seen = replace(observation, reading=replace(reading, status=None, rpc_error=code))
        found: bool = hook.module._is_silent(seen)
        hook.module._hung.clear()
        hook.module._hung.update([seen.backend] if found else [])
        return found

    hook.monitor.sweep()
    codes = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "UNAVAILABLE", "UNAVAILABLE", "INTERNAL")
    assert [silent(each) for each in codes] == [False, True, True, True, False]
    assert not silent("UNAVAILABLE")


def test_interval_of_sweeps_may_be_longer_than_the_limit(
    hooked: MakeHooked, spawner: Spawner
) -> None:
    """Two sweeps without an answer are needed; the first one alone stops nothing."""
    backend = spawner.backend()
    hook = hooked(
        "stuck_stop", {"SECONDS": "0.1"}, sweep_interval_seconds=1000, status_timeout_seconds=0.3
    )
    hook.spawned("m", backend)
    sweep = hook.monitor._services.sweeper._sweep_in_background
    sweep()
    suspend(backend.pid)
    sweep()
    assert not hook.module._watchdog.stops.under_way()
    assert is_running(backend.pid)
    eventually(lambda: sweep() or not is_running(backend.pid))


def test_stuck_model_is_restarted(hooked: MakeHooked, spawner: Spawner) -> None:
    """With ACTION=restart the model runs again, also after a second time."""
    host = EmbeddedHost(spawner, {"m": (), "well": ()})
    hook = hooked(
        "stuck_stop",
        {"SECONDS": "1", "ACTION": "restart"},
        plugins=[host],
        hook_timeout_seconds=30,
        **QUICK,
    )
    hook.module._watchdog._pause_seconds = 0.1
    pids = {each.model: each.pid for each in hook.monitor.backends()}
    for times in (1, 2):
        (backend,) = [each for each in hook.monitor.backends() if each.model == "m"]
        eventually(lambda: hook.monitor.read("m").status)
        suspend(backend.pid)
        eventually(lambda: host.started == ["m"] * times)  # noqa: B023 - called here
        eventually(lambda: len(hook.monitor.backends()) == 2)
        assert not is_running(backend.pid)
    assert {each.model: each.pid for each in hook.monitor.backends()}["well"] == pids["well"]


def test_stuck_backend_is_only_told_of(
    hooked: MakeHooked, spawner: Spawner, caplog: pytest.LogCaptureFixture
) -> None:
    """The backend is told of once, until it has answered again."""
    backend = spawner.backend()
    hook = hooked("stuck_stop", {"SECONDS": "0.5", "ACTION": "tell"}, **QUICK)
    hook.spawned("m", backend)

    def told() -> int:
        return sum("needs attention: it was silent" in each for each in caplog.messages)

    eventually(lambda: hook.monitor.read("m").status)
    for times in (1, 2):
        suspend(backend.pid)
        eventually(lambda: told() == times)  # noqa: B023 - called here
        sweeps(hook, 5)
        assert told() == times
        os.kill(backend.pid, signal.SIGCONT)
        eventually(lambda: hook.monitor.read("m").status)
        sweeps(hook, 5)
    assert is_running(backend.pid)


def test_hook_does_nothing_without_a_limit(hooked: MakeHooked, spawner: Spawner) -> None:
    """All shipped hooks can be loaded together without settings."""
    hook = hooked("stuck_stop", {}, sweep_interval_seconds=0)
    hook.spawned("m", spawner.backend("--busy-seconds", "1000"))
    hook.monitor.sweep()
    hook.module.monitor_readings_swept()
    assert hook.module._busy == {}


def test_invalid_limit_is_refused(hooked: MakeHooked) -> None:
    """Loading the file raises an error with the expected value."""
    with pytest.raises(PluginError) as raised:
        hooked("stuck_stop", {"SECONDS": "15min"})
    assert "MONITOR_HOOK_STUCK_STOP_SECONDS='15min': " in str(raised.value)
    assert "write seconds over 0, as 900, or llama-*=600,*=900" in str(raised.value)
