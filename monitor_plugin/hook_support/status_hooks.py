"""Hooks that request the status of backends by another protocol than LocalAI's.

The hook file makes the requests; this module manages the channels and the number of requests.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from fnmatch import fnmatchcase
from functools import partial

import grpc
from google.protobuf.message import DecodeError

from ..domain.models import Backend, BackendExit, Status
from ..hookspecs import Monitor, hookimpl
from ..rpc.channel_limit import ChannelLimit
from ..rpc.grpc_transport import Call, speaks_grpc
from ..rpc.transport import OTHER_PROTOCOL_PAUSE_SECONDS
from ..status_protocols.grpc_health import ask as ask_grpc_health
from ..status_protocols.kserve_grpc import SERVICE as KSERVE_SERVICE
from ..status_protocols.kserve_grpc import ask as ask_kserve

# Hook files import these from here, as `hook_support` is public.
__all__ = ["KSERVE_SERVICE", "Ask", "Call", "StatusHooks", "ask_grpc_health", "ask_kserve"]

_PAUSE_SECONDS = 2.0
_PART_OF_TIMEOUT = 0.9  # the hook must return before it overruns

#: Requests the status of a backend by a `Call`; None if it cannot be read.
Ask = Callable[[Backend, Call], "Status | None"]


class StatusHooks:
    """Implements the hooks that request a status, with one channel per backend.

    Concurrent readings share one response. A backend that responds UNIMPLEMENTED gets no more
    requests until its address changes. A backend that does not respond in time gets no requests for
    2 s, a server that does not speak gRPC gets none for 60 s. An object of this class is a plugin;
    a hook file assigns its methods to variables of the same names.

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
        self._channel_limit = ChannelLimit(_BackendServer.close_if_idle)

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
            self._servers[key] = _BackendServer(backend.address, self._channel_limit)
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
            channel = server.get_channel(partial(monitor.open_channel, backend))
            metadata = tuple(monitor.call_metadata(backend).items())

            def call(path: str, request: bytes) -> bytes:
                method = channel.unary_unary(path, None, None)
                left = deadline - time.monotonic()
                try:
                    response: bytes = method(request, timeout=left, metadata=metadata)
                except grpc.RpcError as error:
                    if error.code() is grpc.StatusCode.UNAUTHENTICATED:
                        monitor.log_refusal(backend, path)
                    raise
                return response

            status = self._ask(backend, call)
            # If `server.close` was called meanwhile, the status may come from the cancelled call.
            return None if server.ask_after == math.inf else status
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                server.close()
            elif error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                server.pause(_PAUSE_SECONDS)
            elif error.code() is grpc.StatusCode.UNAVAILABLE:
                server.drop_channel()  # its backoff would delay the next connection
                if not speaks_grpc(error):
                    server.pause(OTHER_PROTOCOL_PAUSE_SECONDS)
        except (DecodeError, ValueError):  # ValueError: another thread closed the channel
            pass
        return None


class _BackendServer:
    """The channel to a backend's address, and the last response."""

    def __init__(self, address: str, channel_limit: ChannelLimit[_BackendServer]) -> None:
        self.address = address
        self.lock = threading.Lock()  # held by the thread that makes a request
        self.answer: Status | None = None
        self.answered_at = self.ask_after = -math.inf
        self._channel: grpc.Channel | None = None
        self._channel_limit = channel_limit

    def get_channel(self, open_channel: Callable[[], grpc.Channel]) -> grpc.Channel:
        """Return the channel, which is closed after `close`. The caller must hold the lock.

        If the limit of channels is reached, and all are in use, the channel is opened nevertheless.
        """
        if self._channel is None:
            self._channel_limit.make_room()
            self._channel = open_channel()
            self._channel_limit.opened(self)
            if self.ask_after == math.inf:  # `close` was called meanwhile
                self.close()
        else:
            self._channel_limit.used(self)
        return self._channel

    def pause(self, seconds: float) -> None:
        """Make no requests for a while; a closed server stays closed."""
        self.ask_after = max(self.ask_after, time.monotonic() + seconds)

    def drop_channel(self) -> None:
        """Close the channel; the caller must have acquired the lock."""
        channel, self._channel = self._channel, None
        self._channel_limit.closed(self)
        if channel:
            channel.close()

    def close_if_idle(self) -> None:
        """Close the channel unless a thread makes a request."""
        if self.lock.acquire(blocking=False):
            self.drop_channel()
            self.lock.release()

    def close(self) -> None:
        """Close the channel, even during a request, and make no more requests."""
        self.ask_after = math.inf
        self._channel_limit.closed(self)
        if channel := self._channel:
            channel.close()
