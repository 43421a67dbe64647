"""The hooks by which backends are asked for their status by another protocol than LocalAI's.

A hook file says how to ask; what is here sees to it that it costs no more than `Status` would.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from fnmatch import fnmatchcase

import grpc
from google.protobuf.message import DecodeError

from ..config.descriptors import most_channels
from ..domain.models import Backend, BackendExit, Status
from ..hookspecs import Monitor, hookimpl

_PAUSE_SECONDS = 2.0
_PART_OF_TIMEOUT = 0.9  # so that a hook is back before the monitor gives it up

# Calls a method by its path, `/package.Service/Method`, with a request; or raises RpcError.
Call = Callable[[str, bytes], bytes]
Ask = Callable[[Backend, Call], "Status | None"]


class StatusHooks:
    """Implements the hooks that ask a backend, over a channel that is kept for it.

    Readings at the same time share one answer. A backend that says UNIMPLEMENTED is asked no more,
    unless it moves; one that did not answer in time is left alone for 2 s. A hook file gives these
    methods the names that they have here; an object of this class is a plugin, too.

    Args:
        ask: asks a backend by calls, and gives its status, or None where it says nothing; what the
            calls raise may pass, and so may the DecodeError of an answer.
        models: a pattern as in a shell; other models are not asked.
    """

    def __init__(self, ask: Ask, models: str = "*") -> None:
        self._ask = ask
        self._models = models
        self._monitor: Monitor | None = None
        self._servers: dict[tuple[int, float], _Server] = {}  # by PID and creation time

    @hookimpl
    def monitor_started(self, monitor: Monitor) -> None:
        """Get hold of the monitor, which opens the channels."""
        self._monitor = monitor

    @hookimpl
    def monitor_backend_registered(self, backend: Backend) -> None:
        """Note a backend, or its new address."""
        key = backend.pid, backend.created_at
        known = self._servers.get(key)
        if known is None or known.address != backend.address:
            self._servers[key] = _Server(backend.address)
            if known:
                known.close()

    @hookimpl
    def monitor_query_status(self, backend: Backend, timeout_seconds: float) -> Status | None:
        """Ask a backend, unless that is of no use, or somebody else is answered meanwhile."""
        server = self._servers.get((backend.pid, backend.created_at))
        if server is None or not self._monitor or not fnmatchcase(backend.model, self._models):
            return None
        came_at = time.monotonic()
        seconds = timeout_seconds * _PART_OF_TIMEOUT
        if came_at < server.ask_after or not server.turn.acquire(timeout=seconds):
            return None
        try:
            if server.answered_at < came_at:
                server.answer = self._asked(server, self._monitor, backend, came_at + seconds)
                server.answered_at = time.monotonic()
            return server.answer
        finally:
            server.turn.release()

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

    def _asked(
        self, server: _Server, monitor: Monitor, backend: Backend, deadline: float
    ) -> Status | None:
        try:
            if server.channel is None:
                self._make_room()
                server.channel = monitor.open_channel(backend)
                if server.ask_after == math.inf:  # closed just before
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
                server.drop_channel()  # whose backoff would hide the backend once it has come
        except (DecodeError, ValueError):  # ValueError: the channel was closed meanwhile
            pass
        return None

    def _make_room(self) -> None:
        """Close channels that were not used for longest, until there is room for one more."""
        open_ones = [each for each in list(self._servers.values()) if each.channel]
        open_ones.sort(key=lambda each: each.answered_at)
        for server in open_ones[: max(0, len(open_ones) + 1 - most_channels())]:
            server.rest()


class _Server:
    """What a backend serves at an address."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.turn = threading.Lock()  # of who asks; the others wait for the answer
        self.channel: grpc.Channel | None = None
        self.answer: Status | None = None
        self.answered_at = self.ask_after = -math.inf

    def rest(self) -> None:
        """Close the channel, unless it is in use; it is opened anew when it is needed."""
        if self.turn.acquire(blocking=False):
            self.drop_channel()
            self.turn.release()

    def drop_channel(self) -> None:
        """Close the channel; for whose turn it is."""
        channel, self.channel = self.channel, None
        if channel:
            channel.close()

    def close(self) -> None:
        """Close the channel, though it be in use, and ask no more."""
        self.ask_after = math.inf
        if channel := self.channel:
            channel.close()
