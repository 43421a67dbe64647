"""One HTTP connection of waitress, and a parser that refuses some requests."""

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

_HTTP_START = re.compile(rb"[\s!-~]")
_METHOD = re.compile(r"[!#$%&'*+.^_`|~0-9A-Z-]+")
_BARE_LF = re.compile(rb"(?<!\r)\n")
_CONTROL = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
# Waitress's regular expressions backtrack over the spaces of a header, and over an invalid request
# line. That takes time proportional to the square of the length, so these are refused first.
_LONG_BLANK = re.compile(rb"[ \t\r\n]{65}")  # with line ends, as folded lines are joined
_REQUEST_LINE = re.compile(rb"[^ ]+ [^ ]+(?: HTTP/[0-9]\.[0-9])?")
# Waitress copies both of these again for each packet, so they have to be short. The monitor uses
# neither chunk extensions nor trailers.
_MAX_CHUNK_SIZE_LINE = 1024
_MAX_TRAILER = 8192


class Parser(HTTPRequestParser):
    """Refuses requests that waitress accepts although they are costly, endless or ambiguous."""

    def received(self, data: bytes) -> int:
        """Parse data; return how many bytes of it belong to this request."""
        if self.body_rcv is None and not self.header_plus and not _HTTP_START.match(data):
            return self._refuse(data, "this is no HTTP; TLS is not spoken here")
        consumed = super().received(data)
        if self.completed:
            return consumed
        if self.body_rcv is None:
            before = max(0, len(self.header_plus) - len(data) - 1)
            if _BARE_LF.search(self.header_plus, before):
                return self._refuse(data, "lines end with CR and LF")
        elif self.chunked:
            try:
                _validate_chunks(self.body_rcv)
            except ParsingError as error:
                self.error = BadRequest(str(error))
                self.completed = True
        return consumed

    def _refuse(self, data: bytes, reason: str) -> int:
        # As waitress does: this sets the attributes that the answer needs.
        self.parse_header(b"GET / HTTP/1.0\r\n")
        self.error = BadRequest(reason)
        self.completed = True
        return len(data)

    def parse_header(self, header_plus: bytes) -> None:
        """Parse the request line and the headers.

        Raises:
            ParsingError: the request is refused with a 400.
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
        if not _METHOD.fullmatch(str(self.command)):  # waitress before 3.0 accepts any method
            raise ParsingError("Start line is invalid")
        if self.version not in ("1.0", "1.1"):
            raise ParsingError("only HTTP/1.0 and HTTP/1.1 are spoken here")
        # The end of a request must not be ambiguous (RFC 9112, 6.1).
        if "TRANSFER_ENCODING" in self.headers or (
            self.chunked and "CONTENT_LENGTH" in self.headers
        ):
            raise ParsingError("Transfer-Encoding wants HTTP/1.1, and no Content-Length beside it")


def _validate_chunks(receiver: Any) -> None:
    """Check the unfinished size line and trailer of a chunked body.

    Raises:
        ParsingError: the line or the trailer is too long, or a line does not end with CR and LF.
    """
    line, trailer = receiver.control_line, receiver.trailer
    if len(line) > _MAX_CHUNK_SIZE_LINE:
        raise ParsingError(
            f"a chunk's size and extensions take more than {_MAX_CHUNK_SIZE_LINE} bytes"
        )
    if len(trailer) > _MAX_TRAILER:
        raise ParsingError(f"the trailer takes more than {_MAX_TRAILER} bytes")
    if b"\n" in line or _BARE_LF.search(trailer):
        raise ParsingError("lines end with CR and LF")


class _WriteBuffer(list[bytes]):
    """Replaces the channel of a task, and collects the data that the task writes."""

    write_soon = list.append

    def __init__(self, channel: HTTPChannel) -> None:
        super().__init__()
        self.server = channel.server


class Task(WSGITask):
    """Answers a request, and sends the head and the first part of the body together.

    If they are sent apart, a client wakes up to 1.5 times per answer: 16 clients (wrk) got 15 %
    fewer answers.
    """

    def write(self, data: bytes) -> None:
        """Write a part of the answer; the first part is written together with the head."""
        channel = self.channel
        buffer: Any = _WriteBuffer(channel)
        self.channel = buffer
        try:
            super().write(data)
        finally:
            self.channel = channel
        channel.write_soon(b"".join(buffer))


class Channel(HTTPChannel):
    """A connection that records since when it has been quiet.

    Attributes:
        quiet_since: when a part of an answer was last sent, or began to wait to be sent, or else
            when the connection was accepted, in seconds of `time.monotonic`. Data from the client
            does not count, so a client that sends byte by byte is as quiet as one that sends
            nothing.
    """

    parser_class = Parser
    task_class = Task

    def __init__(
        self, server: Any, sock: socket.socket, addr: Any, adj: Any, map: Any = None
    ) -> None:
        self.quiet_since = time.monotonic()
        self._sending = False
        self._loop_thread = threading.get_ident()  # the loop accepts connections
        super().__init__(server, sock, addr, adj, map=map)
        # If the client has already disconnected, waitress before 3.0.1 treats the socket as not yet
        # connected.
        self.connected = True

    def writable(self) -> bool:
        """Whether the loop should send data.

        The loop does not send data that a thread is about to send itself. Otherwise the loop would
        spin, and the thread would wait milliseconds for the interpreter's lock: 16 clients got half
        as many answers. Above the watermark, however, the thread waits until the loop has sent.
        """
        if self._sending and self.total_outbufs_len <= self.adj.outbuf_high_watermark:
            return False
        return bool(super().writable())

    def write_soon(self, data: Any) -> int:
        """Send as much as possible from the answering thread; the loop sends the rest."""
        if not self.total_outbufs_len:
            # The time before the answer does not count as quiet. Set this before the data count as
            # unread: `Connections` reads the two in the opposite order.
            self.quiet_since = time.monotonic()
        self._sending = True
        try:
            return int(super().write_soon(data))
        finally:
            self._sending = False
            if self.total_outbufs_len:
                self.server.pull_trigger()

    def send(self, data: bytes, do_close: bool = True) -> int:
        """Send some of the data; return how many bytes."""
        if threading.get_ident() != self._loop_thread:
            # Only the loop closes a connection. If a thread did so during a pass of the loop, a new
            # connection could get the same descriptor number, and events of the old connection.
            do_close = False
            if not self.connected:  # changes only under the lock, which the caller holds
                return 0
        sent = super().send(data, do_close)
        if sent:
            self.quiet_since = time.monotonic()
        return sent

    def handle_close(self) -> None:
        """Close the connection, also for a child process that inherited its descriptor."""
        if self.socket is not None:
            with contextlib.suppress(OSError):  # the socket is closed already
                self.socket.shutdown(socket.SHUT_RDWR)
        super().handle_close()

    def handle_expt(self) -> None:
        """Close on urgent data: HTTP has none, and the loop would spin until the data were read."""
        self.handle_close()

    @property
    def is_answering(self) -> bool:
        """Whether a request is being answered or is queued."""
        return bool(self.requests)

    @property
    def has_unread_answer(self) -> bool:
        """Whether a part of an answer is buffered because the client has not read it yet."""
        return self.total_outbufs_len > 0

    @property
    def buffered_bytes(self) -> int:
        """The size of an unfinished request's body and of unread answers."""
        unfinished = self.request  # only the loop's thread changes `self.request`
        return self.total_outbufs_len + (unfinished.body_bytes_received if unfinished else 0)
