"""Hooks that request the status of backends by another protocol than LocalAI's.

The hook file makes the requests; this module manages the channels and the number of requests.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from fnmatch import fnmatchcase

import grpc
from google.protobuf.message import DecodeError

from ..config.descriptors import max_channels
from ..domain.models import Backend, BackendExit, Status
from ..hookspecs import Monitor, hookimpl

_PAUSE_SECONDS = 2.0
_PART_OF_TIMEOUT = 0.9  # the hook must return before it overruns

# Calls the method with a path, `/package.Service/Method`: encoded request, encoded response. Raises
# RpcError.
Call = Callable[[str, bytes], bytes]
Ask = Callable[[Backend, Call], "Status | None"]


class StatusHooks:
    """Implements the hooks that request a status, with one channel per backend.

    Concurrent readings share one response. A backend that responds UNIMPLEMENTED gets no more
    requests until its address changes. A backend that does not respond in time gets no requests for
    2 s. An object of this class is a plugin; a hook file assigns its methods to variables of the
    same names.

    Args:
        ask: makes calls to a backend, and returns its status, or None if the status is unknown. May
            raise RpcError or DecodeError.
        models: a shell pattern of the models that get requests.
    """

    def __init__(self, ask: Ask, models: str = "*") -> None:
        self._ask = ask
        self._models = models
        self._monitor: Monitor | None = None
        self._servers: dict[tuple[int, float], _BackendServer] = {}  # by PID and creation time

    @hookimpl
    def monitor_started(self, monitor: Monitor) -> None:
        """Store the monitor, which opens the channels."""
        self._monitor = monitor

    @hookimpl
    def monitor_backend_registered(self, backend: Backend) -> None:
        """Store a backend, or its new address."""
        key = backend.pid, backend.created_at
        known = self._servers.get(key)
        if known is None or known.address != backend.address:
            self._servers[key] = _BackendServer(backend.address)
            if known:
                known.close()

    @hookimpl
    def monitor_query_status(self, backend: Backend, timeout_seconds: float) -> Status | None:
        """Request the status, or wait for the response to another thread's request."""
        server = self._servers.get((backend.pid, backend.created_at))
        if server is None or not self._monitor or not fnmatchcase(backend.model, self._models):
            return None
        called_at = time.monotonic()
        seconds = timeout_seconds * _PART_OF_TIMEOUT
        if called_at < server.ask_after or not server.lock.acquire(timeout=seconds):
            return None
        try:
            if server.answered_at < called_at:  # else another thread got a response meanwhile
                server.answer = self._request(server, self._monitor, backend, called_at + seconds)
                server.answered_at = time.monotonic()
            return server.answer
        finally:
            server.lock.release()

    @hookimpl
    def monitor_backend_gone(self, backend: Backend, exit: BackendExit) -> None:
        """Close the channel of a backend that has ended."""
        server = self._servers.pop((backend.pid, backend.created_at), None)
        if server:
            server.close()

    @hookimpl
    def monitor_closing(self) -> None:
        """Close all channels."""
        for server in list(self._servers.values()):
            server.close()

    def _request(
        self, server: _BackendServer, monitor: Monitor, backend: Backend, deadline: float
    ) -> Status | None:
        try:
            if server.channel is None:
                self._make_room()
                server.channel = monitor.open_channel(backend)
                if server.ask_after == math.inf:  # `close` was called meanwhile
                    server.channel.close()
            channel, metadata = server.channel, tuple(monitor.call_metadata(backend).items())

            def call(path: str, request: bytes) -> bytes:
                method = channel.unary_unary(path, None, None)
                left = deadline - time.monotonic()
                response: bytes = method(request, timeout=left, metadata=metadata)
                return response

            status = self._ask(backend, call)
            # After `close`, the status may come from the end of a call, not from the backend.
            return None if server.ask_after == math.inf else status
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                server.close()
            elif error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                server.ask_after = max(server.ask_after, time.monotonic() + _PAUSE_SECONDS)
            elif error.code() is grpc.StatusCode.UNAVAILABLE:
                server.drop_channel()  # its backoff would delay the next connection
        except (DecodeError, ValueError):  # ValueError: another thread closed the channel
            pass
        return None

    def _make_room(self) -> None:
        """Close the least recently used channels, so that one more may be opened."""
        connected = [each for each in list(self._servers.values()) if each.channel]
        connected.sort(key=lambda each: each.answered_at)
        for server in connected[: max(0, len(connected) + 1 - max_channels())]:
            if server.lock.acquire(blocking=False):  # else a request uses the channel
                server.drop_channel()
                server.lock.release()


class _BackendServer:
    """The channel to a backend's address, and the last response."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.lock = threading.Lock()  # of the thread that makes a request
        self.channel: grpc.Channel | None = None
        self.answer: Status | None = None
        self.answered_at = self.ask_after = -math.inf

    def drop_channel(self) -> None:
        """Close the channel; the caller must have acquired the lock."""
        channel, self.channel = self.channel, None
        if channel:
            channel.close()

    def close(self) -> None:
        """Close the channel, even during a request, and make no more requests."""
        self.ask_after = math.inf
        if channel := self.channel:
            channel.close()
