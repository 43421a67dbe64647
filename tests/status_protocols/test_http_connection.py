"""Requests by HTTP to servers that lie, stall, stop and go away."""

from __future__ import annotations

import contextlib
import gzip
import socket
import socketserver
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trustme

from monitor_plugin import Settings
from monitor_plugin.rpc.channels import ChannelSecurity
from monitor_plugin.status_protocols.http_connection import MAX_BODY_BYTES, ServerConnection
from monitor_plugin.status_protocols.protocol import NoStatus

from ..support import foreign_server, free_port, sends

Handler = type[socketserver.BaseRequestHandler]

OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


def answer(body: bytes, head: bytes = OK) -> bytes:
    return head + b"Content-Length: %d\r\n\r\n" % len(body) + body


def drips(first: bytes, drop: bytes) -> Handler:
    """A server that sends `first`, and then `drop` without end."""

    class Drip(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with contextlib.suppress(OSError):
                self.request.recv(65536)
                self.request.sendall(first)
                while True:
                    self.request.sendall(drop)
                    if len(drop) < 100:
                        time.sleep(0.02)

    return Drip


def answers(*contents: bytes, closes_after: int = 10**9) -> Handler:
    """A server that answers the requests of each connection one after the other."""

    class Answers(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with contextlib.suppress(OSError):
                for number, content in enumerate(contents):
                    if number == closes_after or not self.request.recv(65536):
                        return
                    self.request.sendall(content)
                self.request.recv(65536)

    return Answers


def connect(address: str, tls: ssl.SSLContext | None = None) -> ServerConnection:
    return ServerConnection(address, tls, lambda: None)


def get(address: str, seconds: float = 30.0, tls: ssl.SSLContext | None = None) -> bytes:
    connection = connect(address, tls)
    try:
        return connection.get("/x", time.monotonic() + seconds, {}).body
    finally:
        connection.close()


@pytest.mark.parametrize(
    ("handler", "code", "says"),
    [
        (drips(OK + b"\r\n", b"x" * 65536), "RESOURCE_EXHAUSTED", "more than 4 MiB"),
        (
            sends(answer(b"x" * (MAX_BODY_BYTES + 1))),
            "RESOURCE_EXHAUSTED",
            "more than 4 MiB",
        ),
        (drips(OK + b"\r\n", b"x"), "DEADLINE_EXCEEDED", "in time"),
        (drips(OK, b"A"), "DEADLINE_EXCEEDED", "in time"),
        (drips(OK + b"X: ", b"\r\n A"), "DEADLINE_EXCEEDED", "in time"),
        (
            drips(CHUNKED, b"1\r\nx\r\n"),
            "DEADLINE_EXCEEDED",
            "in time",
        ),
        (
            drips(CHUNKED + b"0\r\n", b"A: b\r\n"),
            "DEADLINE_EXCEEDED",
            "in time",
        ),
        (drips(b"", CONTINUE), "DEADLINE_EXCEEDED", "in time"),
        (sends(b"", closes=False), "DEADLINE_EXCEEDED", "in time"),
        (sends(b""), "UNAVAILABLE", "closed the connection"),
        (sends(answer(b"12345")[:-2]), "UNAVAILABLE", "closed the connection"),
        (
            sends(answer(gzip.compress(bytes(50 << 20)), OK + b"Content-Encoding: gzip\r\n")),
            "INTERNAL",
            "compressed",
        ),
        (sends(b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n", first=True), "UNAVAILABLE", "speak HTTP"),
        (sends(b"\x15\x03\x01\x00\x02\x02\x16"), "UNAVAILABLE", "speak HTTP"),
        (drips(OK, b"A: b\r\n" * 200), "INTERNAL", "malformed HTTP"),
        (sends(OK + b"X: " + b"x" * 70_000 + b"\r\n\r\n"), "INTERNAL", "malformed HTTP"),
        (sends(OK + b"no header\r\n\r\n"), "INTERNAL", "malformed HTTP"),
        (sends(OK), "UNAVAILABLE", "closed the connection"),
        (sends(OK + b"Conte"), "UNAVAILABLE", "closed the connection"),
        (sends(CHUNKED + b"zz\r\n", closes=False), "INTERNAL", "malformed HTTP"),
        (sends(CHUNKED + b"-5\r\nhello\r\n"), "INTERNAL", "malformed HTTP"),
        (drips(CHUNKED + b"-1\r\n", b"x" * 65536), "RESOURCE_EXHAUSTED", "more than"),
        (drips(CHUNKED, b"1\r\nx\r\n" * 100), "RESOURCE_EXHAUSTED", "more than"),
        (drips(CHUNKED + b"0\r\n", b"A: b\r\n" * 100), "RESOURCE_EXHAUSTED", "more than"),
        (drips(b"", CONTINUE * 100), "RESOURCE_EXHAUSTED", "more than"),
    ],
    ids=[
        "endless body",
        "large body",
        "dripping body",
        "dripping header",
        "endless header",
        "dripping chunks",
        "endless trailers",
        "endless continue",
        "silent",
        "closed",
        "closed in the body",
        "compressed",
        "ssh",
        "TLS",
        "too many headers",
        "long header",
        "malformed header",
        "closed after a header",
        "closed in a header",
        "malformed chunks",
        "chunk of -5 bytes",
        "chunk of -1 bytes",
        "small chunks without end",
        "fast trailers without end",
        "fast continue without end",
    ],
)
def test_a_bad_answer_is_a_named_error_within_the_deadline(
    handler: Handler, code: str, says: str, caplog: pytest.LogCaptureFixture
) -> None:
    """No server holds a request longer than its deadline, or fills the memory or the log."""
    with foreign_server(handler) as server:
        started = time.monotonic()
        seconds = 0.5 if code == "DEADLINE_EXCEEDED" else 30.0
        with pytest.raises(NoStatus) as failure:
            get(f"http://{server.address}", seconds)
        assert (failure.value.rpc_error, says in failure.value.text) == (code, True)
        assert time.monotonic() - started < 20
        assert not [each for each in caplog.records if each.levelname != "DEBUG"]


@pytest.mark.parametrize(
    "content",
    [
        answer(b"body"),
        b"HTTP/1.0 200 OK\r\n\r\nbody",
        CHUNKED + b"2\r\nbo\r\n2\r\ndy\r\n0\r\n\r\n",
        OK + b"Content-Length: 9\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n",
        answer(b"body", OK + b"Content-Encoding: identity\r\n"),
    ],
    ids=["length", "until the end", "chunks", "chunks and length", "identity"],
)
def test_each_form_of_a_body_is_read(content: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """The body is whole, and without its framing."""
    with foreign_server(sends(content)) as server:
        assert get(f"http://{server.address}") == b"body"
    assert not [each for each in caplog.records if each.levelname != "DEBUG"]


def test_statuses_are_answers_and_redirects_are_not_followed() -> None:
    """A redirect could lead the token of a backend to another machine."""
    for status in (302, 401, 404, 500, 503):
        head = b"HTTP/1.1 %d X\r\nLocation: http://127.0.0.1:1/\r\n" % status
        with foreign_server(sends(answer(b"", head))) as server:
            connection = connect(f"http://{server.address}")
            assert connection.get("/", time.monotonic() + 30, {}).status == status
            connection.close()
            assert server.connections == 1


def test_one_connection_is_kept_and_made_again_when_the_server_has_closed_it() -> None:
    """A server may close a kept connection at any time, also at the moment of a request."""
    for handler, connections in (
        (answers(*[answer(b"1")] * 4), 1),
        (answers(answer(b"1")), 4),  # closes at the next request
        (sends(answer(b"1")), 4),  # closes at once
        (sends(b"HTTP/1.0 200 OK\r\n\r\n1"), 4),
    ):
        with foreign_server(handler) as server:
            connection = connect(f"http://{server.address}")
            for _ in range(4):
                assert connection.get("/", time.monotonic() + 30, {}).body == b"1"
            connection.close()
            assert server.connections == connections


def test_a_server_that_closes_every_connection_gets_no_third_request() -> None:
    """A request is made again once, and only if its connection had been kept."""
    with foreign_server(sends(b"")) as server:
        with pytest.raises(NoStatus):
            get(f"http://{server.address}")
        assert server.connections == 1


def test_nothing_accepts_connections() -> None:
    """The error is that of a refused connection, and the server has not answered."""
    with pytest.raises(NoStatus) as failure:
        get(f"http://127.0.0.1:{free_port()}")
    assert (failure.value.rpc_error, failure.value.answered) == ("UNAVAILABLE", False)


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
@pytest.mark.parametrize("address", ["http://localhost:{}", "http://*:{}", "http://0.0.0.0:{}"])
def test_localhost_is_both_addresses(family: socket.AddressFamily, address: str) -> None:
    """A server may listen at one of them only."""
    host = "::1" if family == socket.AF_INET6 else "127.0.0.1"
    with socket.create_server((host, 0), family=family) as listener:
        done = threading.Thread(target=_answer_once, args=(listener,))
        done.start()
        assert get(address.format(listener.getsockname()[1])) == b"1"
        done.join()


def _answer_once(listener: socket.socket) -> None:
    accepted, _ = listener.accept()
    with accepted:
        accepted.recv(65536)
        accepted.sendall(answer(b"1"))


def test_a_request_has_the_prefix_and_the_headers_and_no_proxy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A proxy in the environment would get the calls to loopback addresses, and their token."""
    seen = []

    class Keep(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            seen.append(self.request.recv(65536).decode())
            self.request.sendall(answer(b""))

    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    with foreign_server(Keep) as server:
        connection = connect(f"http://{server.address}/api/")
        connection.get("/health", time.monotonic() + 30, {"authorization": "Bearer s3cret"})
        connection.close()
    first, *headers = seen[0].lower().split("\r\n")
    assert first == "get /api/health http/1.1"
    assert "authorization: bearer s3cret" in headers
    assert "accept-encoding: identity" in headers
    assert f"host: {server.address}" in headers


def test_closing_ends_a_request_in_flight() -> None:
    """The thread of the request does not wait for its deadline."""
    with foreign_server(sends(b"", closes=False)) as server:
        connection = connect(f"http://{server.address}")
        failures: list[NoStatus] = []

        def request() -> None:
            with pytest.raises(NoStatus) as failure:
                connection.get("/", time.monotonic() + 60, {})
            failures.append(failure.value)

        thread = threading.Thread(target=request)
        thread.start()
        while not server.connections:
            time.sleep(0.01)
        connection.close()
        thread.join(30)
        assert [each.rpc_error for each in failures] == ["CANCELLED"]


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def tls(authority: trustme.CA, tmp_path: Path) -> Callable[[str], ssl.SSLContext | None]:
    """Returns the context for an address, which trusts the authority."""
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    return ChannelSecurity(Settings(grpc_ca_file=str(tmp_path / "ca.pem"))).http_tls


@contextlib.contextmanager
def tls_server(authority: trustme.CA, *names: str) -> Iterator[int]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names).configure_cert(context)

    class Serve(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with contextlib.suppress(OSError), self._wrap() as wrapped:
                wrapped.recv(65536)
                wrapped.sendall(answer(b"secure"))

        def _wrap(self) -> ssl.SSLSocket:
            return context.wrap_socket(self.request, server_side=True)

    with foreign_server(Serve) as server:
        yield server.server_address[1]


def test_tls_verifies_the_certificate_and_the_name(
    authority: trustme.CA,
    tls: Callable[[str], ssl.SSLContext | None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Another authority, another name, and a server without TLS are faults of TLS."""
    with tls_server(authority, "127.0.0.1") as port:
        address = f"https://127.0.0.1:{port}"
        assert get(address, tls=tls(address)) == b"secure"
        with pytest.raises(NoStatus, match=r"TLS handshake: .*mismatch.*localhost"):
            get(f"https://localhost:{port}", tls=tls(address))
        with pytest.raises(NoStatus, match=r"TLS handshake: .*certificate") as failure:
            get(address, tls=ChannelSecurity(Settings()).http_tls(address))
        assert failure.value.rpc_error == "UNAVAILABLE"
        with pytest.raises(NoStatus, match=r"does not speak HTTP|closed the connection"):
            get(f"http://127.0.0.1:{port}")
    with tls_server(authority, "localhost") as port:
        assert get(f"https://localhost:{port}", tls=tls("https://localhost:1")) == b"secure"
    with foreign_server(sends(answer(b"1"))) as server:
        address = f"https://{server.address}"
        with pytest.raises(NoStatus, match="TLS handshake"):
            get(address, tls=tls(address))
    with foreign_server(sends(b"", closes=False)) as server:
        address = f"https://{server.address}"
        with pytest.raises(NoStatus, match="in time") as failure:
            get(address, 0.3, tls=tls(address))
        assert failure.value.rpc_error == "DEADLINE_EXCEEDED"
    with foreign_server(sends(b"")) as server:
        address = f"https://{server.address}"
        with pytest.raises(NoStatus) as failure:
            get(address, tls=tls(address))
        assert failure.value.rpc_error == "UNAVAILABLE"
    assert not [each for each in caplog.records if each.levelname != "DEBUG"]
