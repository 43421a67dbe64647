"""Requests a server by HTTP, through urllib3: bounded in time and size, and by one kept connection.

A server may answer anything. So no redirect is followed, no answer is decompressed, at most 4 MiB
of a body and 5 MiB of a whole answer are read, and each read ends at the deadline of the whole
reading: the timeouts of urllib3 are those of single reads, which a server that sends a byte now and
then never exceeds.
"""

from __future__ import annotations

import io
import socket
import ssl
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from http.client import BadStatusLine, HTTPException, HTTPResponse, UnknownProtocol
from typing import Any, Literal

import urllib3
from urllib3.connection import HTTPConnection
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    NewConnectionError,
    ProtocolError,
    ReadTimeoutError,
    SSLError,
)

from ..domain.address import LOOPBACK_HOSTS, parse_address
from .protocol import Answer, NoStatus

MAX_BODY_BYTES = 4 * 1024 * 1024
_READ_BYTES = 64 * 1024
# An answer may have headers, chunks and trailers without end, beside a small body.
_MAX_ANSWER_BYTES = MAX_BODY_BYTES + 1024 * 1024
# A connection that takes longer is tried again by the next reading. So an unreachable machine holds
# no thread for as long as a request may last.
_CONNECT_SECONDS = 5.0


class ServerConnection:
    """The connection to one server, made at the first request. One thread at a time may use it.

    Args:
        address: the URL of the server, as `domain/address.py` accepts it.
        tls: verifies the server of a URL with https.
        connected: is called after each connection that was made.
    """

    def __init__(
        self, address: str, tls: ssl.SSLContext | None, connected: Callable[[], object]
    ) -> None:
        target = parse_address(address)
        self.state = _SocketState(connected)
        self._address = address
        self._prefix = target.url_path or ""
        name = "localhost" if target.hosts == LOOPBACK_HOSTS else target.hosts[0]
        host = f"[{name}]" if ":" in name else name
        self._headers = {
            "Host": f"{host}:{target.port}",
            "Accept-Encoding": "identity",
            "User-Agent": "monitor-plugin",
        }
        # `localhost` is not resolved: the system may know one of its two addresses only. As by
        # gRPC, IPv6 is tried first.
        hosts = sorted(target.hosts, key=lambda each: ":" not in each)
        options: dict[str, Any] = {"state": self.state, "tls": tls, "name": name}
        self._pools = [_Pool(each, target.port, maxsize=1, **options) for each in hosts]

    def get(self, path: str, deadline: float, headers: Mapping[str, str]) -> Answer:
        """Request a path below the URL.

        Args:
            path: the path, which begins with a slash.
            deadline: when the whole answer must have come, by the monotonic clock.
            headers: more headers, such as `authorization`.

        Raises:
            NoStatus: no whole answer of a usable size has come.
            ValueError: the headers are not valid.
        """
        self.state.begin(deadline)
        headers = {**self._headers, **headers}
        try:
            return self._get(path, headers)
        except _ConnectionClosed as error:
            # The server may close a connection that it kept, at the moment of the request.
            if self.state.is_new or self.state.closed:
                raise error.fault from None
        self.state.begin(deadline)
        try:
            return self._get(path, headers)
        except _ConnectionClosed as error:
            raise error.fault from None

    def _get(self, path: str, headers: Mapping[str, str]) -> Answer:
        try:
            response = self._open(self._prefix + path, headers)
            try:
                return self._read(path, response)
            except ValueError as error:  # of `http.client`, for a chunk with a negative size
                response.close()
                raise self._malformed(path, error) from None
            except BaseException:
                response.close()
                raise
            finally:
                response.release_conn()
        except NewConnectionError:  # before ConnectTimeoutError, of which it is a kind
            raise NoStatus(
                "UNAVAILABLE", f"nothing accepts connections at {self._address}", answered=False
            ) from None
        except (ConnectTimeoutError, ReadTimeoutError, TimeoutError):
            raise self._fault("DEADLINE_EXCEEDED", "has not answered in time", path) from None
        except (SSLError, ssl.SSLError) as error:
            reason = _tls_reason(error)
            raise self._fault("UNAVAILABLE", f"failed the TLS handshake: {reason}", path) from None
        except ProtocolError as error:
            cause = error.args[1] if len(error.args) > 1 else None
            if isinstance(cause, TimeoutError):  # of a TLS handshake
                raise self._fault("DEADLINE_EXCEEDED", "has not answered in time", path) from None
            raise self._protocol_fault(path, cause) from None
        except HTTPError as error:
            raise self._malformed(path, error) from None
        except OSError:
            raise self._closed(path) from None

    def _open(self, path: str, headers: Mapping[str, str]) -> Any:
        """Send a request to the first host that accepts it, and read the head of the answer."""
        try:
            return self._open_at(self._pools[0], path, headers)
        except NewConnectionError:
            for pool in self._pools[1:]:
                response = self._open_at(pool, path, headers)
                self._pools.reverse()  # it is tried first from now on
                return response
            raise

    def _open_at(
        self, pool: urllib3.HTTPConnectionPool, path: str, headers: Mapping[str, str]
    ) -> Any:
        left = self.state.left()
        return pool.urlopen(
            "GET",
            path,
            headers=headers,
            retries=False,
            redirect=False,
            timeout=urllib3.Timeout(connect=min(left, _CONNECT_SECONDS), read=left),
            preload_content=False,
            decode_content=False,
        )

    def _read(self, path: str, response: Any) -> Answer:
        encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
        if encoding != "identity":
            text = "compressed its answer, although the request allows no compression"
            raise self._fault("INTERNAL", text, path, answered=True)
        body = bytearray()
        while part := response.read(_READ_BYTES, decode_content=False):
            body += part
            if len(body) > MAX_BODY_BYTES:
                text = "answered more than 4 MiB"
                raise self._fault("RESOURCE_EXHAUSTED", text, path, answered=True)
        # `http.client` takes the end of the connection for the end of the body.
        length = response.headers.get("Content-Length", "")
        if length.isdecimal() and len(length) < 20 and len(body) < int(length):
            raise self._closed(path)
        content_type = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        return Answer(path, response.status, content_type, bytes(body))

    def _protocol_fault(self, path: str, cause: object) -> NoStatus | _ConnectionClosed:
        """Return the fault for what `http.client` has raised."""
        if isinstance(cause, _AnswerTooLong):
            text = "answered more than 5 MiB, with its headers and the framing of its chunks"
            return self._fault("RESOURCE_EXHAUSTED", text, path)  # it gets no other requests
        is_closed = isinstance(cause, ConnectionError)  # also RemoteDisconnected
        if isinstance(cause, (BadStatusLine, UnknownProtocol)) and not is_closed:
            text = "does not speak HTTP; it may speak TLS (https://) or gRPC"
            return self._fault("UNAVAILABLE", text, path)
        if self.state.is_at_end or not isinstance(cause, HTTPException):
            return self._closed(path)
        return self._malformed(path, cause)

    def _malformed(self, path: str, error: Exception) -> NoStatus:
        text = f"sent malformed HTTP ({type(error).__name__})"
        return self._fault("INTERNAL", text, path, answered=True)

    def _closed(self, path: str) -> _ConnectionClosed:
        text = "closed the connection before the end of its answer"
        return _ConnectionClosed(self._fault("UNAVAILABLE", text, path))

    def _fault(self, rpc_error: str, text: str, path: str, answered: bool = False) -> NoStatus:
        if self.state.closed:
            return NoStatus("CANCELLED", "the connection was closed", answered=answered)
        return NoStatus(rpc_error, f"GET {path}: the server {text}", answered=answered)

    def close(self) -> None:
        """Close the connection; may be called from any thread. A request in flight fails."""
        self.state.close()
        for pool in self._pools:
            pool.close()


class _ConnectionClosed(Exception):
    """The server has closed the connection during a request."""

    def __init__(self, fault: NoStatus) -> None:
        super().__init__()
        self.fault = fault


class _AnswerTooLong(HTTPException):
    """The server has sent more than _MAX_ANSWER_BYTES."""


class MalformedHead(HTTPException):
    """The server has sent lines that are no headers."""


class _Response(HTTPResponse):
    """An answer whose head is whole and well-formed.

    `http.client` accepts other ones. urllib3 logs them, each time with a traceback.
    """

    def begin(self) -> None:
        raw: Any = self.fp.raw
        super().begin()
        if raw.state.is_at_end:
            raise ConnectionResetError
        if self.msg.defects or self.msg.get_payload():
            raise MalformedHead
        if self.chunked:  # that counts, and not the length; urllib3 logs a server that has both
            del self.msg["Content-Length"]


class _SocketState:
    """What a connection's socket needs: the deadline of its reads, and how it is closed."""

    def __init__(self, connected: Callable[[], object]) -> None:
        self.deadline = 0.0
        self.is_new = False  # whether a connection was made for this request
        self.is_at_end = False  # whether the server has closed it during this request
        self.closed = False
        self._bytes_left = 0  # how much of an answer may still be read
        self._connected = connected
        self._socket: socket.socket | None = None

    def begin(self, deadline: float) -> None:
        """Begin a request, which ends at the deadline."""
        self.deadline = deadline
        self.is_new = self.is_at_end = False
        self._bytes_left = _MAX_ANSWER_BYTES

    def count(self, size: int) -> None:
        """Note that so many bytes have been read; 0 if the server has closed the connection.

        Raises:
            _AnswerTooLong: the answer is longer than any that is read.
        """
        self._bytes_left -= size
        if size == 0:
            self.is_at_end = True
        if self._bytes_left < 0:
            raise _AnswerTooLong

    def left(self) -> float:
        """Return the time until the deadline in seconds.

        Raises:
            TimeoutError: the deadline has passed.
        """
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left

    def opened(self, opened: socket.socket) -> None:
        """Note a new connection."""
        self._socket, self.is_new = opened, True
        self._connected()
        if self.closed:
            self.close()

    def close(self) -> None:
        """End the reads of the socket, on whichever thread."""
        self.closed = True
        if self._socket is not None:
            with suppress(OSError):
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)


class _BoundedSocket:
    """A socket, whose reads as a file end at a deadline."""

    def __init__(self, wrapped: socket.socket, state: _SocketState) -> None:
        self._wrapped = wrapped
        self._state = state

    def __getattr__(self, name: str) -> Any:
        return getattr(self._wrapped, name)

    def makefile(self, mode: Literal["rb"]) -> io.BufferedReader:
        """Return a file of the socket's bytes, as `http.client` reads it."""
        raw = self._wrapped.makefile(mode, buffering=0)
        return io.BufferedReader(_BoundedReader(raw, self._wrapped, self._state))


class _BoundedReader(io.RawIOBase):
    def __init__(self, raw: Any, wrapped: socket.socket, state: _SocketState) -> None:
        self.state = state
        self._raw = raw
        self._wrapped = wrapped

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._wrapped.settimeout(self.state.left())
        size: int = self._raw.readinto(buffer) or 0
        self.state.count(size)
        return size

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Connection(HTTPConnection):
    """A connection of `http.client`, by TLS if it has a context.

    urllib3's own connection by TLS logs each certificate that is for another name.
    """

    response_class = _Response

    def __init__(
        self,
        *args: Any,
        state: _SocketState,
        tls: ssl.SSLContext | None,
        name: str,
        **options: Any,
    ) -> None:
        super().__init__(*args, **options)
        self._state = state
        self._tls = tls
        self._name = name

    def connect(self) -> None:
        """Connect, verify the server, and bound the reads."""
        super().connect()
        opened: socket.socket = self.sock
        if self._tls:
            try:
                opened = self._tls.wrap_socket(opened, server_hostname=self._name)
            except BaseException:
                self.close()
                raise
        self.sock: Any = _BoundedSocket(opened, self._state)
        self._state.opened(opened)


class _Pool(urllib3.HTTPConnectionPool):
    ConnectionCls = _Connection


def _tls_reason(error: Exception) -> str:
    """Return why a handshake failed: OpenSSL's own words, which hold no secret."""
    cause: Any = error.args[0] if error.args and isinstance(error.args[0], ssl.SSLError) else error
    return str(getattr(cause, "verify_message", None) or getattr(cause, "reason", None) or "TLS")
