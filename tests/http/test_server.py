"""The server: whom it believes, and which connections it keeps, with small applications."""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from waitress.channel import HTTPChannel

from monitor_plugin import Settings
from monitor_plugin.concurrency.blocking import BlockingObserver
from monitor_plugin.domain.errors import SettingsError
from monitor_plugin.http.server import connections
from monitor_plugin.http.server.channel import Channel
from monitor_plugin.http.server.dispatcher import Dispatcher
from monitor_plugin.http.server.server import Server

from ..support import Client, Spawner, descriptors, eventually, free_port, logged

GET = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\n"
MakeServer = Callable[..., Server]


def show(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    """An application that answers with its environment."""
    seen = {key: value for key, value in environ.items() if isinstance(value, str)}
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps(seen).encode()]


class SlowApp:
    """An application whose answers wait for an event, except those of `/quick`."""

    def __init__(self) -> None:
        self.begun = threading.Semaphore(0)
        self.go = threading.Event()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> list[bytes]:
        if environ["PATH_INFO"] != "/quick":
            self.begun.release()
            self.go.wait(60)
        return show(environ, start_response)


class LargeAnswerApp:
    """An application whose answers are larger than the buffers of any socket."""

    def __init__(self) -> None:
        self.ended = 0

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [("Content-Length", str(64 * 1024 * 1024))])

        def body() -> Iterator[bytes]:
            try:
                for _ in range(64):
                    yield b"x" * 1024 * 1024
            finally:
                self.ended += 1

        return body()


@pytest.fixture
def make_server() -> Iterator[MakeServer]:
    """Makes servers on free ports; settings are passed by name."""
    servers: list[Server] = []

    def make(
        app: Any = show, listen: str = "127.0.0.1:0", idle_seconds: float = 60, **settings: Any
    ) -> Server:
        settings = {"http_threads": 2, **settings}
        servers.append(
            Server(app, listen, Settings(**settings), BlockingObserver(), idle_seconds=idle_seconds)
        )
        return servers[-1]

    yield make
    for server in servers:
        server.close()


@pytest.fixture(autouse=True)
def _nothing_is_logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """The server logs nothing, whatever clients do."""
    with caplog.at_level(logging.WARNING):
        yield
    assert logged(caplog) == []


def recording_send(record: Callable[[bytes], object]) -> Callable[..., int]:
    """Make a `Channel.send` that calls a function with the data before it sends them."""
    send = Channel.send

    def recording(channel: Channel, data: bytes, do_close: bool = True) -> int:
        record(data)
        return send(channel, data, do_close)

    return recording


def connect(server: Server, data: bytes = b"") -> socket.socket:
    client = Client(server.url)
    connection = socket.create_connection((client.host, client.port), timeout=60)
    connection.sendall(data)
    return connection


def is_closed(connection: socket.socket) -> bool:
    """Whether the server has closed the connection; reads and drops what the server has sent."""
    connection.setblocking(False)
    try:
        while True:
            if not connection.recv(1024 * 1024):
                return True
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True


def threads() -> set[int]:
    """Count the threads of servers, as a set of numbers: a thread may have replaced another one."""
    return set(range(sum(each.name.startswith("monitor-http") for each in threading.enumerate())))


def resources() -> set[object]:
    """Collect the threads of servers (by number) and the open descriptors."""
    return {*threads(), *descriptors()}


def leaked(before: set[object]) -> set[object]:
    """Collect what is there beyond `before`; wait up to a minute until that is nothing."""
    with contextlib.suppress(AssertionError):
        eventually(lambda: not resources() - before)
    return resources() - before


SPOOFED = {
    "X-Forwarded-For": "203.0.113.7",
    "X-Forwarded-Host": "evil.example",
    "X-Forwarded-Proto": "https",
    "X-Forwarded-Port": "444",
    "X-Forwarded-By": "evil",
    "Forwarded": "for=203.0.113.8;host=evil.example;proto=https",
}


@pytest.mark.parametrize(
    ("listen", "trusted_proxy", "seen"),
    [
        ("127.0.0.1:0", None, "127.0.0.1"),
        ("127.0.0.1:0", "127.0.0.2", "127.0.0.1"),
        ("127.0.0.1:0", "unix", "127.0.0.1"),
        ("127.0.0.1:0", "127.0.0.1", "203.0.113.7"),
        ("127.0.0.1:0", "::ffff:127.0.0.1", "203.0.113.7"),
        ("[::1]:0", "::1", "203.0.113.7"),
        ("[::1]:0", "[::1]", "203.0.113.7"),
        ("[::1]:0", "0:0:0:0:0:0:0:1", "203.0.113.7"),
        ("[::ffff:127.0.0.1]:0", "127.0.0.1", "203.0.113.7"),
        ("[::ffff:127.0.0.1]:0", None, "127.0.0.1"),
        ("unix", None, "localhost"),
        ("unix", "127.0.0.1", "localhost"),
        ("unix", "unix", "203.0.113.7"),
    ],
)
def test_only_the_trusted_proxy_sets_the_client_address(
    listen: str, trusted_proxy: str | None, seen: str, make_server: MakeServer, tmp_path: Path
) -> None:
    """`X-Forwarded-For` counts from that peer alone; the others change nothing, from anybody."""
    listen = f"unix:{tmp_path}/m.sock" if listen == "unix" else listen
    client = Client(make_server(listen=listen, trusted_proxy=trusted_proxy).url)
    plain = client.request("GET", "/").json
    spoofed = client.request("GET", "/", headers=SPOOFED).json
    assert spoofed.pop("REMOTE_ADDR") == seen
    assert spoofed.pop("REMOTE_HOST") == seen
    for answer in (plain, spoofed):
        for name in ("REMOTE_ADDR", "REMOTE_HOST", "REMOTE_PORT", "HTTP_X_FORWARDED_FOR"):
            answer.pop(name, None)
    assert spoofed == plain


def test_the_last_forwarded_address_counts(make_server: MakeServer) -> None:
    """What the client put before the trusted proxy's word is not believed."""
    client = Client(make_server(trusted_proxy="127.0.0.1").url)
    headers = {"X-Forwarded-For": "198.51.100.1, 203.0.113.7"}
    assert client.request("GET", "/", headers=headers).json["REMOTE_ADDR"] == "203.0.113.7"


@pytest.mark.parametrize(
    "trusted_proxy", ["*", "proxy.example", "localhost", "127.0.0.0/8", "", "[127.0.0.1"]
)
def test_a_trusted_proxy_is_one_address(trusted_proxy: str) -> None:
    """Whatever is neither an IP address nor `unix` is refused; `*` would trust everybody."""
    before = resources()
    with pytest.raises(SettingsError, match="is neither an IP address"):
        Server(show, "127.0.0.1:0", Settings(trusted_proxy=trusted_proxy), BlockingObserver())
    assert not resources() - before


def test_over_a_unix_socket_the_port_is_a_number(make_server: MakeServer, tmp_path: Path) -> None:
    """An application that makes a URL of SERVER_PORT does not stumble over a path."""
    client = Client(make_server(listen=f"unix:{tmp_path}/m.sock").url)
    assert client.request("GET", "/").json["SERVER_PORT"] == "0"


def test_quiet_connections_are_closed(make_server: MakeServer) -> None:
    """Idle from the start or after an answer, trickling or not reading: after a while it ends."""
    server = make_server(idle_seconds=0.5)
    started = time.monotonic()
    idle, answered = connect(server), connect(server, GET)
    trickling = connect(server, POST + b"Content-Length: 1000000\r\n\r\n")
    with contextlib.ExitStack() as stack:
        for each in (idle, answered, trickling):
            stack.enter_context(each)
        assert answered.recv(65536).startswith(b"HTTP/1.1 200")

        def trickle() -> bool:
            with contextlib.suppress(OSError):
                trickling.send(b"x")
            return is_closed(trickling)

        eventually(trickle)
        eventually(lambda: is_closed(idle) and is_closed(answered))
        assert time.monotonic() - started >= 0.5


@pytest.mark.slow
def test_a_client_that_asks_in_time_keeps_its_connection(make_server: MakeServer) -> None:
    """Each answer starts the wait anew."""
    server = make_server(idle_seconds=6)
    with contextlib.closing(Client(server.url).connection()) as connection:
        connection.connect()
        kept, started = connection.sock, time.monotonic()
        while time.monotonic() - started < 8:
            connection.request("GET", "/")
            assert connection.getresponse().read()
            assert connection.sock is kept
            time.sleep(0.5)


def test_a_request_that_takes_long_is_not_cut_off(make_server: MakeServer) -> None:
    """While it is being answered a connection is not idle, however long it takes."""
    app = SlowApp()
    server = make_server(app, idle_seconds=2)
    with connect(server, GET) as waiting, connect(server) as idle:
        assert app.begun.acquire(timeout=60)
        eventually(lambda: is_closed(idle))
        with connect(server) as another:
            eventually(lambda: is_closed(another))
        app.go.set()
        waiting.settimeout(60)
        assert waiting.recv(65536).startswith(b"HTTP/1.1 200")


def test_an_unread_answer_does_not_keep_its_thread(
    make_server: MakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that takes nothing of an answer that is being written is closed."""
    monkeypatch.setattr(connections, "_STALLED_SECONDS", 0.3)
    app = LargeAnswerApp()
    server = make_server(app)
    with contextlib.ExitStack() as stack:
        deaf = [stack.enter_context(connect(server, GET * 2)) for _ in range(4)]
        eventually(lambda: app.ended >= 4)
        monkeypatch.setattr(connections, "_STALLED_SECONDS", 60.0)  # of who reads slowly
        with connect(server, GET) as reading:
            size = 0
            while size < 64 * 1024 * 1024:
                data = reading.recv(1024 * 1024)
                assert data
                size += len(data)
        assert len(deaf) == 4


class AgingApp:
    """An application that takes an hour, by the clock of the connections, for each part of a body.

    It makes all connections quiet for an hour instead of taking the time.
    """

    def __init__(self) -> None:
        self.channels: Iterable[Channel] = ()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [("Content-Length", "10")])
        for part in (b"first", b" last"):
            for channel in self.channels:
                channel.quiet_since -= 3600
            yield part


@pytest.mark.parametrize(
    ("sent", "answers"),
    [
        pytest.param(GET, [b"first last"], id="first request"),
        pytest.param(GET * 3, [b"first last"] * 3, id="pipelined requests"),
        pytest.param(GET.replace(b"1.1", b"1.0"), [b"first last"], id="closed after the answer"),
        pytest.param(
            POST + b"Content-Length: 1\r\nExpect: 100-continue\r\n\r\nx",
            [b"HTTP/1.1 100 Continue", b"first last"],
            id="100 Continue",
        ),
        pytest.param(b"GET / HTTP/7\r\n\r\n", [b"400 Bad Request"], id="refused request"),
    ],
)
@pytest.mark.parametrize("was_quiet", [False, True])
def test_an_answer_that_took_long_is_sent(
    sent: bytes,
    answers: list[bytes],
    was_quiet: bool,
    make_server: MakeServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The connection is not closed between the moment when a part is ready, and its first byte."""
    evictions, closed = [], []
    evict, handle_close = connections.Connections.evict, Channel.handle_close

    def counting_evict(self: connections.Connections) -> float:
        evictions.append(self)
        return evict(self)

    def recording_close(channel: Channel) -> None:
        closed.append(channel)
        handle_close(channel)

    def sweep(data: bytes) -> None:
        """Hold the request thread, which is about to send, until the loop has looked twice."""
        if threading.current_thread().name == "monitor-http":
            return
        seen = len(evictions)
        server._connections._next_sweep = 0.0
        server._server.pull_trigger()
        eventually(lambda: closed or answered.is_set() or len(evictions) > seen + 1)

    answered = threading.Event()  # and nothing that is sent afterwards is held
    app = AgingApp()
    server = make_server(app)
    channels = server._connections._channels
    with connect(server) as connection:
        (channel,) = eventually(lambda: list(channels.values()))
        if was_quiet:
            channel.quiet_since -= 20  # less than `idle_seconds`, more than a reader may pause
        app.channels = [channel]
        monkeypatch.setattr(connections.Connections, "evict", counting_evict)
        monkeypatch.setattr(Channel, "handle_close", recording_close)
        monkeypatch.setattr(Channel, "send", recording_send(sweep))
        connection.sendall(sent)
        received = b""
        while sum(map(received.count, set(answers))) < len(answers):
            data = connection.recv(65536)
            assert data, f"the connection was closed after {received!r}"
            received += data
        answered.set()
    assert evictions


def test_the_quietest_connections_are_evicted(
    make_server: MakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the limit those quiet for longest go, and none whose request is being answered."""
    monkeypatch.setattr(connections, "max_connections", lambda: 16)
    app = SlowApp()
    server = make_server(app, http_threads=4)
    quick = GET.replace(b"GET /", b"GET /quick")
    with contextlib.ExitStack() as stack:
        busy = [stack.enter_context(connect(server, GET)) for _ in range(2)]
        for _ in busy:
            assert app.begun.acquire(timeout=60)
        first = [stack.enter_context(connect(server)) for _ in range(5)]
        active = stack.enter_context(connect(server))
        later = [stack.enter_context(connect(server)) for _ in range(5)]
        time.sleep(2 * connections._GRACE_SECONDS)
        active.sendall(quick)
        assert active.recv(65536).startswith(b"HTTP/1.1 200")
        for _ in range(5):
            later.append(stack.enter_context(connect(server, quick)))
            assert later[-1].recv(65536).startswith(b"HTTP/1.1 200")
        eventually(lambda: sum(is_closed(each) for each in first) >= 4)
        assert not any(is_closed(each) for each in [active, *later, *busy])
        app.go.set()
        for each in busy:
            each.settimeout(60)
            assert each.recv(65536).startswith(b"HTTP/1.1 200")


def test_new_connections_wait_while_all_are_being_answered(
    make_server: MakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No answer is given up for a new connection, which is served when one has ended."""
    monkeypatch.setattr(connections, "max_connections", lambda: 4)
    app = SlowApp()
    server = make_server(app, http_threads=8)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connect(server, GET)) for _ in range(6)]
        for _ in range(4):
            assert app.begun.acquire(timeout=60)
        assert not app.begun.acquire(timeout=0.5)
        app.go.set()
        for each in clients:
            assert each.recv(65536).startswith(b"HTTP/1.1 200")


def test_slow_senders_occupy_no_thread(make_server: MakeServer) -> None:
    """However many requests come byte by byte, there are as many threads as without them."""
    server = make_server()
    before = threads()
    data = POST + b"Content-Length: 100\r\n\r\n" + b"x" * 50
    with contextlib.ExitStack() as stack:
        tricklers = [stack.enter_context(connect(server)) for _ in range(100)]
        for byte in range(len(data)):
            for each in tricklers:
                each.sendall(data[byte : byte + 1])
        assert Client(server.url).request("GET", "/").status == 200
        assert not threads() - before
        for each in tricklers:
            each.sendall(b"x" * 50)
        for each in tricklers:
            assert each.recv(65536).startswith(b"HTTP/1.1 200")


def test_the_largest_unfinished_bodies_are_evicted(
    make_server: MakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bodies that never come whole take a bounded memory; a small one is not given up for them."""
    monkeypatch.setattr(connections, "_MAX_BUFFERED_BYTES", 4 * 1024 * 1024)
    server = make_server()
    with contextlib.ExitStack() as stack:
        small = stack.enter_context(connect(server, POST + b"Content-Length: 2\r\n\r\nx"))
        large = [
            stack.enter_context(connect(server, POST + b"Content-Length: 2000000\r\n\r\n"))
            for _ in range(6)
        ]
        for each in large:
            with contextlib.suppress(ConnectionError):
                each.sendall(b"x" * 1_000_000)
        eventually(lambda: sum(is_closed(each) for each in large) == 2)
        small.sendall(b"x")
        assert small.recv(65536).startswith(b"HTTP/1.1 200")


def test_connections_with_unread_answers_are_evicted(
    make_server: MakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answers that are not read take a bounded memory, and the threads that write them go on."""
    monkeypatch.setattr(connections, "_MAX_BUFFERED_BYTES", 32 * 1024 * 1024)
    app = LargeAnswerApp()
    server = make_server(app)
    with contextlib.ExitStack() as stack:
        for _ in range(6):  # each would hold 16 MiB, and a thread
            stack.enter_context(connect(server, GET))
        eventually(lambda: app.ended >= 5)
        held = [each.buffered_bytes for each in list(server._connections._channels.values())]
        assert sum(held) <= 32 * 1024 * 1024


def test_unfinished_bodies_take_no_descriptors(make_server: MakeServer) -> None:
    """Bodies that have not come whole are kept in memory, so that descriptors are left."""
    server = make_server()
    before = descriptors()
    with contextlib.ExitStack() as stack:
        for _ in range(10):
            data = POST + b"Content-Length: 2000000\r\n\r\n" + b"x" * 1_900_000
            stack.enter_context(connect(server, data))
        channels = server._connections._channels
        eventually(
            lambda: sum(each.buffered_bytes for each in list(channels.values())) == 19_000_000
        )
        eventually(lambda: len(descriptors() - before) == 2 * 10)


@pytest.mark.parametrize(
    "data", [b"", b"GET", GET[:-2], POST + b"Content-Length: 9\r\n\r\nx", GET, GET * 5]
)
@pytest.mark.parametrize("reset", [False, True])
def test_a_client_that_disconnects_leaves_nothing(
    data: bytes, reset: bool, make_server: MakeServer
) -> None:
    """Gone before, within or after a request: no thread, descriptor or word in the log is left."""
    server = make_server()
    before = resources()
    for _ in range(20):
        with connect(server, data) as connection:
            if reset:  # a socket that closes with no time to linger sends a reset
                linger = (1).to_bytes(4, "little") + bytes(4)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    assert Client(server.url).request("GET", "/").status == 200
    assert not leaked(before)


@pytest.mark.parametrize("reset", [False, True])
def test_a_client_that_disconnects_during_an_answer_leaves_nothing(
    reset: bool, make_server: MakeServer
) -> None:
    """The answer that is being written ends, and with it all that it took."""
    app = LargeAnswerApp()
    server = make_server(app)
    before = resources()
    for _ in range(5):
        with connect(server, GET) as connection:
            connection.recv(1024)
            if reset:
                linger = (1).to_bytes(4, "little") + bytes(4)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    eventually(lambda: app.ended == 5)
    assert not leaked(before)


def test_forked_children_keep_no_connection_open(make_server: MakeServer) -> None:
    """They hold copies of its sockets: clients are closed and refused, and the port is free."""
    server = make_server(listen=f"127.0.0.1:{free_port()}", idle_seconds=2)
    with connect(server, GET) as connection, contextlib.ExitStack() as copies:
        eventually(server._connections._channels.values)
        (channel,) = server._connections._channels.values()
        assert channel.socket
        copies.enter_context(channel.socket.dup())
        copies.enter_context(server._listener.socket.dup())
        eventually(lambda: is_closed(connection))
        server.close()
        with pytest.raises(ConnectionRefusedError):
            connect(server)
        again = make_server(listen=server.url.removeprefix("http://"))
        connect(again).close()


def test_only_the_loops_thread_closes_connections(
    make_server: MakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a new one gets the number of one that was ready, and is taken for it."""
    app = SlowApp()
    server = make_server(app)
    closed_by: list[str] = []
    close = Channel.handle_close

    def handle_close(channel: Channel) -> None:
        closed_by.append(threading.current_thread().name)
        close(channel)

    monkeypatch.setattr(Channel, "handle_close", handle_close)
    # The first answer is still sent; `100 Continue` is then written to a closed connection.
    with connect(server, GET + POST + b"Content-Length: 9\r\nExpect: 100-continue\r\n\r\n"):
        assert app.begun.acquire(timeout=60)
    app.go.set()
    eventually(lambda: closed_by)
    eventually(lambda: not server._connections._channels)
    assert set(closed_by) == {"monitor-http"}


def test_the_loop_survives_an_unexpected_error(
    make_server: MakeServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The error is logged once until a round succeeds, and the server goes on to answer."""
    server = make_server()
    resize, fails, rounds = Dispatcher.resize, threading.Event(), []

    def fail_or_resize(dispatcher: Dispatcher) -> float | None:
        if fails.is_set():
            rounds.append(dispatcher)
            raise RuntimeError("can't start new thread")
        return resize(dispatcher)

    monkeypatch.setattr(Dispatcher, "resize", fail_or_resize)
    fails.set()
    eventually(lambda: len(rounds) > 2)
    fails.clear()
    assert Client(server.url).request("GET", "/").status == 200
    assert logged(caplog) == ["the HTTP server failed; trying again"]
    caplog.clear()


def test_closing_ends_threads_that_wait_for_readers() -> None:
    """A client that takes nothing of its answer keeps neither the server nor a thread alive."""
    before = resources()
    app = LargeAnswerApp()
    server = Server(app, "127.0.0.1:0", Settings(), BlockingObserver())
    with connect(server, GET):
        eventually(
            lambda: any(each.buffered_bytes for each in server._connections._channels.values())
        )
        server.close()
        eventually(lambda: app.ended == 1)
    assert not leaked(before)


def test_urgent_data_closes_the_connection(make_server: MakeServer) -> None:
    """No HTTP has any; it neither spins the loop nor fills the log."""
    server = make_server()
    with connect(server) as connection:
        connection.send(b"!", socket.MSG_OOB)
        eventually(lambda: is_closed(connection))


STARVED = """
import os, resource, sys
from monitor_plugin import Settings
from monitor_plugin.http.server.server import Server
from monitor_plugin.concurrency.blocking import BlockingObserver
resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))
def app(environ, start_response):
    start_response("200 OK", [])
    return [b"fine"]
server = Server(app, "127.0.0.1:0", Settings(), BlockingObserver())
host = []
try:
    while True:
        host.append(os.open("/dev/null", os.O_RDONLY))
except OSError:
    for each in host[:5]:
        os.close(each)
print(server.url, flush=True)
sys.stdin.read()
server.close()
"""


def test_clients_connect_although_the_host_takes_all_descriptors(spawner: Spawner) -> None:
    """With none left for a new connection, the quietest one is closed for it."""
    process = spawner.python(STARVED, stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    client = Client(process.stdout.readline().strip())
    with contextlib.ExitStack() as stack:
        for _ in range(20):
            stack.enter_context(socket.create_connection((client.host, client.port)))
        for _ in range(5):
            assert client.request("GET", "/").body == b"fine"
    _, errors = process.communicate(timeout=60)
    assert set(errors.splitlines()) == {
        "no connection is accepted on 127.0.0.1:0 for now: [Errno 24] Too many open files"
    }


def test_an_answer_is_sent_in_one_piece(
    make_server: MakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The head and the body, so that the client wakes up once."""
    sent: list[bytes] = []
    monkeypatch.setattr(Channel, "send", recording_send(sent.append))
    server = make_server()
    assert Client(server.url).request("GET", "/").status == 200
    (answer,) = sent
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert answer.endswith(b"}")


def test_the_loop_does_not_write_while_a_thread_sends(
    make_server: MakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not try to write to that connection again and again, as the system lets it."""
    sending, go, tried = threading.Event(), threading.Event(), []

    def hold(data: bytes) -> None:
        if b"/held" in data:
            sending.set()
            go.wait(60)

    def handle_write(channel: Channel) -> None:
        tried.append(channel)
        HTTPChannel.handle_write(channel)

    monkeypatch.setattr(Channel, "send", recording_send(hold))
    monkeypatch.setattr(Channel, "handle_write", handle_write, raising=False)
    server = make_server()
    connection = connect(server, GET.replace(b"GET /", b"GET /held"))
    assert sending.wait(60)
    for _ in range(3):  # each takes the loop around
        assert Client(server.url).request("GET", "/").status == 200
    held = [each for each in tried if each.has_unread_answer]
    go.set()
    assert connection.recv(65536).startswith(b"HTTP/1.1 200 OK\r\n")
    assert held == []
    connection.close()


def test_a_client_that_reads_late_gets_all(make_server: MakeServer) -> None:
    """The thread that waits for the client to take something goes on once it does."""
    app = LargeAnswerApp()
    server = make_server(app)
    with connect(server, GET) as connection:
        (channel,) = eventually(lambda: list(server._connections._channels.values()))
        watermark = server._server.adj.outbuf_high_watermark
        eventually(lambda: channel.buffered_bytes > watermark and channel._sending)
        assert channel.writable()
        size = 0
        while size < 64 * 1024 * 1024:
            data = connection.recv(1024 * 1024)
            assert data
            size += len(data)
    eventually(lambda: app.ended == 1)


def test_the_loop_sends_immediately_what_a_thread_could_not(
    make_server: MakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told so when the thread is through, not only while it leaves the connection alone."""
    go = threading.Event()

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if environ["PATH_INFO"] == "/":
            return show(environ, start_response)
        start_response("200 OK", [("Content-Length", "11")])
        return (b"first" if turn == 0 else b"%d last" % go.wait(60) for turn in range(2))

    def send(channel: Channel, data: bytes, do_close: bool = True) -> int:
        """Send nothing from the request thread, as if the client had read nothing so far."""
        by_loop = threading.current_thread().name == "monitor-http"
        return original(channel, data, do_close) if by_loop or b"first" not in data else 0

    def write_soon(channel: Channel, data: bytes) -> int:
        """Let the loop make one more pass before the request thread goes on."""
        size = write(channel, data)
        if b"first" in data:
            other.sendall(GET)
            assert other.recv(65536).startswith(b"HTTP/1.1 200 OK\r\n")
        return size

    original, write = Channel.send, HTTPChannel.write_soon
    monkeypatch.setattr(Channel, "send", send)
    monkeypatch.setattr(HTTPChannel, "write_soon", write_soon)
    # Only the trigger wakes the loop before the client's timeout.
    monkeypatch.setattr(connections.Connections, "evict", lambda self: 1000.0)
    monkeypatch.setattr(Dispatcher, "resize", lambda self: 1000.0)
    server = make_server(app)
    with connect(server) as other, connect(server) as connection:
        connection.sendall(GET.replace(b"GET /", b"GET /held"))
        assert connection.recv(65536).endswith(b"first")
        go.set()
        assert connection.recv(65536) == b"1 last"
