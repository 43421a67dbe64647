"""What is no HTTP, or barely: answered with a 4xx or correctly, or closed, and nothing is left."""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import hypothesis
import pytest
from hypothesis import strategies as st
from waitress.adjustments import Adjustments
from waitress.parser import ParsingError

from monitor_plugin import Monitor, Settings
from monitor_plugin.http.server.channel import Parser

from ..support import Client, Spawner, logged

HOST = b"Host: {host}\r\n"
READ = b"GET /backend/monitor?model=m HTTP/1.1\r\n" + HOST
POST = b"POST /backend/monitor HTTP/1.1\r\n" + HOST
BODY = b'{"model": "m"}'
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"


class Answer(NamedTuple):
    status: int
    body: bytes

    @property
    def is_expected(self) -> bool:
        """Whether the status is below 500, or a 5xx that the contract or waitress intends."""
        if self.status == 501:
            return self.body.startswith(b"Not Implemented\r\n\r\nTransfer-Encoding")
        if self.status >= 500:
            kind = json.loads(self.body)["error"]["type"]
            return self.status == 500 and kind == "model_not_loaded"
        return b"Traceback" not in self.body


class Raw:
    """A raw connection to a monitor, where a model `m` is loaded."""

    def __init__(self, client: Client) -> None:
        self._host = f"{client.host}:{client.port}".encode()
        self._socket = socket.create_connection((client.host, client.port), timeout=60)
        self._data = b""

    def close(self) -> None:
        self._socket.close()

    def with_host(self, data: bytes) -> bytes:
        """Replace `{host}` by the monitor's address."""
        return data.replace(b"{host}", self._host)

    def send(self, data: bytes, *, end: bool = False) -> None:
        with contextlib.suppress(ConnectionError):  # it may be closed before all has come
            self._socket.sendall(self.with_host(data))
            if end:
                self._socket.shutdown(socket.SHUT_WR)

    def _receive(self) -> bool:
        try:
            data = self._socket.recv(65536)
        except ConnectionError:
            return False
        self._data += data
        return bool(data)

    def answer(self) -> Answer | None:
        """Read an answer; None if the connection is closed instead."""
        while b"\r\n\r\n" not in self._data:
            if not self._receive():
                return None
        head, _, self._data = self._data.partition(b"\r\n\r\n")
        first, *lines = head.split(b"\r\n")
        version, status = first.split()[:2]
        assert version in (b"HTTP/1.0", b"HTTP/1.1")
        headers = dict(line.lower().split(b": ", 1) for line in lines)
        size = int(headers.get(b"content-length", b"0"))
        while len(self._data) < size:
            assert self._receive(), "an answer was cut off"
        body, self._data = self._data[:size], self._data[size:]
        return Answer(int(status), body)

    def answers(self) -> list[Answer]:
        """Read answers until the connection is closed."""
        return list(iter(self.answer, None))


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    """A client of a monitor with a model `m`, whose backend has no gRPC server."""
    spawner = Spawner()
    with Monitor(Settings(listen="127.0.0.1:0")) as monitor:
        pid = spawner.sleeper().pid
        monitor.hook.monitor_backend_spawned(model="m", pid=pid, address="127.0.0.1:9")
        yield Client(monitor.url)
    spawner.close()


@pytest.fixture(autouse=True)
def _nothing_is_logged(client: Client, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """The server logs nothing, whatever was sent, and answers the next client."""
    with caplog.at_level(logging.WARNING):
        yield
    assert client.monitor("m").status == 200
    assert logged(caplog, "waitress") == []


@pytest.fixture
def connect(client: Client) -> Iterator[Callable[[], Raw]]:
    with contextlib.ExitStack() as stack:
        yield lambda: stack.enter_context(contextlib.closing(Raw(client)))


CLOSED = None
CASES: dict[str, tuple[bytes, list[int | None]]] = {
    # Where a body ends.
    "length and chunks": (POST + b"Content-Length: 3\r\n" + CHUNKED[len(POST) :], [400, CLOSED]),
    "chunks and length": (
        POST + b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n",
        [400, CLOSED],
    ),
    "chunks in HTTP/1.0": (
        READ.replace(b"1.1", b"1.0") + b"Transfer-Encoding: chunked\r\n\r\n",
        [400, CLOSED],
    ),
    "gzip": (POST + b"Transfer-Encoding: gzip\r\n\r\n", [501, CLOSED]),
    "gzip, chunked": (POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n", [501, CLOSED]),
    "chunked, gzip": (POST + b"Transfer-Encoding: chunked, gzip\r\n\r\n", [501, CLOSED]),
    "xchunked": (POST + b"Transfer-Encoding: \x0bchunked\r\n\r\n", [400, CLOSED]),
    "chunks": (CHUNKED + b"e;x=y\r\n" + BODY + b"\r\n0\r\nTrailer: x\r\n\r\n", [200]),
    "a chunk size that is no number": (CHUNKED + b"x\r\n", [400, CLOSED]),
    "a negative chunk size": (CHUNKED + b"-1\r\n", [400, CLOSED]),
    "a chunk size with 0x": (CHUNKED + b"0x1\r\nx\r\n", [400, CLOSED]),
    "an underscore in a chunk size": (CHUNKED + b"1_0\r\nx\r\n", [400, CLOSED]),
    "a chunk that is too long": (CHUNKED + b"1\r\nxy\r\n0\r\n\r\n", [400, CLOSED]),
    "a bad chunk extension": (CHUNKED + b"1;\0\r\nx\r\n", [400, CLOSED]),
    "a chunk extension without an end": (CHUNKED + b"1;" + b"a" * 1200, [400, CLOSED]),
    "a trailer without an end": (CHUNKED + b"0\r\n" + b"a" * 9000, [400, CLOSED]),
    "bare LF after a chunk size": (CHUNKED + b"e\n" + BODY + b"\n0\n\n", [400, CLOSED]),
    "bare LF in a trailer": (CHUNKED + b"0\r\nA: 1\n\n", [400, CLOSED]),
    "a long trailer": (
        CHUNKED + b"e\r\n" + BODY + b"\r\n0\r\nA: " + b"a" * 5000 + b"\r\n\r\n",
        [200],
    ),
    "a negative length": (POST + b"Content-Length: -1\r\n\r\n", [400, CLOSED]),
    "a length with a sign": (POST + b"Content-Length: +1\r\n\r\nx", [400, CLOSED]),
    "an empty length": (POST + b"Content-Length: \r\n\r\n", [400, CLOSED]),
    "a length in letters": (POST + b"Content-Length: 0x1\r\n\r\nx", [400, CLOSED]),
    "two lengths": (POST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nxy", [400, CLOSED]),
    "the same length twice": (POST + b"Content-Length: 1\r\n" * 2 + b"\r\nx", [400, CLOSED]),
    "a huge length": (POST + b"Content-Length: 99999999999999999999\r\n\r\n", [413, CLOSED]),
    "a length no int takes": (POST + b"Content-Length: %b\r\n\r\n" % (b"9" * 5000), [400, CLOSED]),
    "more than a backstop": (POST + b"Content-Length: 2097153\r\n\r\n", [413, CLOSED]),
    # Lines and headers.
    "bare LF": (READ.replace(b"\r\n", b"\n") + b"\n", [400, CLOSED]),
    "bare LF after the first line": (READ.replace(b"\r\n", b"\n", 1) + b"\r\n", [400, CLOSED]),
    "bare LF between headers": (READ + b"A: 1\nB: 2\r\n\r\n", [400, CLOSED]),
    "bare LF at the end": (READ + b"\n", [400, CLOSED]),
    "bare CR": (READ + b"A: 1\rB: 2\r\n\r\n", [400, CLOSED]),
    "a folded header": (READ + b"A: 1\r\n 2\r\n\r\n", [200]),
    "a fold before any header": (b"GET / HTTP/1.1\r\n A: 1\r\n\r\n", [400, CLOSED]),
    "NUL in a value": (READ + b"A: \0\r\n\r\n", [400, CLOSED]),
    "NUL after many spaces": (READ + b"A:%b\0\r\n\r\n" % (b" " * 8000), [400, CLOSED]),
    "DEL in a value": (READ + b"A: \x7f\r\n\r\n", [400, CLOSED]),
    "some spaces": (READ + b"A:%bx\t\r\n\r\n" % (b" " * 60), [200]),
    "many spaces": (READ + b"A:%bx\r\n\r\n" % (b" " * 8000), [400, CLOSED]),
    "many folds": (READ + b"A:%bx\r\n\r\n" % (b"\r\n " * 2000), [400, CLOSED]),
    "NUL in a name": (READ + b"A\0: 1\r\n\r\n", [400, CLOSED]),
    "no colon": (READ + b"A\r\n\r\n", [400, CLOSED]),
    "no name": (READ + b": 1\r\n\r\n", [400, CLOSED]),
    "a space before the colon": (READ + b"A : 1\r\n\r\n", [400, CLOSED]),
    "a header that looks like another": (READ + b"Content_Length: 5\r\n\r\n", [200]),
    "bytes over 0x7f in a value": (READ + b"A: \xff\xfe\r\nCookie: \x80\r\n\r\n", [200]),
    "1,000 headers": (READ + b"A: 1\r\n" * 1000 + b"\r\n", [200]),
    "headers over the limit": (READ + b"A: %b\r\n" % (b"x" * 1000) * 40 + b"\r\n", [431, CLOSED]),
    "a header without an end": (READ + b"A: %b" % (b"x" * 40_000), [431, CLOSED]),
    # The request line.
    "a request line over the limit": (b"GET /%b HTTP/1.1\r\n" % (b"x" * 40_000), [431, CLOSED]),
    "HTTP/0.9": (b"GET /backend/monitor?model=m\r\n\r\n", [400, CLOSED]),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", [400, CLOSED]),
    "HTTP/9.9": (READ.replace(b"1.1", b"9.9") + b"\r\n", [400, CLOSED]),
    "no version": (READ.replace(b"1.1", b"") + b"\r\n", [400, CLOSED]),
    "a long version": (READ.replace(b"1.1", b"1.1.1") + b"\r\n", [400, CLOSED]),
    "a method in small letters": (READ.replace(b"GET", b"get") + b"\r\n", [400, CLOSED]),
    "an unknown method": (READ.replace(b"GET", b"FOO") + b"\r\n", [400]),
    "NUL in the method": (READ.replace(b"GET", b"G\0T") + b"\r\n", [400, CLOSED]),
    "a third word after a long address": (
        READ.replace(b"/", b"http://%b " % (b"1" * 1000), 1) + b"\r\n",
        [400, CLOSED],
    ),
    "no method": (b" / HTTP/1.1\r\n\r\n", [400, CLOSED]),
    "two spaces": (b"GET  / HTTP/1.1\r\n\r\n", [400, CLOSED]),
    "a tab for a space": (b"GET\t/ HTTP/1.1\r\n\r\n", [400, CLOSED]),
    "raw bytes over 0x7f": (READ.replace(b"=m", b"=\xff\xc3\xa9") + b"\r\n", [400, CLOSED]),
    "raw bytes in the path": (READ.replace(b"monitor", b"\x80") + b"\r\n", [400, CLOSED]),
    "overlong UTF-8 in the query": (READ.replace(b"=m", b"=%C0%AF") + b"\r\n", [400]),
    "a surrogate in the query": (READ.replace(b"=m", b"=%ED%A0%80") + b"\r\n", [400]),
    "a cut off percent in the query": (READ.replace(b"=m", b"=m%") + b"\r\n", [500]),
    "NUL in the query": (READ.replace(b"=m", b"=%00") + b"\r\n", [400]),
    "an encoded name": (READ.replace(b"=m", b"=%6D") + b"\r\n", [200]),
    "overlong UTF-8 in the path": (READ.replace(b"monitor", b"%C0%AFx") + b"\r\n", [404]),
    "an absolute target": (READ.replace(b" /", b" http://{host}/") + b"\r\n", [200]),
    "a broken absolute target": (READ.replace(b" /", b" http://[::1/") + b"\r\n", [400, CLOSED]),
    "an asterisk": (b"OPTIONS * HTTP/1.1\r\n" + HOST + b"\r\n", [404]),
    "an authority": (b"CONNECT example.com:443 HTTP/1.1\r\n" + HOST + b"\r\n", [404]),
    "dots": (READ.replace(b"/backend", b"/../backend") + b"\r\n", [404]),
    # What is something else.
    "TLS": (bytes.fromhex("16030100ca010000c60303") + bytes(200), [400, CLOSED]),
    "garbage": (b"\xde\xad\xbe\xef", [400, CLOSED]),
    "words": (b"hello there\r\n\r\n", [400, CLOSED]),
    "empty lines first": (b"\r\n\r\n" + READ + b"\r\n", [200]),
    # Several, and in parts.
    "several at once": ((READ + b"\r\n") * 5, [200] * 5),
    "with bodies": ((POST + b"Content-Length: 14\r\n\r\n" + BODY) * 3, [200] * 3),
    "a good one, and then a bad one": (READ + b"\r\n" + b"bad\r\n\r\n", [200, 400, CLOSED]),
    "a bad one, and then a good one": (b"bad\r\n\r\n" + READ + b"\r\n", [400, CLOSED]),
    "nothing after a close": (READ + b"Connection: close\r\n\r\n" + READ, [200, CLOSED]),
    "to be continued": (
        POST + b"Content-Length: 14\r\nExpect: 100-continue\r\n\r\n" + BODY,
        [100, 200],
    ),
    "another expectation": (READ + b"Expect: a miracle\r\n\r\n", [200]),
    "an upgrade": (READ + b"Connection: Upgrade\r\nUpgrade: h2c\r\n\r\n", [200]),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("split", [False, True])
def test_odd_requests_are_answered_or_closed(
    case: str, split: bool, connect: Callable[[], Raw]
) -> None:
    """Sent at once or in two parts, each gets the answer that it should, without a wait."""
    data, expected = CASES[case]
    raw = connect()
    data = raw.with_host(data)
    if split:
        raw.send(data[: len(data) // 2])
        another = connect()
        another.send(READ + b"\r\n")  # once it is answered, the first part was read most likely
        assert another.answer() is not None
        raw.send(data[len(data) // 2 :])
    else:
        raw.send(data)
    answers = [raw.answer() for _ in expected]
    # What is closed while more is under way may be reset, and its answer with it.
    if len(data) < 8192 or answers[0] is not None:
        assert [each and each.status for each in answers] == expected
    assert all(each.is_expected for each in answers if each)


@pytest.mark.parametrize(
    "header",
    [
        b"GET / HTTP/1.1\r\nA:%b\0\r\n" % (b" " * 16_000),
        b"GET / HTTP/1.1\r\nA:%b\x7f\r\n" % (b" \t" * 8_000),
        b"GET / HTTP/1.1\r\nA:%bx\r\n" % (b" " * 16_000),
        b"GET / HTTP/1.1\r\nA:%bx\r\n" % (b"\r\n " * 8_000),
        b"GET http://%b x HTTP/1.1\r\n" % (b"1" * 8_000),
        b"GET http://%b HTTP/1.10\r\n" % (b"1" * 8_000),
    ],
    ids=["spaces and NUL", "tabs and DEL", "spaces and x", "folds", "address", "version"],
)
def test_no_header_costs_the_square_of_its_length(header: bytes) -> None:
    """One that is refused costs about as much of the processor as one of its length that is not."""

    def cost(header: bytes, good: bool) -> float:
        parser = Parser(Adjustments(clear_untrusted_proxy_headers=True))
        started = time.thread_time()
        with contextlib.nullcontext() if good else pytest.raises(ParsingError):
            parser.parse_header(header)
        return time.thread_time() - started

    bad = min(cost(header, False) for _ in range(3))
    good = min(cost(b"GET / HTTP/1.1\r\nA: %b\r\n" % (b"x" * 24_000), True) for _ in range(3))
    assert bad < 50 * good


@pytest.mark.parametrize(
    "data",
    [b"", b"GET", b"GET / HTTP/1.1\r\n", b"GET /\r\n", POST + b"Content-Length: 9\r\n\r\nx",
     CHUNKED, CHUNKED + b"f" * 900, CHUNKED + b"ffffffffff\r\nx", b"\r\n\r\n", b" "],
)  # fmt: skip
def test_incomplete_requests_are_closed_without_an_answer(
    data: bytes, connect: Callable[[], Raw]
) -> None:
    """A client that says no more is not waited for, and gets no answer to half a request."""
    raw = connect()
    raw.send(data, end=True)
    assert raw.answers() == []


def test_100_continue_is_sent_once(connect: Callable[[], Raw]) -> None:
    """With `Expect: 100-continue` the body may wait for leave."""
    raw = connect()
    raw.send(POST + b"Content-Length: 14\r\nExpect: 100-continue\r\n\r\n")
    assert raw.answer() == Answer(100, b"")
    raw.send(BODY)
    answer = raw.answer()
    assert answer is not None
    assert b"memory_info" in answer.body


def test_answers_come_in_the_order_of_the_requests(connect: Callable[[], Raw]) -> None:
    """Of many requests in one packet each gets its own answer."""
    raw = connect()
    names = [f"no-{number}" for number in range(50)]
    raw.send(b"".join(READ.replace(b"=m", b"=%b" % name.encode()) + b"\r\n" for name in names))
    for name in names:
        answer = raw.answer()
        assert answer is not None
        assert json.loads(answer.body)["error"]["message"].startswith(f"model '{name}' is not")


BASES = [
    READ + b"Accept: */*\r\n\r\n",
    POST + b"Content-Length: 14\r\n\r\n" + BODY,
    CHUNKED + b"e\r\n" + BODY + b"\r\n0\r\n\r\n",
]
PIECES = st.sampled_from(
    [b"\r\n", b"\n", b"\r", b"\0", b" ", b":", b"%", b"%C0", b"\xff", b"\x80", b"?", b"#", b"//",
     b"Transfer-Encoding: chunked\r\n", b"Content-Length: 3\r\n", b"HTTP/1.0", b"[", b";", b"-1"]
)  # fmt: skip
MUTATIONS = st.lists(
    st.tuples(
        st.floats(0, 1), st.integers(0, 20), st.one_of(st.binary(max_size=8), PIECES, st.just(b""))
    ),
    min_size=1,
    max_size=4,
)


@hypothesis.settings(
    max_examples=500,
    derandomize=True,
    suppress_health_check=[
        hypothesis.HealthCheck.function_scoped_fixture,
        hypothesis.HealthCheck.too_slow,
    ],
)
@hypothesis.given(base=st.sampled_from(BASES), mutations=MUTATIONS)
def test_mutated_requests_are_answered_or_closed(
    base: bytes, mutations: list[tuple[float, int, bytes]], client: Client
) -> None:
    """Whatever is cut out of a request or put into it, no answer is a failure."""
    data = base
    for place, removed, put in mutations:
        start = int(place * len(data))
        data = data[:start] + put + data[start + removed :]
    with contextlib.closing(Raw(client)) as raw:
        raw.send(data, end=True)
        for answer in raw.answers():
            assert answer.is_expected, (data, answer)
