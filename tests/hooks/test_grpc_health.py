"""Servers of grpc.health.v1: the real servicer of grpcio-health-checking, in a real process."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from monitor_plugin import Monitor, State

from ..support import Answer, Backend, Client, Spawner, eventually, free_port, register
from .support import copy_hooks

# Sets what each line of its input says: SERVICE STATUS.
SERVER = """
import sys
from concurrent import futures
import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

servicer = health.HealthServicer()
server = grpc.server(futures.ThreadPoolExecutor(4))
health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
port = server.add_insecure_port(sys.argv[1])
server.start()
print(f"127.0.0.1:{port}", flush=True)
for line in sys.stdin:
    service, status = line.rstrip().split(" ")
    servicer.set(service, health_pb2.HealthCheckResponse.ServingStatus.Value(status))
    print("set", flush=True)
"""


class HealthServer:
    def __init__(self, spawner: Spawner, address: str = "127.0.0.1:0") -> None:
        self.process = spawner.python(SERVER, address, stdin=subprocess.PIPE)
        self.address = self._line()

    def _line(self) -> str:
        assert self.process.stdout
        line = self.process.stdout.readline().strip()
        assert line
        return line

    def set(self, status: str, service: str = "") -> None:
        assert self.process.stdin
        self.process.stdin.write(f"{service} {status}\n")
        self.process.stdin.flush()
        assert self._line() == "set"


@pytest.fixture
def start(make_monitor: Callable[..., Monitor], tmp_path: Path) -> Callable[..., Monitor]:
    """Starts a monitor with shipped hooks."""

    def start(*stems: str) -> Monitor:
        folder = copy_hooks(tmp_path / "hooks", *(stems or ["grpc_health"]))
        quiet = {"hook_timeout_seconds": 30, "sweep_interval_seconds": 0}
        return make_monitor(hooks_dir=str(folder), **quiet)

    return start


def read(monitor: Monitor, server: HealthServer | Backend, model: str = "m") -> Answer:
    """Register a server as a backend of a model, and read the model."""
    pid = server.process.pid
    monitor.hook.monitor_backend_spawned(model=model, pid=pid, address=server.address)
    answer = Client(monitor.url).monitor(model)
    assert answer.status == 200, answer
    return answer


def test_health_becomes_a_state(spawner: Spawner, start: Callable[..., Monitor]) -> None:
    """SERVING is READY, NOT_SERVING is UNINITIALIZED; otherwise the monitor calls `Status`."""
    server, monitor = HealthServer(spawner), start()
    for status, state in (
        ("SERVING", State.READY),
        ("NOT_SERVING", State.UNINITIALIZED),
        ("UNKNOWN", None),
        ("SERVICE_UNKNOWN", None),
        ("SERVING", State.READY),
    ):
        server.set(status)
        answer = read(monitor, server)
        assert answer.json.get("state") == state
        source = "hook" if state is not None else "psutil"
        assert answer.headers["X-Monitor-Source"] == source


def test_settings_choose_models_and_service(
    spawner: Spawner, start: Callable[..., Monitor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only matching models get requests, for the service; an unknown service has no status."""
    monkeypatch.setenv("MONITOR_HOOK_GRPC_HEALTH_MODELS", "health/*")
    monkeypatch.setenv("MONITOR_HOOK_GRPC_HEALTH_SERVICE", "llm.Service")
    server, monitor = HealthServer(spawner), start()
    server.set("SERVING")
    assert read(monitor, server, "health/m").headers["X-Monitor-Source"] == "psutil"
    server.set("NOT_SERVING", "llm.Service")
    assert read(monitor, server, "health/m").json["state"] == State.UNINITIALIZED
    assert read(monitor, server, "m").headers["X-Monitor-Source"] == "psutil"


def test_backend_without_either_protocol_uses_status(
    spawner: Spawner, start: Callable[..., Monitor]
) -> None:
    """Both hooks close their channels to a backend that only speaks LocalAI's protocol."""
    backend, monitor = spawner.backend(), start("grpc_health", "kserve_status")
    for _ in range(2):
        answer = read(monitor, backend)
        assert answer.headers["X-Monitor-Source"] == "grpc"
        assert set(answer.json["memory"]["breakdown"]) == {"weights", "kv_cache"}
    for stem in ("grpc_health", "kserve_status"):
        (server,) = sys.modules[f"monitor_plugin_hooks.{stem}"]._hooks._servers.values()
        assert server.ask_after == math.inf


def test_both_status_hooks_work_together(spawner: Spawner, start: Callable[..., Monitor]) -> None:
    """The health hook works although the other hook is called first, until the server ends."""
    server, monitor = HealthServer(spawner), start("grpc_health", "kserve_status")
    server.set("SERVING")
    assert read(monitor, server).json["state"] == State.READY
    hooks = sys.modules["monitor_plugin_hooks.grpc_health"]._hooks
    assert hooks._servers
    server.process.kill()
    server.process.wait()
    eventually(lambda: not hooks._servers)


def test_server_of_another_process_is_not_asked(
    spawner: Spawner, start: Callable[..., Monitor]
) -> None:
    """The health of the backend's own server is read once it serves: a single refusal counts."""
    address, monitor = f"127.0.0.1:{free_port()}", start()
    stranger = spawner.backend(addr=address)
    process = spawner.python(f"input()\n{SERVER}", address, stdin=subprocess.PIPE)
    register(monitor, process.pid, address=address)
    assert Client(monitor.url).monitor("m").headers["X-Monitor-Source"] == "psutil"
    stranger.end()
    assert process.stdin
    assert process.stdout
    process.stdin.write("\n SERVING\n")
    process.stdin.flush()
    assert process.stdout.readline().strip() == address
    eventually(lambda: Client(monitor.url).monitor("m").headers["X-Monitor-Source"] == "hook")
