"""One HTTP connection, as waitress keeps it, and what is taken over it."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
import time
from typing import Any

from waitress.channel import HTTPChannel
from waitress.parser import HTTPRequestParser, ParsingError
from waitress.task import WSGITask
from waitress.utilities import BadRequest

_HTTP_MAY_BEGIN = re.compile(rb"[\s!-~]")
_METHOD = re.compile(r"[!#$%&'*+.^_`|~0-9A-Z-]+")
_BARE_LF = re.compile(rb"(?<!\r)\n")
# Waitress's regular expressions go back and forth over a header's spaces, and over a request line
# that they do not match, for a time that grows with the square of the length.
_CONTROL = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_LONG_BLANK = re.compile(rb"[ \t\r\n]{65}")  # line ends too, as folded lines are joined
_REQUEST_LINE = re.compile(rb"[^ ]+ [^ ]+(?: HTTP/[0-9]\.[0-9])?")
# Waitress copies these anew for each packet, so they are to be short; nobody here uses either.
_MAX_CHUNK_SIZE_LINE = 1024
_MAX_TRAILER = 8192


class Parser(HTTPRequestParser):
    """Refuses what waitress would choke on, wait for in vain, or take though it is ambiguous."""

    def received(self, data: bytes) -> int:
        """Take data; give how much of it belongs to this request."""
        if self.body_rcv is None and not self.header_plus and not _HTTP_MAY_BEGIN.match(data):
            return self._refuse(data, "this is no HTTP; TLS is not spoken here")
        consumed = super().received(data)
        if self.completed:
            return consumed
        if self.body_rcv is None:
            before = max(0, len(self.header_plus) - len(data) - 1)
            if _BARE_LF.search(self.header_plus, before):
                return self._refuse(data, "lines end with CR and LF")
        elif self.chunked and (why := _fault_in_chunks(self.body_rcv)):
            self.error = BadRequest(why)
            self.completed = True
        return consumed

    def _refuse(self, data: bytes, why: str) -> int:
        self.parse_header(b"GET / HTTP/1.0\r\n")  # gives what the answer needs, as in waitress
        self.error = BadRequest(why)
        self.completed = True
        return len(data)

    def parse_header(self, header_plus: bytes) -> None:
        """Parse the request line and the headers.

        Raises:
            ParsingError: they are refused with a 400.
        """
        if _CONTROL.search(header_plus):
            raise ParsingError("a control character in the header")
        if _LONG_BLANK.search(header_plus):
            raise ParsingError("too many spaces in a row in the header")
        if not _REQUEST_LINE.fullmatch(header_plus.partition(b"\r\n")[0].rstrip()):
            raise ParsingError("Start line is invalid")
        try:
            super().parse_header(header_plus)
        except ValueError as error:  # a Content-Length of 5,000 digits, `http://[`
            raise ParsingError("a number or an address in it cannot be read") from error
        if not _METHOD.fullmatch(str(self.command)):  # waitress before 3.0 takes anything
            raise ParsingError("Start line is invalid")
        if self.version not in ("1.0", "1.1"):
            raise ParsingError("only HTTP/1.0 and HTTP/1.1 are spoken here")
        # Where the request ends must not be a matter of opinion (RFC 9112, 6.1).
        if "TRANSFER_ENCODING" in self.headers or (
            self.chunked and "CONTENT_LENGTH" in self.headers
        ):
            raise ParsingError("Transfer-Encoding wants HTTP/1.1, and no Content-Length beside it")


def _fault_in_chunks(receiver: Any) -> str | None:
    """Say what is wrong with what a body in chunks has that is not finished yet, if anything."""
    line, trailer = receiver.control_line, receiver.trailer
    if len(line) > _MAX_CHUNK_SIZE_LINE:
        return f"a chunk's size and extensions take more than {_MAX_CHUNK_SIZE_LINE} bytes"
    if len(trailer) > _MAX_TRAILER:
        return f"the trailer takes more than {_MAX_TRAILER} bytes"
    if b"\n" in line or _BARE_LF.search(trailer):
        return "lines end with CR and LF"
    return None


class _Joined(list[bytes]):
    """Stands for a channel, and collects what is to be written to it."""

    write_soon = list.append

    def __init__(self, channel: HTTPChannel) -> None:
        super().__init__()
        self.server = channel.server


class Task(WSGITask):
    """A request to be answered, whose answer's head and body are sent together."""

    def write(self, data: bytes) -> None:
        """Write some of the answer, the head first where it was not yet."""
        channel = self.channel
        joined: Any = _Joined(channel)
        self.channel = joined
        try:
            super().write(data)
        finally:
            self.channel = channel
        channel.write_soon(b"".join(joined))


class Channel(HTTPChannel):
    """A connection that knows how long it has been quiet.

    Attributes:
        quiet_since: when something of an answer was last sent, or else when it was accepted, in
            seconds of `time.monotonic`. Whatever a client sends does not count before it is
            answered, so that trickling is as good as silence.
    """

    parser_class = Parser
    task_class = Task

    def __init__(
        self, server: Any, sock: socket.socket, addr: Any, adj: Any, map: Any = None
    ) -> None:
        self.quiet_since = time.monotonic()
        self._sending = False
        self._loops_thread = threading.get_ident()  # which accepts
        super().__init__(server, sock, addr, adj, map=map)
        # Waitress before 3.0.1 takes a client that has gone meanwhile for one that is to come.
        self.connected = True

    def writable(self) -> bool:
        """Whether the loop is to send something.

        Not what a thread is about to send itself: the loop would spin on it, and keep the thread
        from the interpreter's lock, for milliseconds. Over the watermark the thread waits for the
        loop.
        """
        if self._sending and self.total_outbufs_len <= self.adj.outbuf_high_watermark:
            return False
        return bool(super().writable())

    def write_soon(self, data: Any) -> int:
        """Send, from the thread that answers, what can be sent now; the loop sends the rest."""
        self._sending = True
        try:
            return int(super().write_soon(data))
        finally:
            self._sending = False
            if self.total_outbufs_len:
                self.server.pull_trigger()

    def send(self, data: bytes, do_close: bool = True) -> int:
        """Send some of the data; give how much."""
        if threading.get_ident() != self._loops_thread:
            # The loop alone closes: a number that is free within a pass may be a new connection's
            # when what the pass found out about the old one is looked at.
            do_close = False
            if not self.connected:  # changes under the lock that the caller holds
                return 0
        sent = super().send(data, do_close)
        if sent:
            self.quiet_since = time.monotonic()
        return sent

    def handle_close(self) -> None:
        """Close, for a child too that was forked meanwhile, and keeps what it inherited open."""
        if self.socket is not None:
            with contextlib.suppress(OSError):  # it is closed already
                self.socket.shutdown(socket.SHUT_RDWR)
        super().handle_close()

    def handle_expt(self) -> None:
        """Close: no HTTP has urgent data, and until it is read the loop would spin."""
        self.handle_close()

    @property
    def answering(self) -> bool:
        """Whether a request of it is being answered, or waits to be."""
        return bool(self.requests)

    @property
    def answer_waits(self) -> bool:
        """Whether the client has not taken yet what was answered."""
        return self.total_outbufs_len > 0

    @property
    def held_bytes(self) -> int:
        """How much is kept of an unfinished request's body, and of answers that are not taken."""
        unfinished = self.request  # the loop's own; answers are other threads' too
        return self.total_outbufs_len + (unfinished.body_bytes_received if unfinished else 0)
