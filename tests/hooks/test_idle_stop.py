"""Idle backends are stopped; active ones are not."""

from __future__ import annotations

import subprocess
import sys
import time

import grpc
import pytest

from monitor_plugin import Backend, PluginError, State, Status, hookimpl

from ..gpus import OneGpu
from ..support import Backend as RunningBackend
from ..support import Spawner, eventually, is_running
from .conftest import Hooked, MakeHooked

# Uses a tenth of a core; 0.01 of a core is activity.
WORKS = [
    *(sys.executable, "-S", "-c"),
    """
import time
while True:
    end = time.process_time() + 0.02
    while time.process_time() < end:
        pass
    time.sleep(0.2)
""",
]


# Takes a request of the method `Work`, which lasts until the process ends, and uses no CPU time.
# With an argument it also answers SERVING to grpc.health.v1.
SERVES_ONE_REQUEST = """
import sys, threading
from concurrent import futures
import grpc
from grpc_health.v1 import health, health_pb2_grpc

def work(request, context):
    print("working", flush=True)
    threading.Event().wait()

handler = grpc.unary_unary_rpc_method_handler(work)
server = grpc.server(futures.ThreadPoolExecutor(4))
server.add_generic_rpc_handlers(
    (grpc.method_handlers_generic_handler("backend.Backend", {"Work": handler}),)
)
if len(sys.argv) > 1:
    health_pb2_grpc.add_HealthServicer_to_server(health.HealthServicer(), server)
port = server.add_insecure_port("127.0.0.1:0")
server.start()
print(f"serving on 127.0.0.1:{port}", flush=True)
server.wait_for_termination()
"""


class Requests:
    """Reports for two models, as a server that can take more requests, READY and its requests."""

    @hookimpl
    def monitor_query_status(self, backend: Backend) -> Status | None:
        running = {"has a request": 1, "has none": 0}.get(backend.model)
        return None if running is None else Status(State.READY, requests_running=running)


@pytest.mark.parametrize("no_status", ["never", "cpu"])
def test_idle_backends_are_stopped(
    no_status: str, hooked: MakeHooked, spawner: Spawner, caplog: pytest.LogCaptureFixture
) -> None:
    """Busy, hanging, active and exempt backends still run; the log has the reason.

    A backend that reports its requests is idle if it has none, also if a hook gave the status.
    """
    silent = spawner.backend("--no-status")
    kept = {
        "busy": spawner.backend_served_here("--busy-seconds", "1000"),
        "hangs": spawner.backend("--hang-status"),
        "loads": spawner.backend_served_here("--state", "0"),
        "broken": spawner.backend_served_here("--state", "-1"),
        "keep": spawner.backend_served_here(),
    }
    works, idle = spawner.process(*WORKS), spawner.backend()
    limits = {"SECONDS": "keep=never, *=1.5", "NO_STATUS": no_status}
    settings = {"sweep_interval_seconds": 0.3, "status_timeout_seconds": 1.0}
    hook = hooked("idle_stop", limits, **settings, plugins=[Requests()])
    for model, backend in {"silent": silent, **kept}.items():
        hook.spawned(model, backend)
    others = {"works": works, "has a request": spawner.sleeper(), "has none": spawner.sleeper()}
    for number, (model, process) in enumerate(others.items(), 1):
        hook.monitor.hook.monitor_backend_spawned(
            model=model, pid=process.pid, address=f"127.0.0.1:{number}"
        )
    hook.spawned("idle", idle)  # the last one, so each other one was swept as often
    left = [*(["silent"] if no_status == "never" else []), *kept, "works", "has a request"]
    eventually(lambda: len(hook.monitor.backends()) == len(left))
    sweep_again(hook)
    assert [each.model for each in hook.monitor.backends()] == left
    assert not is_running(idle.pid)
    assert is_running(silent.pid) is (no_status == "never")
    lines = [each for each in caplog.messages if "is being stopped" in each]
    assert len(lines) == (3 if no_status == "cpu" else 2)
    begins = f"model 'idle' (process {idle.pid}) is being stopped: it was idle for "
    (line,) = [each for each in lines if each.startswith(begins)]
    assert line.endswith("s, over 1.5 s for '*'")


@pytest.mark.parametrize(
    ("percent", "shared", "left"),
    [(60.0, False, ["m"]), (0.0, False, []), (None, False, []), (60.0, True, [])],
    ids=["in use", "not in use", "unknown", "shared"],
)
def test_backend_whose_gpu_is_in_use_is_not_idle(
    percent: float | None, shared: bool, left: list[str], hooked: MakeHooked, spawner: Spawner
) -> None:
    """The GPU counts although the backend says READY and uses no CPU; a shared GPU does not."""
    backend, other = spawner.backend(), spawner.sleeper()
    gpu = OneGpu(percent, backend.pid, *([other.pid] if shared else []))
    settings = {"sweep_interval_seconds": 0.3, "plugins": [gpu], "gpu": "off"}
    hook = hooked("idle_stop", {"SECONDS": "1.5"}, **settings)
    eventually(lambda: hook.monitor.gpus())
    hook.spawned("m", backend)
    hook.spawned("idle", spawner.backend())
    eventually(lambda: all(each.model != "idle" for each in hook.monitor.backends()))
    eventually(lambda: [each.model for each in hook.monitor.backends()] == left)
    sweep_again(hook)
    assert [each.model for each in hook.monitor.backends()] == left


def test_protected_and_idle_backend_is_told_of(
    hooked: MakeHooked, spawner: Spawner, caplog: pytest.LogCaptureFixture
) -> None:
    """The backend is told of once, as long as it is idle."""
    hook = hooked("idle_stop", {"SECONDS": "0.5", "PROTECT": "keep*,m"}, sweep_interval_seconds=0.2)
    hook.spawned("keep this", spawner.backend())
    hook.spawned("idle", spawner.backend())
    eventually(lambda: len(hook.monitor.backends()) == 1)
    sweep_again(hook)
    sweep_again(hook)
    assert [each.model for each in hook.monitor.backends()] == ["keep this"]
    (line,) = [each for each in caplog.messages if "needs attention" in each]
    assert "model 'keep this' (process " in line
    assert line.endswith("for '*'; it is left as it is, because PROTECT names it")


def sweep_again(hook: Hooked) -> None:
    """Wait until two more background sweeps have been checked for idle backends."""
    swept: list[object] = []

    class Counts:
        @hookimpl(trylast=True)
        def monitor_readings_swept(self) -> None:
            swept.append(None)

    hook.monitor.plugin_manager.register(Counts())
    eventually(lambda: len(swept) > 1)


@pytest.mark.parametrize("arguments", [[], ["health"]], ids=["no status", "grpc.health.v1"])
def test_request_at_low_cpu_usage_is_not_cut(
    arguments: list[str], hooked: MakeHooked, spawner: Spawner
) -> None:
    """A backend whose status says nothing of its requests is not idle, at any CPU usage."""
    works = RunningBackend(spawner.python(SERVES_ONE_REQUEST, *arguments))
    others = ["grpc_health"] if arguments else []
    hook = hooked("idle_stop", {"SECONDS": "1.5"}, *others, sweep_interval_seconds=0.3)
    with grpc.insecure_channel(works.address) as channel:
        request = channel.unary_unary("/backend.Backend/Work", None, None).future(b"")
        assert works.process.stdout
        assert works.process.stdout.readline() == "working\n"
        hook.spawned("works", works)
        hook.spawned("idle", spawner.backend())
        eventually(lambda: len(hook.monitor.backends()) == 1)
        sweep_again(hook)
        assert [each.model for each in hook.monitor.backends()] == ["works"]
        assert not request.done()
    assert hook.monitor.read("works").source == ("hook" if arguments else "psutil")


# Without `Status`. It serves each line of input by a child that uses 0.05 s of CPU time, ends and
# is waited for. Then it prints `done`.
FORKS_PER_REQUEST = """
import os, sys, time
for line in sys.stdin:
    if not os.fork():
        while time.process_time() < 0.05:
            pass
        os._exit(0)
    os.wait()
    print("done", flush=True)
"""


def test_backend_that_forks_for_each_request_is_stopped_only_when_it_is_idle(
    hooked: MakeHooked, spawner: Spawner
) -> None:
    """No sweep sees the children, which come and go between two sweeps."""
    process = spawner.python(FORKS_PER_REQUEST, stdin=subprocess.PIPE)
    assert process.stdin
    assert process.stdout
    settings = {"SECONDS": "1.5", "NO_STATUS": "cpu"}
    hook = hooked("idle_stop", settings, sweep_interval_seconds=1000, start_grace_seconds=0)
    hook.monitor.hook.monitor_backend_spawned(model="m", pid=process.pid, address="127.0.0.1:1")
    sweep = hook.monitor._services.sweeper._sweep_in_background
    ends_at = time.monotonic() + 5
    while time.monotonic() < ends_at:
        sweep()
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "done\n"
        time.sleep(0.2)
    sweep()
    assert [each.model for each in hook.monitor.backends()] == ["m"]

    def stopped() -> bool:
        sweep()
        return not hook.monitor.backends()

    eventually(stopped)


def test_log_says_that_backends_without_status_are_kept(
    hooked: MakeHooked, caplog: pytest.LogCaptureFixture
) -> None:
    """An operator whose backends have no `Status` sees why none is stopped."""
    caplog.set_level("INFO")
    hooked("idle_stop", {"SECONDS": "60"}, sweep_interval_seconds=0)
    (line,) = [each for each in caplog.messages if "NO_STATUS" in each]
    assert "MONITOR_HOOK_IDLE_STOP_NO_STATUS=cpu" in line


def test_hook_does_nothing_without_a_limit(hooked: MakeHooked, spawner: Spawner) -> None:
    """All shipped hooks can be loaded together without settings."""
    hook = hooked("idle_stop", {}, sweep_interval_seconds=0)
    hook.spawned("m", spawner.backend())
    hook.monitor.sweep()
    hook.module.monitor_readings_swept()
    assert hook.module._activity._traces == {}


@pytest.mark.parametrize("text", ["soon", "0", "a=1,b", "a=1h", "*=5,*=6"])
def test_invalid_limit_is_refused(text: str, hooked: MakeHooked) -> None:
    """Loading the file raises an error with the expected value."""
    with pytest.raises(PluginError) as raised:
        hooked("idle_stop", {"SECONDS": text})
    assert f"MONITOR_HOOK_IDLE_STOP_SECONDS={text!r}: " in str(raised.value)
    assert "write seconds over 0, as 3600, or llama-*=600,*=3600" in str(raised.value)


def test_invalid_no_status_is_refused(hooked: MakeHooked) -> None:
    """Loading the file raises an error with the accepted words."""
    with pytest.raises(PluginError) as raised:
        hooked("idle_stop", {"SECONDS": "60", "NO_STATUS": "yes"})
    assert "MONITOR_HOOK_IDLE_STOP_NO_STATUS='yes': " in str(raised.value)
    assert "write never or cpu" in str(raised.value)
