"""The names of waitress that it does not document, and that `http/server/` overrides or uses.

setup.cfg keeps waitress below the next major version for their sake. A new version may raise that
bound when these tests and `test_server.py`, `test_channel.py` pass with it.
"""

from __future__ import annotations

import inspect
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import waitress.server
import waitress.wasyncore
from waitress.adjustments import Adjustments
from waitress.channel import HTTPChannel
from waitress.parser import HTTPRequestParser, ParsingError
from waitress.receiver import ChunkedReceiver
from waitress.server import BaseWSGIServer, TcpWSGIServer, UnixWSGIServer
from waitress.task import ThreadedTaskDispatcher, WSGITask
from waitress.utilities import BadRequest


@pytest.fixture
def server() -> Iterator[Any]:
    """A server of waitress with a dispatcher that has no threads."""
    channels: dict[int, Any] = {}
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server: Any = waitress.server.create_server(
            lambda environ, start_response: [],
            map=channels,
            sockets=[listening],
            clear_untrusted_proxy_headers=True,
            _dispatcher=ThreadedTaskDispatcher(),
        )
        yield server
        waitress.wasyncore.close_all(channels)


@pytest.mark.parametrize(
    ("function", "parameters"),
    [
        (waitress.server.create_server, ["application", "map", "_start", "_sock", "_dispatcher"]),
        (waitress.wasyncore.loop, ["timeout", "use_poll", "map", "count"]),
        (waitress.wasyncore.close_all, ["map", "ignore_all"]),
        (BaseWSGIServer.accept, ["self"]),
        (BaseWSGIServer.handle_accept, ["self"]),
        (BaseWSGIServer.pull_trigger, ["self"]),
        (BaseWSGIServer.readable, ["self"]),
        (TcpWSGIServer.fix_addr, ["self", "addr"]),
        (UnixWSGIServer.fix_addr, ["self", "addr"]),
        (HTTPChannel.__init__, ["self", "server", "sock", "addr", "adj", "map"]),
        (HTTPChannel.cancel, ["self"]),
        (HTTPChannel.service, ["self"]),
        (HTTPChannel.handle_close, ["self"]),
        (HTTPChannel.handle_expt, ["self"]),
        (HTTPChannel.handle_write, ["self"]),
        (HTTPChannel.send, ["self", "data", "do_close"]),
        (HTTPChannel.writable, ["self"]),
        (HTTPChannel.write_soon, ["self", "data"]),
        (HTTPRequestParser.__init__, ["self", "adj"]),
        (HTTPRequestParser.parse_header, ["self", "header_plus"]),
        (HTTPRequestParser.received, ["self", "data"]),
        (ThreadedTaskDispatcher.add_task, ["self", "task"]),
        (ThreadedTaskDispatcher.set_thread_count, ["self", "count"]),
        (ThreadedTaskDispatcher.shutdown, ["self", "cancel_pending", "timeout"]),
        (ThreadedTaskDispatcher.start_new_thread, ["self", "target", "thread_no"]),
        (WSGITask.__init__, ["self", "channel", "request"]),
        (WSGITask.write, ["self", "data"]),
        (BadRequest.__init__, ["self", "body"]),
    ],
    ids=lambda value: value.__qualname__ if inspect.isfunction(value) else "",
)
def test_functions_have_their_parameters(function: Any, parameters: list[str]) -> None:
    """Each function is there and takes these arguments, in this order."""
    assert list(inspect.signature(function).parameters)[: len(parameters)] == parameters


def test_a_server_has_its_attributes(server: Any) -> None:
    """A server has the attributes that `Connections` reads and replaces."""
    assert server.channel_class is HTTPChannel
    assert server.active_channels == {}
    assert server.accepting is True
    assert isinstance(server.effective_port, (int, str))
    assert isinstance(server.adj, Adjustments)


def test_a_channel_has_its_attributes(server: Any) -> None:
    """A channel has the attributes by which `Connections` decides which one to evict."""
    assert HTTPChannel.parser_class is HTTPRequestParser
    assert HTTPChannel.task_class is WSGITask
    mine, other = socket.socketpair()
    with mine, other:
        channel: Any = HTTPChannel(server, mine, ("127.0.0.1", 1), server.adj, map={})
        assert server.active_channels == {mine.fileno(): channel}
        assert (channel.server, channel.socket, channel.connected) == (server, mine, True)
        assert (channel.requests, channel.request, channel.total_outbufs_len) == ([], None, 0)
        assert channel.adj.outbuf_high_watermark > 0
        channel.handle_close()
        assert channel.connected is False
        assert server.active_channels == {}


def test_a_parser_has_its_attributes(server: Any) -> None:
    """A parser has the attributes that `Parser` checks, also within a chunked body."""
    parser: Any = HTTPRequestParser(server.adj)
    assert (parser.header_plus, parser.body_rcv, parser.completed) == (b"", None, False)
    parser.received(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n")
    assert (parser.command, parser.version, parser.chunked) == ("POST", "1.1", True)
    assert isinstance(parser.body_rcv, ChunkedReceiver)
    assert "TRANSFER_ENCODING" not in parser.headers
    parser.received(b"1;x")
    assert (parser.body_rcv.control_line, parser.body_rcv.trailer) == (b"1;x", b"")
    assert (parser.body_bytes_received, parser.error) == (3, None)
    with pytest.raises(ParsingError):
        parser.parse_header(b"x")


def test_a_dispatcher_has_its_attributes() -> None:
    """A dispatcher has the attributes by which `Dispatcher` counts and wakes threads."""
    dispatcher: Any = ThreadedTaskDispatcher()
    assert (dispatcher.active_count, dispatcher.stop_count) == (0, 0)
    assert (dispatcher.threads, list(dispatcher.queue)) == (set(), [])
    assert isinstance(dispatcher.queue_cv, threading.Condition)
    with dispatcher.lock:
        dispatcher.queue_cv.notify()  # raises unless it belongs to that lock
