"""Servers of the Open Inference Protocol v2: a real server in its own process."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest

from monitor_plugin import Monitor, State
from monitor_plugin.hook_support import status_hooks

from ..support import Answer, Client, Spawner, eventually, logged
from .support import ROOT, copy_hooks

SERVER_READY = "/inference.GRPCInferenceService/ServerReady"
# Starts the command that follows it as a child, which lives on when this process is killed.
LAUNCHER = ("bash", "-c", '"$@" & exec sleep 1000', "bash")
READY = {"ready": True, "models": {"m": True}, "seconds": 0}


class OipServer:
    """The server, whose responses may be changed at any time."""

    def __init__(
        self, spawner: Spawner, path: Path, launcher: Sequence[str] = (), **results: Any
    ) -> None:
        self._path = path
        self._calls = Path(f"{path}.calls")
        self._calls.touch()
        self.configure(**results)
        arguments = (sys.executable, "-m", "tests.hooks.oip_server", str(path))
        self.process = spawner.process(*launcher, *arguments, cwd=ROOT)
        assert self.process.stdout
        self.address = self.process.stdout.readline().strip()
        assert self.address

    def configure(self, **changed: Any) -> None:
        new = self._path.with_suffix(".new")
        new.write_text(json.dumps({**READY, **changed}))
        new.replace(self._path)

    def calls(self) -> list[str]:
        return self._calls.read_text().splitlines()

    def connections(self) -> int:
        """Count this process's connections to the server."""
        port = int(self.address.rpartition(":")[2])
        return sum(
            bool(each.pid == os.getpid() and each.raddr and each.raddr.port == port)
            for each in psutil.net_connections("tcp")  # gRPC's sockets to IPv4 are of IPv6
        )


@pytest.fixture
def serve(spawner: Spawner, tmp_path: Path) -> Callable[..., OipServer]:
    """Starts the server."""
    return lambda **results: OipServer(spawner, tmp_path / "server", **results)


@pytest.fixture
def start(make_monitor: Callable[..., Monitor], tmp_path: Path) -> Callable[..., Monitor]:
    """Starts a monitor with the hook and a long time limit."""

    def start(stem: str = "kserve_status", **settings: Any) -> Monitor:
        folder = str(copy_hooks(tmp_path / "hooks", stem))
        quiet = {"hook_timeout_seconds": 30, "sweep_interval_seconds": 0}
        return make_monitor(hooks_dir=folder, **quiet, **settings)

    return start


def read(monitor: Monitor, model: str = "m") -> Answer:
    answer = Client(monitor.url).monitor(model)
    assert answer.status == 200, answer
    return answer


def state(monitor: Monitor, model: str = "m") -> int | None:
    """Read a model's state; it comes from the hook."""
    answer = read(monitor, model)
    assert answer.headers["X-Monitor-Source"] == "hook", answer
    found: int = answer.json["state"]
    return found


def register(monitor: Monitor, server: OipServer, model: str = "m") -> None:
    pid = server.process.pid
    monitor.hook.monitor_backend_spawned(model=model, pid=pid, address=server.address)


def test_readiness_of_server_and_model_becomes_a_state(
    serve: Callable[..., OipServer], start: Callable[..., Monitor]
) -> None:
    """READY needs both; an unknown model is not ready. The memory is that of the process tree."""
    server, monitor = serve(), start()
    register(monitor, server)
    assert state(monitor) == State.READY
    assert server.calls() == [*(SERVER_READY, "/inference.GRPCInferenceService/ModelReady", "m")]
    assert read(monitor).json["memory"]["total"] > 1024 * 1024
    for results in ({"ready": False}, {"models": {"m": False}}, {"models": {"other": True}}):
        server.configure(**results)
        assert state(monitor) == State.UNINITIALIZED
    server.configure()
    assert state(monitor) == State.READY


NO_STATUS = ["UNAVAILABLE", "DEADLINE_EXCEEDED", "UNIMPLEMENTED"]  # the last one ends the requests


def test_server_that_refuses_the_model_is_not_ready(
    serve: Callable[..., OipServer],
    start: Callable[..., Monitor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After `ServerReady`, an error of `ModelReady` is about the model, unless no server gave it.

    MLServer answers UNKNOWN for a model that it does not know, other servers NOT_FOUND.
    """
    monkeypatch.setattr(status_hooks, "_PAUSE_SECONDS", 0.0)
    server, monitor = serve(models={}), start()
    register(monitor, server)
    assert state(monitor) == State.UNINITIALIZED
    codes = [code.name for code in grpc.StatusCode if code is not grpc.StatusCode.OK]
    for code in [each for each in codes if each not in NO_STATUS]:
        server.configure(models={}, unknown_model=code)
        assert state(monitor) == State.UNINITIALIZED, code
    for code in NO_STATUS:
        server.configure(models={}, unknown_model=code)
        assert read(monitor).headers["X-Monitor-Source"] == "psutil", code


def test_unimplemented_protocol_gets_one_request(
    serve: Callable[..., OipServer], start: Callable[..., Monitor]
) -> None:
    """The monitor calls gRPC `Status` instead, and reports its error."""
    server, monitor = serve(service="another.Service"), start()
    register(monitor, server)
    for _ in range(3):
        answer = read(monitor)
        assert answer.headers["X-Monitor-Source"] == "psutil"
        assert answer.headers["X-Monitor-Rpc-Error"] == "UNIMPLEMENTED"
    register(monitor, server, "renamed")  # the same process, at the same address
    read(monitor, "renamed")
    assert server.calls().count(SERVER_READY) == 1
    eventually(lambda: server.connections() == 0)


def test_hanging_backend_costs_one_call_and_one_wait(
    serve: Callable[..., OipServer],
    start: Callable[..., Monitor],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The backend gets no requests for a while, and the hook returns before it overruns."""
    server, monitor = serve(seconds=60), start(status_timeout_seconds=3.0)
    monkeypatch.setattr(status_hooks, "_PAUSE_SECONDS", 60.0)
    register(monitor, server)
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(read, [monitor] * 4))
    answers.append(read(monitor))
    assert {each.headers["X-Monitor-Source"] for each in answers} == {"psutil"}
    assert server.calls().count(SERVER_READY) == 1
    assert logged(caplog) == []


def test_backend_that_hung_gets_requests_again(
    serve: Callable[..., OipServer],
    start: Callable[..., Monitor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After a pause the backend gets requests again."""
    server, monitor = serve(seconds=1.5), start(status_timeout_seconds=0.5)
    monkeypatch.setattr(status_hooks, "_PAUSE_SECONDS", 0.1)
    register(monitor, server)
    assert read(monitor).headers["X-Monitor-Source"] == "psutil"
    server.configure()
    eventually(lambda: read(monitor).headers["X-Monitor-Source"] == "hook")


def test_backend_that_serves_later_is_found(
    serve: Callable[..., OipServer], start: Callable[..., Monitor]
) -> None:
    """Until the server can be reached the monitor calls `Status`; a new address is used."""
    monitor, server = start(), serve()
    pid = server.process.pid
    monitor.hook.monitor_backend_spawned(model="m", pid=pid, address="127.0.0.1:1")
    assert read(monitor).headers["X-Monitor-Rpc-Error"] == "UNAVAILABLE"
    register(monitor, server)
    assert state(monitor) == State.READY


def test_settings_choose_models_and_names(
    serve: Callable[..., OipServer],
    start: Callable[..., Monitor],
    spawner: Spawner,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Only matching models get requests, with the model and the service of the settings."""
    service = "org.pytorch.serve.grpc.openinference.GRPCInferenceService"
    prefix = "MONITOR_HOOK_KSERVE_STATUS_"
    for name, value in {"MODELS": "oip-*", "ASK_FOR": "resnet", "SERVICE": service}.items():
        monkeypatch.setenv(prefix + name, value)
    server, monitor = serve(service=service, models={"resnet": True}), start()
    register(monitor, server, "other")
    assert read(monitor, "other").headers["X-Monitor-Source"] == "psutil"
    assert not [call for call in server.calls() if "Ready" in call]
    register(monitor, server, "oip-1")  # the record is updated
    assert state(monitor, "oip-1") == State.READY
    assert server.calls()[-1] == "resnet"


@pytest.mark.parametrize("how", ["gone", "closing"])
def test_channel_is_closed_after_the_exit(
    how: str, serve: Callable[..., OipServer], start: Callable[..., Monitor]
) -> None:
    """A backend's connection ends with the backend, and with the monitor."""
    server, monitor = serve(launcher=LAUNCHER), start()
    register(monitor, server)
    assert state(monitor) == State.READY
    assert server.connections() == 1
    if how == "gone":
        server.process.kill()
        server.process.wait()
    else:
        monitor.close()
    eventually(lambda: server.connections() == 0)
