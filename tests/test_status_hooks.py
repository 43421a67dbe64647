"""Asking by another protocol: what does not depend on which one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import psutil
import pytest
from google.protobuf.wrappers_pb2 import BoolValue

from monitor_plugin import Backend, Monitor, State, Status, status_hooks
from monitor_plugin.status_hooks import Call, StatusHooks

from .support import Spawner, eventually

READY = BoolValue(value=True).SerializeToString()


class Server:
    """A gRPC server at several addresses, which answers a call with what it is told."""

    def __init__(self) -> None:
        self.answer = READY
        self._server = grpc.server(ThreadPoolExecutor(4))
        handler = grpc.unary_unary_rpc_method_handler(lambda request, context: self.answer)
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("a.Service", {"Ready": handler}),)
        )
        self.ports = [self._server.add_insecure_port("127.0.0.1:0") for _ in range(3)]
        self._server.start()

    def connections(self) -> int:
        """Count the clients' ends of the connections to it."""
        return sum(
            bool(each.pid == os.getpid() and each.raddr and each.raddr.port in self.ports)
            for each in psutil.net_connections("tcp")
        )

    def stop(self) -> None:
        self._server.stop(None).wait()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.stop()


def ask(backend: Backend, call: Call) -> Status | None:
    ready = BoolValue.FromString(call("/a.Service/Ready", b"")).value
    return Status(State.READY) if ready else None


@pytest.fixture
def watch(
    server: Server, make_monitor: Callable[..., Monitor], spawner: Spawner
) -> Callable[..., Monitor]:
    """Starts a monitor that asks by the hooks, and watches backends at the server's ports."""

    def watch(*, backends: int = 1, models: str = "*") -> Monitor:
        quiet = {"hook_timeout_seconds": 30, "sweep_interval_seconds": 0}
        monitor = make_monitor([StatusHooks(ask, models)], **quiet)
        for number, port in enumerate(server.ports[:backends]):
            monitor.hook.monitor_backend_spawned(
                model=f"m{number}", pid=spawner.sleeper().pid, address=f"127.0.0.1:{port}"
            )
        return monitor

    return watch


def test_nonsense_is_no_answer(server: Server, watch: Callable[..., Monitor]) -> None:
    """What is no message falls back to Status, and so does what says nothing."""
    monitor = watch()
    for answer, source in ((b"\xff\xff", "psutil"), (b"", "psutil"), (READY, "hook")):
        server.answer = answer
        assert monitor.read("m0").source == source


def test_other_models_are_not_asked(watch: Callable[..., Monitor]) -> None:
    """The pattern is of models' names, as a shell would have it."""
    monitor = watch(backends=3, models="m[02]")
    sources = [monitor.read(f"m{number}").source for number in range(3)]
    assert sources == ["hook", "psutil", "hook"]


def test_channels_make_room_for_others(
    server: Server, watch: Callable[..., Monitor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At most so many are open as there are descriptors for; each backend is asked all the same."""
    monkeypatch.setattr(status_hooks, "most_channels", lambda: 2)
    monitor = watch(backends=3)
    for _ in range(2):
        assert [monitor.read(f"m{number}").source for number in range(3)] == ["hook"] * 3
        eventually(lambda: server.connections() == 2)
