"""The choice of a backend's protocol, and readings of servers that speak HTTP."""

from __future__ import annotations

import gc
import os
import signal
import socketserver
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from monitor_plugin import Monitor, Settings, State
from monitor_plugin.concurrency.blocking import BlockingObserver
from monitor_plugin.domain.models import Backend
from monitor_plugin.rpc.channels import ChannelSecurity
from monitor_plugin.rpc.client import StatusClient
from monitor_plugin.status_protocols.protocol import NoStatus
from monitor_plugin.status_protocols.transports import HttpTransport, Transports

from ..recorded_servers import NOT_FOUND, ModelServer, Reply, json_reply, recorded, text_reply
from ..support import Spawner, eventually, foreign_server, free_port, logged, register

LOADING = json_reply({"error": {"message": "Loading model", "code": 503}}, 503)
HTML = Reply(200, "text/html", b"<html></html>")


@pytest.fixture
def make_client() -> Iterator[Callable[..., StatusClient]]:
    """Makes status clients that know all protocols, and closes them."""
    clients = []

    def make(timeout: float = 30, token: str | None = None, **settings: object) -> StatusClient:
        made = Settings(**settings)  # type: ignore[arg-type]
        security = ChannelSecurity(made)
        metadata = {"authorization": token} if token else {}
        choose = Transports(made, security).choose
        client = StatusClient(
            timeout, lambda backend: metadata, security, BlockingObserver(), choose
        )
        clients.append(client)
        return client

    yield make
    for client in clients:
        client.close()


def at(server: ModelServer, model: str = "tiny", pid: int = 1) -> Backend:
    return Backend(model, pid, f"http://127.0.0.1:{server.port}", 1.0)


def test_a_server_is_found_out_once_and_read_by_its_own_routes(
    server: ModelServer, make_client: Callable[..., StatusClient]
) -> None:
    """Detection and the first reading request no path twice; later readings detect nothing."""
    server.replies = recorded("llama.cpp", "busy")
    client = make_client()
    outcome = client.status(at(server))
    assert (outcome.protocol, outcome.source, outcome.answered) == ("llama.cpp", "http", True)
    assert outcome.status
    assert outcome.status.state == State.BUSY
    assert outcome.status.requests_running
    first = list(server.requests)
    assert len(first) == len(set(first))
    server.requests.clear()
    assert client.status(at(server)).protocol == "llama.cpp"
    assert len(server.requests) <= len(first)


def test_a_server_that_loads_is_uninitialized_and_found_out_later(
    server: ModelServer, make_client: Callable[..., StatusClient]
) -> None:
    """503 to everything is loading; a gateway's 502 is a server that is not reachable yet."""
    client = make_client()
    for status in (502, 503, 504):
        server.replies = {"any-route": Reply(status, "text/html", b"<html>")}
        outcome = client.status(at(server))
        assert (outcome.rpc_error, outcome.answered) == ("UNAVAILABLE", False)
    server.replies = {"any-route": Reply(503, "", b"")}
    outcome = client.status(at(server))
    assert outcome.status
    assert (outcome.status.state, outcome.protocol) == (State.UNINITIALIZED, None)
    server.replies = recorded("vllm", "ready")
    outcome = client.status(at(server))
    assert outcome.status
    assert (outcome.status.state, outcome.protocol) == (State.READY, "vllm")


@pytest.mark.parametrize(
    ("reply", "code", "says"),
    [
        (NOT_FOUND, "UNIMPLEMENTED", "speaks HTTP, and none of the protocols"),
        (HTML, "INTERNAL", "HTML"),
        (Reply(302, "text/html", b""), "INTERNAL", "redirect"),
        (Reply(401, "application/json", b"{}"), "UNAUTHENTICATED", "grpc_token_file"),
        (Reply(403, "text/plain", b""), "UNAUTHENTICATED", "grpc_token_file"),
        (Reply(500, "text/plain", b"oops"), "INTERNAL", "answered 500"),
        (Reply(502, "text/html", b"<html>"), "UNAVAILABLE", "answered 502"),
        (Reply(200, "application/json", b"x" * (5 << 20)), "RESOURCE_EXHAUSTED", "4 MiB"),
        (Reply(200, "application/json", b'{"status": NaN}'), "INTERNAL", "malformed JSON"),
        (Reply(200, "application/json", b'{"status": 1}'), "UNIMPLEMENTED", "none of"),
        (Reply(200, "application/json", b"\xff\xfe"), "INTERNAL", "malformed JSON"),
        (Reply(200, "application/json", b"[" * 100_000), "INTERNAL", "malformed JSON"),
        (text_reply('{"data": []}'), "INTERNAL", "'text/plain' instead of"),
        (Reply(200, "", b'{"data": []}'), "INTERNAL", "'' instead of"),
        (Reply(503, "text/html", b"<html>"), "UNAVAILABLE", "answered 503"),
    ],
)
def test_a_server_of_no_protocol_has_a_named_error(
    reply: Reply,
    code: str,
    says: str,
    server: ModelServer,
    make_client: Callable[..., StatusClient],
) -> None:
    """It has answered, unless a gateway has; and a sentence says what."""
    server.replies = {"any-route": reply}
    outcome = make_client().status(at(server))
    assert outcome.rpc_error == code
    assert says in str(outcome.error_text)
    assert outcome.answered == (code != "UNAVAILABLE")


def test_a_server_that_returns_with_another_protocol_is_found_out_again(
    server: ModelServer,
) -> None:
    """Another server may have some routes of the one before; one that has failed stays known."""
    transport = HttpTransport(at(server), None, "any", ChannelSecurity(Settings()), lambda: None)
    for folder, name in (("vllm", "vllm"), ("llama.cpp", "llama.cpp"), ("mlserver", "kserve-http")):
        server.replies = recorded(folder, "ready")
        for _ in range(2):
            link = transport.open()
            assert link.request_status(30, {}).protocol == name
            link.close()
    server.replies = recorded("vllm", "ready")
    link = transport.open()
    assert link.request_status(30, {}).protocol == "vllm"
    server.replies = {"any-route": json_reply({}, 500)}
    link.close()
    link = transport.open()
    outcome = link.request_status(30, {})
    link.close()
    assert outcome.status
    assert (outcome.status.state, outcome.protocol) == (State.ERROR, "vllm")


def test_a_fault_keeps_nothing_of_a_large_answer(
    server: ModelServer, make_client: Callable[..., StatusClient]
) -> None:
    """A kept exception would keep some 50 MiB for each reading, until the collector runs."""
    server.replies = {"any-route": Reply(200, "application/json", b"x" * (5 << 20))}
    client = make_client()
    gc.collect()
    gc.disable()
    try:
        assert client.status(at(server)).rpc_error == "RESOURCE_EXHAUSTED"
        assert not [each for each in gc.get_objects() if isinstance(each, NoStatus)]
    finally:
        gc.enable()


def test_a_server_of_no_protocol_is_asked_again_after_a_pause(
    server: ModelServer,
    make_client: Callable[..., StatusClient],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The log says so once, and readers get the same sentence during the pause."""
    client = make_client()
    outcomes = [client.status(at(server)) for _ in range(3)]
    assert len({each.error_text for each in outcomes}) == 1
    requests = len(server.requests)
    assert client.status(at(server)).rpc_error == "UNIMPLEMENTED"
    assert len(server.requests) == requests
    assert len(logged(caplog)) == 1
    monkeypatch.setattr(
        "monitor_plugin.status_protocols.transports.OTHER_PROTOCOL_PAUSE_SECONDS", 1e-9
    )
    again = at(server, pid=2)
    client.status(again)
    server.replies = recorded("vllm", "ready")
    assert client.status(again).status


def test_a_token_goes_with_each_request(
    server: ModelServer, make_client: Callable[..., StatusClient], caplog: pytest.LogCaptureFixture
) -> None:
    """Invalid headers fail the request, and are not logged."""
    server.replies = recorded("vllm", "ready")
    assert make_client(token="Bearer s3cret").status(at(server)).status
    assert make_client(token="s3cret\nX: y").status(at(server)).rpc_error == "INTERNAL"
    assert "s3cret" not in caplog.text


def test_free_is_not_called_by_http(
    server: ModelServer, make_client: Callable[..., StatusClient]
) -> None:
    """No protocol of HTTP servers frees a model."""
    assert make_client().free(at(server)) == "UNIMPLEMENTED"
    assert not server.requests


def process_with(variable: str) -> subprocess.Popen[bytes]:
    """Start a process with a value of MONITOR_PROTOCOL in its environment."""
    environment = {**os.environ, "MONITOR_PROTOCOL": variable}
    return subprocess.Popen(["/bin/sleep", "60"], env=environment)


@pytest.mark.parametrize(
    ("variable", "setting", "expected"),
    [
        (None, (), "vllm"),
        (None, ("openai",), "openai"),
        (None, ("other-*=sglang", "ti*=openai"), "openai"),
        ("openai", ("sglang",), "openai"),
        ("x=sglang, tiny=openai", (), "openai"),
        ("x=sglang", ("openai",), "openai"),
        ("nonsense", ("openai",), "openai"),
        ("", ("openai",), "openai"),
    ],
)
def test_a_protocol_is_named_by_the_process_or_by_the_setting(
    variable: str | None,
    setting: tuple[str, ...],
    expected: str,
    server: ModelServer,
    make_client: Callable[..., StatusClient],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The process has precedence; a name that is no protocol is logged once, and ignored."""
    server.replies = recorded("vllm", "ready")
    client = make_client(protocol=setting)
    process = process_with(variable) if variable is not None else None
    try:
        for _ in range(2):
            assert client.status(at(server, pid=process.pid if process else 1)).protocol == expected
    finally:
        if process:
            process.kill()
            process.wait()
    assert len(logged(caplog)) == (variable == "nonsense")


@pytest.mark.parametrize(
    ("name", "address"), [("grpc-health", "http://127.0.0.1:1"), ("vllm", "127.0.0.1:1")]
)
def test_a_protocol_that_does_not_fit_the_address_is_an_error(
    name: str,
    address: str,
    make_client: Callable[..., StatusClient],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Nothing is asked, and the log says once why."""
    client = make_client(protocol=(name,))
    for _ in range(3):
        outcome = client.status(Backend("m", 1, address, 1.0))
        assert outcome.rpc_error == "UNIMPLEMENTED"
        assert f"protocol {name!r} is one of" in str(outcome.error_text)
    assert client.free(Backend("m", 1, address, 1.0)) == "UNIMPLEMENTED"
    assert len(logged(caplog)) == 1


@pytest.mark.parametrize("serving", [True, False])
def test_a_protocol_of_grpc_is_asked_by_name(
    serving: bool, make_client: Callable[..., StatusClient]
) -> None:
    """A real server of `grpc.health.v1` has no `Status`, and no `Free`."""
    states = health_pb2.HealthCheckResponse
    servicer = health.HealthServicer()
    servicer.set("", states.SERVING if serving else states.NOT_SERVING)
    server = grpc.server(ThreadPoolExecutor(2))
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        backend = Backend("m", 1, f"127.0.0.1:{port}", 1.0)
        assert make_client().status(backend).rpc_error == "UNIMPLEMENTED"
        client = make_client(protocol=("m=grpc-health",))
        outcome = client.status(backend)
        assert outcome.status
        assert outcome.status.state == (State.READY if serving else State.UNINITIALIZED)
        assert (outcome.source, outcome.protocol) == ("grpc", "grpc-health")
        assert client.free(backend) == "UNIMPLEMENTED"
    finally:
        server.stop(None).wait()


def test_a_url_of_another_machine_needs_tls_or_insecure() -> None:
    """A token, and what users send, would go there in the clear."""
    security = ChannelSecurity(Settings())
    security.check("https://gpu1.example:8000")
    security.check("http://127.0.0.1:8000")
    with pytest.raises(ValueError, match=r"use https://gpu1\.example:8000"):
        security.check("http://gpu1.example:8000")
    ChannelSecurity(Settings(insecure=True)).check("http://gpu1.example:8000")


SERVER = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        found = self.path == "/v1/models"
        body = b'{"object": "list", "data": [{"id": "tiny", "object": "model"}]}' if found else b""
        self.send_response(200 if found else 404)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_): pass
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever(0.05)
"""


def test_a_monitor_reads_stops_and_verifies_a_server_that_speaks_http(
    make_monitor: Callable[..., Monitor],
) -> None:
    """Starting, READY, suspended, READY again, stopped: as a server that speaks gRPC."""
    monitor = make_monitor(status_timeout_seconds=3.0)  # for one reading
    port = free_port()
    address = f"http://localhost:{port}"
    process = subprocess.Popen([sys.executable, "-c", SERVER, str(port)])
    threading.Thread(target=process.wait, daemon=True).start()
    try:
        register(monitor, process.pid, "tiny", address)
        eventually(lambda: monitor.read("tiny").status)
        reading = monitor.read("tiny")
        assert (reading.source, reading.protocol, reading.status_error) == ("http", "openai", None)
        (observation,) = monitor.sweep()
        assert observation.reading
        assert (observation.reading.source, observation.reading.protocol) == ("http", "openai")
        assert observation.served_by == process.pid
        os.kill(process.pid, signal.SIGSTOP)
        eventually(lambda: monitor.read("tiny").rpc_error == "DEADLINE_EXCEEDED")
        hung = monitor.read("tiny")
        assert hung.source == "psutil"
        assert "not answered in time" in str(hung.status_error)
        os.kill(process.pid, signal.SIGCONT)
        eventually(lambda: monitor.read("tiny").status)
        monitor.shutdown("tiny")
        with pytest.raises(ProcessLookupError):
            os.kill(process.pid, 0)
    finally:
        process.kill()
        process.wait()


def test_a_server_that_ends_does_not_wait_long_for_the_monitor(
    make_client: Callable[..., StatusClient],
) -> None:
    """The server answers no more, and ends once its clients have closed their connections."""
    closed = threading.Event()

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            while self.request.recv(65536):
                pass
            closed.set()

    with foreign_server(Handler) as server:
        backend = Backend("tiny", 1, f"http://{server.address}", 1.0)
        outcome = make_client(timeout=0.1).status(backend)
        assert outcome.rpc_error == "DEADLINE_EXCEEDED"
        assert closed.wait(20)  # a call by gRPC lasts 30 s


def test_another_process_at_the_port_is_not_believed(
    monitor: Monitor, spawner: Spawner, server: ModelServer
) -> None:
    """The server is the test's own process, and no member of the backend."""
    server.replies = recorded("vllm", "ready")
    sleeper = spawner.sleeper()
    register(monitor, sleeper.pid, "tiny", f"http://127.0.0.1:{server.port}")
    reading = monitor.read("tiny")
    assert reading.status is None
    assert reading.address_owner
    assert reading.address_owner.pid == os.getpid()
    assert not server.requests
