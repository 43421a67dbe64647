"""Asking by another protocol: what does not depend on which one."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import psutil
import pytest
from google.protobuf.wrappers_pb2 import BoolValue

from monitor_plugin import Backend, Monitor, State, Status, hookimpl
from monitor_plugin.hook_support.status_hooks import Call, StatusHooks
from monitor_plugin.processes.sockets import ListeningSockets, SocketTable
from monitor_plugin.rpc import channel_limit
from monitor_plugin.rpc.protocol import STATUS_METHOD

from ..support import Spawner, eventually, foreign_server, logged, register

READY = BoolValue(value=True).SerializeToString()

if TYPE_CHECKING:
    Handler = grpc.GenericRpcHandler[Any, Any]
else:
    Handler = grpc.GenericRpcHandler


class Server(Handler):
    """A gRPC server at several addresses, with configurable responses."""

    def __init__(self, *addresses: str) -> None:
        self.answer: bytes = READY
        self.has_status = False
        self.wanted_token: str | None = None
        self.tokens: list[str] = []  # of the calls
        self.gate = threading.Event()
        self.gate.set()
        self._server = grpc.server(ThreadPoolExecutor(4))
        self._server.add_generic_rpc_handlers((self,))
        self.ports = [self._server.add_insecure_port("127.0.0.1:0") for _ in range(3)]
        for address in addresses:
            self._server.add_insecure_port(address)
        self._server.start()

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        """Return the handler of a call."""
        methods = ["/a.Service/Ready", *([STATUS_METHOD] if self.has_status else [])]
        if details.method not in methods:
            return None
        return grpc.unary_unary_rpc_method_handler(self._ready)

    def _ready(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        metadata = {key: str(value) for key, value in context.invocation_metadata()}
        self.tokens.append(metadata.get("authorization", ""))
        if self.wanted_token and self.tokens[-1] != f"Bearer {self.wanted_token}":
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "a token is required")
        self.gate.wait(60)
        return self.answer

    def connections(self) -> int:
        """Count the clients' ends of the connections to the server."""
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
    """Starts a monitor with `StatusHooks`, and registers backends at the server's ports."""

    def watch(*plugins: object, backends: int = 1, models: str = "*") -> Monitor:
        patient = {"hook_timeout_seconds": 60, "status_timeout_seconds": 60}
        hooks = [StatusHooks(ask, models), *plugins]
        monitor = make_monitor(hooks, sweep_interval_seconds=0, **patient)
        for number, port in enumerate(server.ports[:backends]):
            address = f"127.0.0.1:{port}"
            register(monitor, spawner.sleeper(serves=address).pid, f"m{number}", address)
        return monitor

    return watch


def test_invalid_response_is_no_status(
    server: Server, watch: Callable[..., Monitor], caplog: pytest.LogCaptureFixture
) -> None:
    """After an invalid or empty response the monitor calls `Status`."""
    monitor = watch()
    for answer, source in ((b"\xff\xff", "psutil"), (b"", "psutil"), (READY, "hook")):
        server.answer = answer
        assert monitor.read("m0").source == source
    assert [each for each in caplog.records if each.levelname != "INFO"] == []


def test_concurrent_readings_share_a_response(
    server: Server, watch: Callable[..., Monitor]
) -> None:
    """A reading during a request gets its response; only a later reading makes a new request."""
    asking: list[Backend] = []

    class CalledBefore:
        @hookimpl
        def monitor_query_status(self, backend: Backend) -> None:
            asking.append(backend)

    monitor = watch(CalledBefore())
    server.gate.clear()
    with ThreadPoolExecutor(8) as pool:
        query = monitor.plugin_manager.hook.monitor_query_status
        (backend,) = monitor.backends()
        asked = [pool.submit(query, backend=backend, timeout_seconds=60.0) for _ in range(8)]
        eventually(lambda: len(asking) == 8)
        server.gate.set()
        assert [each.result() for each in asked] == [[Status(State.READY)]] * 8
    assert len(server.tokens) <= 4


def test_status_of_a_call_that_was_cut_off_is_dropped(server: Server, monitor: Monitor) -> None:
    """If the backend leaves during the call, no status is made of the error."""

    def not_ready_on_error(backend: Backend, call: Call) -> Status:
        try:
            call("/a.Service/Ready", b"")
        except grpc.RpcError:
            return Status(State.UNINITIALIZED)
        return Status(State.READY)

    hooks = StatusHooks(not_ready_on_error)
    backend = Backend("m", 1000, f"127.0.0.1:{server.ports[0]}", 1.0)
    hooks.monitor_started(monitor)
    hooks.monitor_backend_registered(backend)
    server.gate.clear()
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(hooks.monitor_query_status, backend, 60.0)
        eventually(lambda: server.tokens)
        hooks.monitor_closing()
        assert asked.result() is None
    server.gate.set()


def test_calls_carry_the_monitors_metadata(server: Server, watch: Callable[..., Monitor]) -> None:
    """The requests carry the results of `monitor_call_metadata`."""

    class Token:
        @hookimpl
        def monitor_call_metadata(self, backend: Backend) -> dict[str, str]:
            return {"authorization": f"Bearer of {backend.model}"}

    assert watch(Token()).read("m0").source == "hook"
    assert server.tokens == ["Bearer of m0"]


@pytest.mark.parametrize("has_status", [False, True])
def test_backend_that_wants_another_token_is_logged_once(
    has_status: bool,
    server: Server,
    watch: Callable[..., Monitor],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Whether it refuses the hook's requests only, or the `Status` calls of the monitor as well."""
    server.wanted_token = "s3cret"
    server.has_status = has_status
    monitor = watch(backends=2)
    for _ in range(3):
        for model in ("m0", "m1"):
            code = "UNAUTHENTICATED" if has_status else "UNIMPLEMENTED"
            assert monitor.read(model).rpc_error == code
    lines = [each for each in logged(caplog) if "grpc_token_file" in each]
    assert [each.partition(" (process")[0] for each in lines] == ["model 'm0'", "model 'm1'"]
    assert "s3cret" not in caplog.text


def test_other_models_get_no_requests(watch: Callable[..., Monitor]) -> None:
    """The shell pattern matches the models' names."""
    monitor = watch(backends=3, models="m[02]")
    sources = [monitor.read(f"m{number}").source for number in range(3)]
    assert sources == ["hook", "psutil", "hook"]


def test_unused_channels_are_closed_for_new_ones(
    server: Server, watch: Callable[..., Monitor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The number of open channels is limited; each backend still gets its requests."""
    monkeypatch.setattr(channel_limit, "max_channels", lambda: 2)
    monitor = watch(backends=3)
    for _ in range(2):
        assert [monitor.read(f"m{number}").source for number in range(3)] == ["hook"] * 3
        eventually(lambda: server.connections() == 2)


def test_server_that_does_not_speak_grpc_gets_one_request_a_minute(
    watch: Callable[..., Monitor], spawner: Spawner
) -> None:
    """Its log says that the request was not valid. A new address gets a request at once."""
    monitor = watch(backends=0)
    with (
        foreign_server(BaseHTTPRequestHandler) as server,
        foreign_server(BaseHTTPRequestHandler) as other,
    ):
        pid = spawner.sleeper(serves=(server.address, other.address)).pid
        register(monitor, pid, "web", server.address)
        assert [monitor.read("web").source for _ in range(3)] == ["psutil"] * 3
        assert server.connections == 2  # one of the hook, one of `Status`
        register(monitor, pid, "web", other.address)
        assert monitor.read("web").source == "psutil"
        assert other.connections == 2


def test_backend_that_starts_late_is_reached(
    watch: Callable[..., Monitor],
    spawner: Spawner,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An unreachable backend gets a new channel, without the old one's backoff."""
    monitor = watch(backends=0)
    # The server is in this process. It is not looked at whose it is.
    nothing = ListeningSockets(frozenset(), 0.0)
    monkeypatch.setattr(SocketTable, "find_sockets", lambda *arguments: nothing)
    register(monitor, spawner.sleeper().pid, "late", f"unix:{tmp_path}/s")
    assert [monitor.read("late").source for _ in range(3)] == ["psutil"] * 3
    server = Server(f"unix:{tmp_path}/s")
    try:
        assert monitor.read("late").source == "hook"
    finally:
        server.stop()
