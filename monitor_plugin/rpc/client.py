"""gRPC `Status` and `Free` calls to any number of backends."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import grpc

from ..concurrency.blocking import BlockingObserver
from ..config.descriptors import most_channels
from ..domain.models import Backend
from .call import StatusCaller, StatusCounts, StatusOutcome
from .channels import ChannelSecurity, open_channel, open_keeper
from .connection import ChannelLimitReached, Connection, StatusRequest


class StatusClient:
    """Calls backends. Safe to call from any thread.

    Args:
        timeout_seconds: how long readers wait for a `Status` call; deadline of `Free`.
        call_metadata: returns the gRPC metadata for calls to a backend.
        security: decides between TLS and the clear, and adds the token.
        blocking: notified while a reader waits for a call.
    """

    def __init__(
        self,
        timeout_seconds: float,
        call_metadata: Callable[[Backend], Mapping[str, str]],
        security: ChannelSecurity,
        blocking: BlockingObserver,
    ) -> None:
        self._timeout_seconds = timeout_seconds
        self._call_metadata = call_metadata
        self._security = security
        self._blocking = blocking
        self._caller = StatusCaller()
        self._lock = threading.Lock()
        self._connections: dict[Backend, Connection] = {}  # the last used ones at the end
        self._keeper: grpc.Channel | None = None
        self._closed = False

    def request_status(self, backend: Backend) -> StatusRequest:
        """Start a `Status` call, or join the one in flight; the request waits for its outcome.

        A request waits until its call is `timeout_seconds` old. Once a call was that old the
        backend hangs: until it answers, requests get DEADLINE_EXCEEDED at once. Never raises.
        """
        return self._connection(backend).request_status()

    def status(self, backend: Backend, timeout_seconds: float = math.inf) -> StatusOutcome:
        """Request a status, and wait for it at most `timeout_seconds`; never raises."""
        return self.request_status(backend).wait(timeout_seconds)

    def statuses(self, backends: Sequence[Backend]) -> list[StatusOutcome]:
        """Request the statuses of many backends, as many at a time as there may be channels."""
        at_once = max(1, most_channels())
        outcomes: list[StatusOutcome] = []
        for first in range(0, len(backends), at_once):
            requests = [self.request_status(each) for each in backends[first : first + at_once]]
            outcomes += [request.wait() for request in requests]
        return outcomes

    def free(self, backend: Backend) -> str | None:
        """Ask the backend to free its model, which may take `timeout_seconds`; never raises.

        Returns:
            None on success, else the name of the gRPC code.
        """
        return self._connection(backend).free()

    def open_channel(self, backend: Backend) -> grpc.Channel:
        """Open a channel to a backend, with TLS or in the clear; it connects at its first call.

        Raises:
            ValueError: the address is not local, and no setting protects or allows such calls.
        """
        if self._keeper is None:
            opened = open_keeper()
            with self._lock:
                if self._keeper is None and not self._closed:
                    self._keeper = opened
            if self._keeper is not opened:
                opened.close()
        return open_channel(backend.address, self._security.credentials(backend.address))

    def metadata(self, backend: Backend) -> Mapping[str, str]:
        """Return the metadata for calls to a backend: those from hooks, and the token."""
        return self._security.add_token(self._call_metadata(backend))

    def counts(self, backend: Backend) -> StatusCounts | None:
        """Return the counts of the backend's `Status` calls; None if there was none."""
        with self._lock:
            connection = self._connections.get(backend)
        return connection.counts() if connection else None

    def close_connection(self, backend: Backend) -> None:
        """Close the connection to a backend, if there is one; its readers get CANCELLED."""
        with self._lock:
            connection = self._connections.pop(backend, None)
        if connection:
            connection.close()

    def close(self) -> None:
        """Close all connections; later calls get CANCELLED."""
        with self._lock:
            self._closed = True
            connections = list(self._connections.values())
            self._connections.clear()
            keeper, self._keeper = self._keeper, None
        for connection in connections:
            connection.close()
        if keeper:
            keeper.close()
        self._caller.close()

    def _connection(self, backend: Backend) -> Connection:
        with self._lock:
            connection = self._connections.pop(backend, None) or Connection(
                backend.address,
                partial(self._open_within_limit, backend),
                self._timeout_seconds,
                partial(self.metadata, backend),
                self._caller,
                self._blocking,
            )
            if not self._closed:
                self._connections[backend] = connection
                return connection
        connection.close()
        return connection

    def _open_within_limit(self, backend: Backend) -> grpc.Channel:
        """Open a channel, after closing the channels that were unused for longest if need be.

        Raises:
            ChannelLimitReached: no channel is unused.
        """
        with self._lock:
            open_ones = [each for each in self._connections.values() if each.is_open]
        surplus = len(open_ones) + 1 - most_channels()
        for connection in open_ones:
            if surplus <= 0:
                break
            surplus -= connection.close_if_idle()
        if surplus > 0:
            raise ChannelLimitReached
        return self.open_channel(backend)
