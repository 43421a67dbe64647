"""Calls of `Status` and `Free`, or what other protocols have instead, to any number of backends."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import grpc

from ..concurrency.blocking import BlockingObserver
from ..concurrency.closing import close_all
from ..concurrency.thread_pool import ThreadPool
from ..config.descriptors import max_channels
from ..domain.models import Backend
from .call import StatusCounts, StatusOutcome
from .channel_limit import ChannelLimit
from .channels import ChannelSecurity, open_channel, open_unused_channel
from .connection import Connection, StatusRequest
from .grpc_transport import LOCALAI, GrpcTransport, LocalAi
from .transport import ChooseTransport, Transport


class StatusClient:
    """Calls backends. Safe to call from any thread.

    Args:
        timeout_seconds: how long readers wait for a `Status` call; deadline of `Free`.
        call_metadata: returns the gRPC metadata, or headers, for calls to a backend.
        security: decides whether calls use TLS, and adds the token.
        blocking: is entered while a reader waits for a call.
        choose_transport: chooses how a backend is asked; None: all by LocalAI's protocol.
    """

    def __init__(
        self,
        timeout_seconds: float,
        call_metadata: Callable[[Backend], Mapping[str, str]],
        security: ChannelSecurity,
        blocking: BlockingObserver,
        choose_transport: ChooseTransport | None = None,
    ) -> None:
        self._timeout_seconds = timeout_seconds
        self._call_metadata = call_metadata
        self._security = security
        self._blocking = blocking
        self._choose = choose_transport
        self._localai = LocalAi()
        self._threads = ThreadPool("monitor-status")
        self._lock = threading.Lock()
        self._connections: dict[Backend, Connection] = {}
        self._opened_at: dict[Backend, float] = {}
        self._channel_limit = ChannelLimit(Connection.close_if_idle)
        self._unused_channel: grpc.Channel | None = None
        self._closed = False

    def request_status(self, backend: Backend) -> StatusRequest:
        """Start a `Status` call, or join the call in flight; never raises.

        The request's `wait` waits until the call is `timeout_seconds` old. If the call has no
        outcome by then, the backend counts as hung. Until a hung backend answers, later requests
        fail without waiting for the timeout, with DEADLINE_EXCEEDED or the last call's UNAVAILABLE.
        """
        return self._connection(backend).request_status()

    def status(self, backend: Backend, timeout_seconds: float = math.inf) -> StatusOutcome:
        """Request a status, and wait for it at most `timeout_seconds`; never raises."""
        return self.request_status(backend).wait(timeout_seconds)

    def statuses(self, backends: Sequence[Backend]) -> list[StatusOutcome]:
        """Request the statuses of many backends, in batches as large as the limit of channels."""
        batch_size = max(1, max_channels())
        outcomes: list[StatusOutcome] = []
        for first in range(0, len(backends), batch_size):
            requests = [self.request_status(each) for each in backends[first : first + batch_size]]
            outcomes += [request.wait() for request in requests]
        return outcomes

    def free(self, backend: Backend) -> str | None:
        """Ask the backend to free its model, which may take `timeout_seconds`; never raises.

        Returns:
            None on success, else the name of the gRPC code.
        """
        return self._connection(backend).free()

    def open_channel(self, backend: Backend) -> grpc.Channel:
        """Open a gRPC channel to a backend, with TLS if required. It connects at its first call.

        Raises:
            ValueError: the address is a URL, or it is not local, and no setting protects or allows
                such calls.
        """
        if self._unused_channel is None:
            opened = open_unused_channel()
            with self._lock:
                if self._unused_channel is None and not self._closed:
                    self._unused_channel = opened
            if self._unused_channel is not opened:
                opened.close()
        channel = open_channel(backend.address, self._security.credentials(backend.address))
        self._note_connected(backend)
        return channel

    def _note_connected(self, backend: Backend) -> None:
        with self._lock:
            self._opened_at[backend] = time.monotonic()

    def _choose_transport(self, backend: Backend) -> Transport:
        connected = partial(self._note_connected, backend)
        chosen = self._choose(backend, self.open_channel, connected) if self._choose else None
        return chosen or GrpcTransport(backend, self.open_channel, LOCALAI, self._localai.ask)

    def metadata(self, backend: Backend) -> Mapping[str, str]:
        """Return the metadata for calls to a backend: those from hooks, and the token."""
        return self._security.add_token(self._call_metadata(backend))

    def log_refusal(self, backend: Backend, method: str) -> None:
        """Log that a hook's call got UNAUTHENTICATED: see `Connection.log_refusal`."""
        self._connection(backend).log_refusal(method)

    def counts(self, backend: Backend) -> StatusCounts | None:
        """Return the counts of the backend's `Status` calls; None if there was none."""
        with self._lock:
            connection = self._connections.get(backend)
        return connection.counts() if connection else None

    def connected_at(self, backend: Backend) -> float:
        """Return when the last connection to a backend was made (monotonic seconds); 0 if none was.

        That of a gRPC channel counts from the opening of the channel, which may be a hook's.
        """
        with self._lock:
            return self._opened_at.get(backend, 0.0)

    def close_connection(self, backend: Backend) -> None:
        """Close the connection to a backend, if there is one. Waiting readers get CANCELLED."""
        with self._lock:
            connection = self._connections.pop(backend, None)
            self._opened_at.pop(backend, None)
        if connection:
            connection.close()

    def close(self) -> None:
        """Close all connections; later calls get CANCELLED."""
        with self._lock:
            self._closed = True
            connections = list(self._connections.values())
            self._connections.clear()
            unused_channel, self._unused_channel = self._unused_channel, None
        close_all(
            *(connection.close for connection in connections),
            *([unused_channel.close] if unused_channel else []),
            self._threads.close,
        )

    def _connection(self, backend: Backend) -> Connection:
        with self._lock:
            connection = self._connections.get(backend)
            if connection is not None:
                return connection
            connection = Connection(
                backend,
                partial(self._choose_transport, backend),
                self._channel_limit,
                self._timeout_seconds,
                partial(self.metadata, backend),
                self._threads,
                self._blocking,
            )
            if not self._closed:
                self._connections[backend] = connection
                return connection
        connection.close()
        return connection
