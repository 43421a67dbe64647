"""gRPC `Status` and `Free` calls, to real servers: good, hung, slow, and hostile ones."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler
from socketserver import BaseRequestHandler
from typing import Any

import grpc
import pytest

from monitor_plugin import Settings
from monitor_plugin.concurrency.blocking import BlockingObserver
from monitor_plugin.domain.models import Backend, Memory, Status
from monitor_plugin.rpc import connection, grpc_transport
from monitor_plugin.rpc.call import DURATION_BOUNDS, StatusCall, StatusOutcome
from monitor_plugin.rpc.channels import UNUSED_CHANNEL_TARGET, ChannelSecurity
from monitor_plugin.rpc.client import StatusClient
from monitor_plugin.rpc.protocol import SERVICE

from ..support import Spawner, eventually, foreign_server, free_port, logged, sends, suspend


@pytest.fixture
def make_client() -> Iterator[Callable[..., StatusClient]]:
    """Makes status clients, and closes them."""
    clients = []

    def make(timeout: float = 30, metadata: dict[str, str] | None = None) -> StatusClient:
        security = ChannelSecurity(Settings())
        client = StatusClient(timeout, lambda backend: metadata or {}, security, BlockingObserver())
        clients.append(client)
        return client

    yield make
    for client in clients:
        client.close()


def backend_at(address: str, pid: int = 1000) -> Backend:
    return Backend("m", pid, address, 1.0)


class Server:
    """A gRPC server with a given `Status` method, whose calls it counts."""

    def __init__(self, answer: Callable[[grpc.ServicerContext], bytes]) -> None:
        self._lock = threading.Lock()
        self.calls = self.concurrent = self.max_concurrent = 0

        def status(request: bytes, context: grpc.ServicerContext) -> bytes:
            with self._lock:
                self.calls += 1
                self.concurrent += 1
                self.max_concurrent = max(self.max_concurrent, self.concurrent)
            try:
                return answer(context)
            finally:
                with self._lock:
                    self.concurrent -= 1

        self._server = grpc.server(ThreadPoolExecutor(8))
        handler = grpc.unary_unary_rpc_method_handler(status)
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(SERVICE, {"Status": handler}),)
        )
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def stop(self) -> None:
        self._server.stop(None).wait()


@pytest.fixture
def serve() -> Iterator[Callable[[Callable[[grpc.ServicerContext], bytes]], Server]]:
    servers: list[Server] = []

    def start(answer: Callable[[grpc.ServicerContext], bytes]) -> Server:
        servers.append(Server(answer))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


def test_a_status_with_memory(make_client: Callable[..., StatusClient], spawner: Spawner) -> None:
    """State, total and breakdown are those of the backend."""
    backend = spawner.backend()
    answer = make_client().status(backend_at(backend.address))
    memory = Memory(3 << 20, {"kv_cache": 1 << 20, "weights": 2 << 20})
    assert answer == StatusOutcome(Status(2, memory), None, True, protocol="localai")


@pytest.mark.parametrize(
    ("wire", "expected"),
    [
        (b"", Status(0, None)),
        (b"\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", Status(-1, None)),
        (b"\x08\x07", Status(7, None)),
        (b"\x08\x02\x12\x00", Status(2, None)),  # an empty memory message
        (b"\x12\x0b\x08" + b"\xff" * 9 + b"\x01", Status(0, Memory(2**64 - 1, {}))),
    ],
)
def test_unusual_responses_are_statuses(
    wire: bytes,
    expected: Status,
    serve: Callable[..., Server],
    make_client: Callable[..., StatusClient],
) -> None:
    """Unknown states are kept, bytes are unsigned 64 bit, and empty memory is None."""
    server = serve(lambda context: wire)
    assert make_client().status(backend_at(server.address)).status == expected


def abort(code: grpc.StatusCode) -> Callable[[grpc.ServicerContext], bytes]:
    def answer(context: grpc.ServicerContext) -> bytes:
        context.abort(code, "no")
        raise AssertionError

    return answer


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (lambda context: b"\xff\xff", "INTERNAL"),
        (lambda context: b"\x12\x09\x12\x07\x0a\x01\xff\x10\x01\x18\x00", "INTERNAL"),
        (lambda context: bytes(5 << 20), "RESOURCE_EXHAUSTED"),
        (abort(grpc.StatusCode.PERMISSION_DENIED), "PERMISSION_DENIED"),
        (abort(grpc.StatusCode.DEADLINE_EXCEEDED), "DEADLINE_EXCEEDED"),
    ],
)
def test_invalid_responses_and_errors_have_a_code(
    answer: Callable[[grpc.ServicerContext], bytes],
    code: str,
    serve: Callable[..., Server],
    make_client: Callable[..., StatusClient],
) -> None:
    """Invalid bytes, too many bytes, and errors: the outcome has the code's name."""
    assert make_client().status(backend_at(serve(answer).address)).rpc_error == code


def test_status_is_called_once_where_it_is_unimplemented(
    serve: Callable[..., Server], make_client: Callable[..., StatusClient]
) -> None:
    """The process is not called again, and its channel is closed."""
    server = serve(abort(grpc.StatusCode.UNIMPLEMENTED))
    client = make_client()
    for _ in range(3):
        assert client.status(backend_at(server.address)).rpc_error == "UNIMPLEMENTED"
    assert server.calls == 1
    assert client.status(backend_at(server.address, pid=1001)).rpc_error == "UNIMPLEMENTED"
    assert server.calls == 2
    assert client.free(backend_at(server.address)) == "UNIMPLEMENTED"
    for pid in (1000, 1001):
        assert client._connection(backend_at(server.address, pid))._link is None


def test_no_server_and_a_silent_server(make_client: Callable[..., StatusClient]) -> None:
    """No server: UNAVAILABLE; a silent one: DEADLINE_EXCEEDED."""
    client = make_client(timeout=60)
    assert client.status(backend_at("127.0.0.1:1")).rpc_error == "UNAVAILABLE"
    assert client.status(backend_at("unix:/nowhere/at/all")).rpc_error == "UNAVAILABLE"
    with socket.create_server(("127.0.0.1", 0)) as silent:
        quick = make_client(timeout=0.3)
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        assert quick.status(backend_at(address)).rpc_error == "DEADLINE_EXCEEDED"


def test_an_answer_is_a_status_or_an_error_of_the_server(
    serve: Callable[..., Server], make_client: Callable[..., StatusClient]
) -> None:
    """No answer are UNAVAILABLE, DEADLINE_EXCEEDED, and errors that are not from the server."""
    client = make_client()
    for code in grpc.StatusCode:
        if code is not grpc.StatusCode.OK:
            expected = code.name not in ("UNAVAILABLE", "DEADLINE_EXCEEDED")
            outcome = client.status(backend_at(serve(abort(code)).address))
            assert outcome == StatusOutcome(None, code.name, answered=expected)
    garbage = client.status(backend_at(serve(lambda context: b"\xff\xff").address))
    assert garbage == StatusOutcome(None, "INTERNAL", answered=True)
    assert not client.status(backend_at("127.0.0.1:1")).answered
    client.close()
    assert not client.status(backend_at("127.0.0.1:1")).answered


def test_unimplemented_that_no_reader_waited_for_is_an_answer(
    serve: Callable[..., Server], make_client: Callable[..., StatusClient]
) -> None:
    """The next reader gets it without a call, and that the backend has answered."""
    go = threading.Event()

    def answer(context: grpc.ServicerContext) -> bytes:
        go.wait(30)
        context.abort(grpc.StatusCode.UNIMPLEMENTED, "no")
        raise AssertionError

    server = serve(answer)
    client = make_client()
    request = client.request_status(backend_at(server.address))
    assert request.wait(0.01).rpc_error == "DEADLINE_EXCEEDED"
    go.set()
    assert request.call.done.wait(30)
    late = client.status(backend_at(server.address))
    assert late == StatusOutcome(None, "UNIMPLEMENTED", answered=True)
    assert server.calls == 1


SPEAKS_HTTP = "speaks HTTP, not gRPC: register http://"
OTHER = "does not speak gRPC"
HTML_ALONE = SPEAKS_HTTP if grpc.__version__ >= "1.60" else OTHER  # older ones say less


@pytest.mark.parametrize(
    ("handler", "says"),
    [
        (BaseHTTPRequestHandler, HTML_ALONE),
        (
            sends(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\nInvalid HTTP request"),
            SPEAKS_HTTP,
        ),
        (
            sends(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n", closes=False),
            SPEAKS_HTTP,
        ),
        (sends(b"HTTP/1.0 505 HTTP Version Not Supported\r\n\r\n"), SPEAKS_HTTP),
        (sends(b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n", first=True, closes=False), OTHER),
        (sends(b"-ERR unknown command 'PRI'\r\n", closes=False), OTHER),
    ],
    ids=["http.server", "uvicorn", "HTTP/1.1", "HTTP/1.0", "ssh", "redis"],
)
def test_a_server_that_does_not_speak_grpc_is_called_once_a_minute(
    handler: type[BaseRequestHandler],
    says: str,
    make_client: Callable[..., StatusClient],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It gets one connection. The log says so once; a new registration is called at once."""
    client = make_client()
    with foreign_server(handler) as server:
        backend = backend_at(server.address)
        for _ in range(5):
            outcome = client.status(backend)
            assert (outcome.rpc_error, outcome.answered) == ("UNAVAILABLE", False)
            assert outcome.error_text
            assert client.free(backend) == "UNAVAILABLE"
        assert server.connections == 1
        (line,) = logged(caplog)
        assert str(outcome.error_text) in line
        assert f"the server at {server.address} {says}" in line.replace("localhost", "127.0.0.1")
        again = backend_at(server.address, pid=1001)
        assert client.status(again).rpc_error == "UNAVAILABLE"
        assert server.connections == 2
        assert len(logged(caplog)) == 2
        monkeypatch.setattr(grpc_transport, "OTHER_PROTOCOL_PAUSE_SECONDS", 1e-9)
        client.close_connection(again)
        for calls in (3, 4):
            assert client.status(again).rpc_error == "UNAVAILABLE"
            assert server.connections == calls
        assert len(logged(caplog)) == 3  # of the third connection object, once


@pytest.mark.parametrize("address", [":{}", "0.0.0.0:{}", "[::]:{}", "ipv4:127.0.0.1:{}"])
def test_other_protocol_is_noticed_at_each_form_of_an_address(
    address: str, make_client: Callable[..., StatusClient]
) -> None:
    """Of several addresses that are dialled, gRPC's error describes the last one."""
    with foreign_server(BaseHTTPRequestHandler) as server:
        backend = backend_at(address.format(server.server_address[1]))
        outcomes = [make_client().status(backend) for _ in range(3)]
        assert outcomes[0].pause_seconds
        assert server.connections == 3  # one of each client


def test_free_finds_out_that_a_server_does_not_speak_grpc(
    make_client: Callable[..., StatusClient], caplog: pytest.LogCaptureFixture
) -> None:
    """Later calls are not made, whichever was the first."""
    client = make_client()
    with foreign_server(BaseHTTPRequestHandler) as server:
        backend = backend_at(server.address)
        assert client.free(backend) == "UNAVAILABLE"
        assert client.status(backend).rpc_error == "UNAVAILABLE"
        assert server.connections == 1
    assert len(logged(caplog)) == 1


@pytest.mark.parametrize(
    "handler",
    [sends(b""), sends(b"", first=True), sends(b"", closes=False), sends(b"hi", closes=False)],
    ids=["closes after a request", "closes at once", "silent", "too little"],
)
def test_a_server_that_may_still_speak_grpc_is_called_each_time(
    handler: type[BaseRequestHandler],
    make_client: Callable[..., StatusClient],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A server that sends nothing may be starting or hung."""
    with foreign_server(handler) as server:
        client = make_client(timeout=0.2)
        for _ in range(3):
            outcome = client.status(backend_at(server.address))
            assert outcome.rpc_error in ("UNAVAILABLE", "DEADLINE_EXCEEDED")
            assert not outcome.pause_seconds
        calls = client.counts(backend_at(server.address))
        assert calls
        assert sum(calls.failures.values()) == (3 if outcome.rpc_error == "UNAVAILABLE" else 1)
        client.close()
    assert logged(caplog) == []


def test_a_grpc_server_that_takes_the_place_of_another_is_found(
    make_client: Callable[..., StatusClient], spawner: Spawner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the pause its status is read as usual."""
    monkeypatch.setattr(grpc_transport, "OTHER_PROTOCOL_PAUSE_SECONDS", 0.1)
    client = make_client()
    with foreign_server(BaseHTTPRequestHandler) as server:
        assert client.status(backend_at(server.address)).pause_seconds
    spawner.backend(addr=server.address)
    eventually(lambda: client.status(backend_at(server.address)).answered)


@pytest.mark.parametrize("scheme", ["unix:", "unix://", "unix-abstract:"])
def test_unix_sockets(
    scheme: str, make_client: Callable[..., StatusClient], spawner: Spawner, tmp_path: object
) -> None:
    """Unix sockets work by path and by abstract name."""
    backend = spawner.backend(addr=f"{scheme}{tmp_path}/s")
    assert make_client().status(backend_at(backend.address)).rpc_error is None


def test_a_proxy_in_the_environment_is_not_used(
    make_client: Callable[..., StatusClient], spawner: Spawner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host's proxy settings have no effect on calls to backends."""
    for name in ("http_proxy", "https_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    backend = spawner.backend()
    assert make_client().status(backend_at(backend.address)).rpc_error is None


def test_metadata_goes_with_each_call(
    make_client: Callable[..., StatusClient], spawner: Spawner, caplog: pytest.LogCaptureFixture
) -> None:
    """A backend gets its token. Invalid metadata fail the call, and are not logged."""
    backend = spawner.backend("--token", "s3cret")
    assert make_client().status(backend_at(backend.address)).rpc_error == "UNAUTHENTICATED"
    good = make_client(metadata={"authorization": "Bearer s3cret"})
    assert good.status(backend_at(backend.address)).rpc_error is None
    assert good.free(backend_at(backend.address)) is None
    bad = make_client(metadata={"Bad Key": "s3cret\n"})
    assert bad.status(backend_at(backend.address)).rpc_error == "INTERNAL"
    assert bad.free(backend_at(backend.address)) == "INTERNAL"
    assert "s3cret" not in caplog.text


def test_many_readers_share_one_call(
    serve: Callable[..., Server], make_client: Callable[..., StatusClient]
) -> None:
    """Readers join the call in flight; there are never two."""
    go = threading.Event()

    def answer(context: grpc.ServicerContext) -> bytes:
        go.wait(30)
        return b"\x08\x02"

    server = serve(answer)
    client = make_client()
    with ThreadPoolExecutor(20) as pool:
        readers = [pool.submit(client.status, backend_at(server.address)) for _ in range(20)]
        eventually(lambda: server.calls)
        go.set()
        assert {each.result(30).status for each in readers} == {Status(2, None)}
    assert server.max_concurrent == 1


def test_a_hung_backend_costs_one_call_and_one_wait(
    make_client: Callable[..., StatusClient], spawner: Spawner
) -> None:
    """After the first timeout, readers do not wait until the backend answers again."""
    backend = spawner.backend()
    client = make_client(timeout=2.0)
    eventually(lambda: client.status(backend_at(backend.address)).rpc_error is None)
    suspend(backend.pid)
    started = time.monotonic()
    assert client.status(backend_at(backend.address)).rpc_error == "DEADLINE_EXCEEDED"
    assert time.monotonic() - started >= 2.0
    started = time.monotonic()
    for _ in range(20):
        assert client.status(backend_at(backend.address)).rpc_error == "DEADLINE_EXCEEDED"
    assert time.monotonic() - started < 2.0 * 20 / 2  # 20 waits would take 40 s
    os.kill(backend.pid, signal.SIGCONT)
    eventually(lambda: client.status(backend_at(backend.address)).status)


def test_an_old_call_to_a_hung_backend_is_renewed(
    serve: Callable[..., Server],
    make_client: Callable[..., StatusClient],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is renewed without any reader, and readers do not wait for it."""
    monkeypatch.setattr("monitor_plugin.rpc.connection._EXTRA_CALL_SECONDS", 1.0)
    end = threading.Event()
    server = serve(lambda context: end.wait(60) and b"\x08\x02")
    client = make_client(timeout=6.0)
    assert client.status(backend_at(server.address)).rpc_error == "DEADLINE_EXCEEDED"
    eventually(lambda: server.calls == 2)
    started = time.monotonic()
    assert client.status(backend_at(server.address)).rpc_error == "DEADLINE_EXCEEDED"
    assert time.monotonic() - started < 4.5
    end.set()
    eventually(lambda: client.status(backend_at(server.address)).status)


def test_a_call_lasts_as_long_as_its_readers_wait(
    serve: Callable[..., Server],
    make_client: Callable[..., StatusClient],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An answer within the timeout counts, however long the timeout is."""
    monkeypatch.setattr("monitor_plugin.rpc.connection._EXTRA_CALL_SECONDS", 0.1)
    server = serve(lambda context: threading.Event().wait(0.5) or b"\x08\x02")
    assert make_client(timeout=30).status(backend_at(server.address)).status
    assert server.calls == 1


def test_a_backend_that_is_back_is_reached_immediately(
    make_client: Callable[..., StatusClient], spawner: Spawner
) -> None:
    """gRPC's backoff does not delay calls to a backend that serves again."""
    backend = spawner.backend(addr=f"127.0.0.1:{free_port()}")
    client = make_client()
    assert client.status(backend_at(backend.address)).rpc_error is None
    backend.process.kill()
    backend.process.wait()
    eventually(lambda: client.status(backend_at(backend.address)).rpc_error == "UNAVAILABLE")
    for _ in range(100):  # each would lengthen a backoff
        client.status(backend_at(backend.address))
        time.sleep(0.02)
    spawner.backend(addr=backend.address)
    assert client.status(backend_at(backend.address)).status


@pytest.mark.parametrize("address", ["unix:{folder}/{number}", "127.0.0.1:{port}"])
def test_a_backend_that_was_called_too_early_answers_once_it_serves(
    address: str, make_client: Callable[..., StatusClient], spawner: Spawner, tmp_path: object
) -> None:
    """The first call after it serves succeeds, and no descriptor is left open.

    gRPC 1.49 goes on connecting without finishing while there is no call, and never closes a unix
    socket with which it did so.
    """
    client = make_client()
    held: list[int] = []
    for number in range(4):
        backend = backend_at(address.format(folder=tmp_path, number=number, port=free_port()))
        assert client.status(backend).rpc_error == "UNAVAILABLE"
        assert client.free(backend) == "UNAVAILABLE"
        serving = spawner.backend(addr=backend.address)
        time.sleep(0.2)  # more than gRPC's backoff
        assert client.free(backend) is None
        assert client.status(backend).status
        client.close_connection(backend)
        serving.process.kill()
        serving.process.communicate()
        held.append(len(os.listdir("/proc/self/fd")))
        eventually(lambda: len(os.listdir("/proc/self/fd")) <= held[0])


def test_closing_ends_the_waits_of_readers(
    serve: Callable[..., Server], make_client: Callable[..., StatusClient]
) -> None:
    """Readers of a backend that is gone get CANCELLED, and so do later ones."""
    go = threading.Event()

    def answer(context: grpc.ServicerContext) -> bytes:
        go.wait(30)
        return b""

    server = serve(answer)
    client = make_client()
    with ThreadPoolExecutor(1) as pool:
        reader = pool.submit(client.status, backend_at(server.address))
        eventually(lambda: server.calls)
        client.close_connection(backend_at(server.address))
        assert reader.result(30).rpc_error == "CANCELLED"
    client.close()
    assert client.status(backend_at(server.address)).rpc_error == "CANCELLED"
    assert client.free(backend_at(server.address)) == "CANCELLED"
    go.set()


def test_a_call_that_just_began_may_finish_before_its_channel_is_closed(
    make_client: Callable[..., StatusClient],
    spawner: Spawner,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """gRPC 1.49 leaks the descriptor of a channel that is closed while it connects."""
    monkeypatch.setattr(connection, "_CONNECTING_SECONDS", 60.0)
    client, address = make_client(), spawner.backend().address
    backends = [backend_at(address, pid) for pid in range(1, 21)]
    for backend in backends:
        request = client.request_status(backend)
        client.close_connection(backend)
        assert request.wait(0).rpc_error is None
    assert caplog.text == ""


def test_a_call_on_a_closed_channel_is_cancelled(
    make_client: Callable[..., StatusClient], caplog: pytest.LogCaptureFixture
) -> None:
    """The exception is logged only while the connection is open."""
    client = make_client()
    made = client._connection(backend_at("127.0.0.1:1"))
    assert made
    for closed, code in ((False, "INTERNAL"), (True, "CANCELLED")):
        if closed:
            made.close()
        call = StatusCall()
        made._finish(call, ValueError("Cannot invoke RPC on closed channel!"))
        assert call.done.is_set()
        assert call.outcome == StatusOutcome(None, code)
    assert len(caplog.records) == 1


def test_a_name_that_resolves_again_is_used_immediately(
    make_client: Callable[..., StatusClient], spawner: Spawner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A channel that reached no server is closed: its resolver's backoff lasts minutes."""
    backend = spawner.backend()
    port = backend.address.rpartition(":")[2]
    targets = []
    insecure_channel = grpc.insecure_channel

    def open_channel(target: str, options: object) -> grpc.Channel:
        if target == UNUSED_CHANNEL_TARGET:
            return insecure_channel(target)
        targets.append(target)
        return insecure_channel(target if len(targets) > 1 else f"no-such-host.invalid:{port}")

    monkeypatch.setattr(grpc, "insecure_channel", open_channel)
    client = make_client()
    assert client.status(backend_at(backend.address)).rpc_error == "UNAVAILABLE"
    for _ in range(2):
        assert client.status(backend_at(backend.address)).status
        assert len(targets) == 2


def test_one_of_two_channels_opened_at_the_same_time_is_closed(
    make_client: Callable[..., StatusClient], spawner: Spawner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`Status` and `Free` that start together share one channel."""
    both = threading.Barrier(2, timeout=60)
    opened: list[grpc.Channel] = []
    closed: list[grpc.Channel] = []
    insecure_channel = grpc.insecure_channel

    def open_channel(target: str, options: Any) -> grpc.Channel:
        channel = insecure_channel(target, options)
        if target == UNUSED_CHANNEL_TARGET:
            return channel
        really_close = channel.close

        def close() -> None:
            closed.append(channel)
            really_close()

        monkeypatch.setattr(channel, "close", close)
        opened.append(channel)
        both.wait()
        return channel

    monkeypatch.setattr(grpc, "insecure_channel", open_channel)
    backend = backend_at(spawner.backend().address)
    client = make_client()
    with ThreadPoolExecutor(2) as pool:
        status, free = pool.submit(client.status, backend), pool.submit(client.free, backend)
        assert (status.result(60).rpc_error, free.result(60)) == (None, None)
    assert (len(opened), len(closed)) == (2, 1)
    client.close()
    assert set(closed) == set(opened)


def test_channels_are_limited_by_the_number_of_descriptors(
    serve: Callable[..., Server],
    make_client: Callable[..., StatusClient],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The channel that was idle for longest is closed; if none is idle, RESOURCE_EXHAUSTED."""
    monkeypatch.setattr("monitor_plugin.rpc.channel_limit.max_channels", lambda: 3)
    go = threading.Event()

    def hang(context: grpc.ServicerContext) -> bytes:
        go.wait(60)
        return b"\x08\x01"

    quick = serve(lambda context: b"\x08\x02").address
    slow = serve(hang)
    client = make_client()
    descriptors = len(os.listdir("/proc/self/fd"))
    for pid in range(1000, 1020):
        assert client.status(backend_at(quick, pid)).status == Status(2, None)
    # A connection is two descriptors here, as its other end is in this process too.
    eventually(lambda: len(os.listdir("/proc/self/fd")) < descriptors + 2 * 6)
    with ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(client.status, backend_at(slow.address, pid)) for pid in range(3)]
        eventually(lambda: slow.concurrent == 3)
        assert client.status(backend_at(quick)).rpc_error == "RESOURCE_EXHAUSTED"
        assert client.free(backend_at(quick)) == "RESOURCE_EXHAUSTED"
        go.set()
        assert [each.result(60).status for each in waiting] == [Status(1, None)] * 3
    assert client.status(backend_at(quick)).status == Status(2, None)


def count_calls(function: Callable[[], object]) -> int:
    """Count the Python functions that a function calls on its own thread."""
    calls = 0

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal calls
        calls += event == "call"

    sys.setprofile(count)
    try:
        function()
    finally:
        sys.setprofile(None)
    return calls


@pytest.mark.once
def test_the_cost_of_a_channel_over_the_limit_does_not_depend_on_the_number_of_backends(
    serve: Callable[..., Server],
    make_client: Callable[..., StatusClient],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A sweep of more backends than channels opens a channel for each of them."""
    monkeypatch.setattr("monitor_plugin.rpc.channel_limit.max_channels", lambda: 4)
    address = serve(lambda context: b"\x08\x02").address

    def calls_per_status(count: int) -> float:
        client = make_client()
        backends = [backend_at(address, pid) for pid in range(1, count + 1)]
        for backend in backends:
            client.status(backend)
        return count_calls(lambda: [client.status(each) for each in backends]) / count

    assert calls_per_status(400) < 1.5 * calls_per_status(40)


def test_closing_the_last_channel_blocks_no_thread(
    make_client: Callable[..., StatusClient], spawner: Spawner, tmp_path: object
) -> None:
    """The other threads of the process go on.

    Without the keeper channel gRPC 1.49.1 would shut down, with the interpreter's lock held for
    10 s, once a connection to a unix socket had failed.
    """
    backend = backend_at(f"unix:{tmp_path}/s")
    client = make_client()
    assert client.status(backend).rpc_error == "UNAVAILABLE"
    spawner.backend(addr=backend.address)
    eventually(lambda: client.status(backend).status)
    longest, ended = 0.0, threading.Event()

    def tick() -> None:
        nonlocal longest
        while not ended.is_set():
            began = time.monotonic()
            time.sleep(0.01)
            longest = max(longest, time.monotonic() - began)

    thread = threading.Thread(target=tick)
    thread.start()
    client.close_connection(backend)
    ended.wait(0.5)
    ended.set()
    thread.join()
    assert longest < 9


def test_a_call_is_counted_once_for_all_its_readers(
    make_client: Callable[..., StatusClient],
    serve: Callable[[Callable[[grpc.ServicerContext], bytes]], Server],
) -> None:
    """Its duration is from its start to its answer."""
    release = threading.Event()

    def answer(context: grpc.ServicerContext) -> bytes:
        release.wait(60)
        return b""

    server = serve(answer)
    client = make_client()
    with ThreadPoolExecutor(8) as pool:
        readers = [pool.submit(client.status, backend_at(server.address)) for _ in range(8)]
        eventually(lambda: server.concurrent)
        long_enough = time.monotonic() + 0.1
        eventually(lambda: time.monotonic() > long_enough)
        assert (counts := client.counts(backend_at(server.address)))
        assert counts.calls[-1] == 0  # it is not over
        release.set()
        assert {reader.result().status for reader in readers} == {Status(0)}
    assert (counts := client.counts(backend_at(server.address)))
    assert counts.calls[-1] == server.calls
    assert counts.seconds >= 0.1
    assert counts.calls[DURATION_BOUNDS.index(0.1)] < counts.calls[-1]
    assert counts.failures == {}


def test_failed_calls_are_counted_by_code(
    make_client: Callable[..., StatusClient],
    serve: Callable[[Callable[[grpc.ServicerContext], bytes]], Server],
) -> None:
    """UNAVAILABLE counts each time; UNIMPLEMENTED once, as there are no more calls."""
    nobody, old = (
        backend_at("127.0.0.1:1"),
        backend_at(serve(abort(grpc.StatusCode.UNIMPLEMENTED)).address),
    )
    client = make_client()
    for _ in range(2):
        client.status(nobody)
        client.status(old)
    assert [counts and counts.failures for counts in map(client.counts, (nobody, old))] == [
        {"UNAVAILABLE": 2},
        {"UNIMPLEMENTED": 1},
    ]


def test_call_that_readers_gave_up_counts_as_one_failure(
    make_client: Callable[..., StatusClient], spawner: Spawner
) -> None:
    """It counts when the first reader gives up, and not again when the call fails in the end."""
    running, client = spawner.backend(), make_client(0.2)
    backend = backend_at(running.address)
    suspend(running.pid)
    for _ in range(2):
        assert client.status(backend).rpc_error == "DEADLINE_EXCEEDED"
    os.kill(running.pid, signal.SIGKILL)
    eventually(lambda: (counts := client.counts(backend)) and counts.calls[-1])
    assert (counts := client.counts(backend))
    assert counts.failures == {"DEADLINE_EXCEEDED": 1}


def test_the_counts_of_a_backend_that_is_gone_are_dropped(
    make_client: Callable[..., StatusClient],
) -> None:
    """`close_connection` drops them."""
    client = make_client()
    client.status(backend_at("127.0.0.1:1"))
    assert client.counts(backend_at("127.0.0.1:1"))
    client.close_connection(backend_at("127.0.0.1:1"))
    assert client.counts(backend_at("127.0.0.1:1")) is None
