"""Hooks that request the status of backends by another protocol than LocalAI's.

The hook file makes the request. This module keeps the channels, and limits the number of requests.
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
_PART_OF_TIMEOUT = 0.9  # so that the hook returns before the monitor gives it up

# Calls a method by its path, `/package.Service/Method`, with an encoded request, and returns the
# encoded response; raises RpcError.
Call = Callable[[str, bytes], bytes]
Ask = Callable[[Backend, Call], "Status | None"]


class StatusHooks:
    """Implements the hooks that request a status, over one channel for each backend.

    Readings at the same time share one response. A backend that responds UNIMPLEMENTED gets no more
    requests until its address changes; one that did not respond in time gets none for 2 s. A hook
    file assigns these methods to variables of the same names. An object of this class is also a
    plugin.

    Args:
        ask: requests the status of a backend by calls, and returns it, or None if the response says
            nothing. It may let the errors of the calls pass, and a DecodeError of a response.
        models: a shell pattern of the models that get requests.
    """

    def __init__(self, ask: Ask, models: str = "*") -> None:
        self._ask = ask
        self._models = models
        self._monitor: Monitor | None = None
        self._servers: dict[tuple[int, float], _Server] = {}  # by PID and creation time

    @hookimpl
    def monitor_started(self, monitor: Monitor) -> None:
        """Store the monitor, which opens the channels."""
        self._monitor = monitor

    @hookimpl
    def monitor_backend_registered(self, backend: Backend) -> None:
        """Record a backend, or its new address."""
        key = backend.pid, backend.created_at
        known = self._servers.get(key)
        if known is None or known.address != backend.address:
            self._servers[key] = _Server(backend.address)
            if known:
                known.close()

    @hookimpl
    def monitor_query_status(self, backend: Backend, timeout_seconds: float) -> Status | None:
        """Request the status, or share the response that another thread is waiting for."""
        server = self._servers.get((backend.pid, backend.created_at))
        if server is None or not self._monitor or not fnmatchcase(backend.model, self._models):
            return None
        came_at = time.monotonic()
        seconds = timeout_seconds * _PART_OF_TIMEOUT
        if came_at < server.ask_after or not server.lock.acquire(timeout=seconds):
            return None
        try:
            if server.answered_at < came_at:  # else another thread got it since the call began
                server.answer = self._request(server, self._monitor, backend, came_at + seconds)
                server.answered_at = time.monotonic()
            return server.answer
        finally:
            server.lock.release()

    @hookimpl
    def monitor_backend_gone(self, backend: Backend, exit: BackendExit) -> None:
        """Close the channel to a backend that has ended."""
        server = self._servers.pop((backend.pid, backend.created_at), None)
        if server:
            server.close()

    @hookimpl
    def monitor_closing(self) -> None:
        """Close all channels."""
        for server in list(self._servers.values()):
            server.close()

    def _request(
        self, server: _Server, monitor: Monitor, backend: Backend, deadline: float
    ) -> Status | None:
        try:
            if server.channel is None:
                self._make_room()
                server.channel = monitor.open_channel(backend)
                if server.ask_after == math.inf:  # `close` came between
                    server.channel.close()
            channel, metadata = server.channel, tuple(monitor.call_metadata(backend).items())

            def call(path: str, request: bytes) -> bytes:
                method = channel.unary_unary(path, None, None)
                left = deadline - time.monotonic()
                response: bytes = method(request, timeout=left, metadata=metadata)
                return response

            return self._ask(backend, call)
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
        """Close the channels that were unused for longest, so that one more may be opened."""
        open_ones = [each for each in list(self._servers.values()) if each.channel]
        open_ones.sort(key=lambda each: each.answered_at)
        for server in open_ones[: max(0, len(open_ones) + 1 - max_channels())]:
            server.rest()


class _Server:
    """The server at a backend's address: its channel and its last response."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.lock = threading.Lock()  # held by the thread that makes a request
        self.channel: grpc.Channel | None = None
        self.answer: Status | None = None
        self.answered_at = self.ask_after = -math.inf

    def rest(self) -> None:
        """Close the channel unless it is in use. The next request opens a new one."""
        if self.lock.acquire(blocking=False):
            self.drop_channel()
            self.lock.release()

    def drop_channel(self) -> None:
        """Close the channel; the caller holds the lock."""
        channel, self.channel = self.channel, None
        if channel:
            channel.close()

    def close(self) -> None:
        """Close the channel, even if it is in use, and make no more requests."""
        self.ask_after = math.inf
        if channel := self.channel:
            channel.close()
