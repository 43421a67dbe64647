"""gRPC `Status` and `Free` for any number of backends."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import grpc

from ..concurrency.blocking import BlockingObserver
from ..config.descriptors import most_channels
from ..domain.models import Backend
from .call import StatusCaller, StatusOutcome, say
from .call_stats import StatusCounts
from .channel_security import ChannelSecurity
from .channels import open_channel, open_keeper
from .connection import Connection
from .protocol import load_messages


class StatusClient:
    """Asks backends for their status. Safe to call from any thread.

    Args:
        timeout_seconds: how long a `Status` call may keep its readers waiting; deadline of `Free`.
        call_metadata: gives the gRPC metadata to send with a call to that backend.
        security: decides between TLS and the clear, and knows the token for all backends.
        waits: told of each wait for an answer.
    """

    def __init__(
        self,
        timeout_seconds: float,
        call_metadata: Callable[[Backend], Mapping[str, str]],
        security: ChannelSecurity,
        waits: BlockingObserver,
    ) -> None:
        self._timeout_seconds = timeout_seconds
        self._call_metadata = call_metadata
        self._security = security
        self._waits = waits
        self._caller = StatusCaller(load_messages()("StatusResponse"))
        self._lock = threading.Lock()
        self._connections: dict[Backend, Connection] = {}
        self._keeper: grpc.Channel | None = None
        self._closed = False

    def status(self, backend: Backend, patience_seconds: float = math.inf) -> StatusOutcome:
        """Ask for the backend's status, or join the call that is under way.

        Waits until that call is `timeout_seconds` old, and at most `patience_seconds`; once a call
        was that old, and until the backend answers again, says DEADLINE_EXCEEDED at once. Never
        raises.
        """
        return self.begin(backend)(patience_seconds)

    def statuses(self, backends: Sequence[Backend]) -> list[StatusOutcome]:
        """Ask many backends at the same time, as `status` asks each; never raises.

        At the same time are as many as there may be channels.
        """
        at_once = max(1, most_channels())
        answers: list[StatusOutcome] = []
        for first in range(0, len(backends), at_once):
            asked = [self.begin(backend) for backend in backends[first : first + at_once]]
            answers += [wait(math.inf) for wait in asked]
        return answers

    def begin(self, backend: Backend) -> Callable[[float], StatusOutcome]:
        """Begin to ask, as `status` does; what is given waits, as long as it is told at most."""
        connection = self._connection(backend)
        return connection.ask() if connection else partial(say, grpc.StatusCode.CANCELLED)

    def free(self, backend: Backend) -> str | None:
        """Ask the backend to free its model, for at most `timeout_seconds`.

        Returns:
            None where it answered, else the gRPC code's name. Never raises.
        """
        connection = self._connection(backend)
        return connection.free() if connection else grpc.StatusCode.CANCELLED.name

    def open_channel(self, backend: Backend) -> grpc.Channel:
        """Make a channel to a backend, by TLS or in the clear; it connects at its first call.

        Raises:
            ValueError: its address is not local, and nothing says how to protect it.
        """
        if self._keeper is None:
            made = open_keeper()
            with self._lock:
                if self._keeper is None and not self._closed:
                    self._keeper = made
            if self._keeper is not made:
                made.close()
        return open_channel(backend.address, self._security.credentials(backend.address))

    def metadata(self, backend: Backend) -> Mapping[str, str]:
        """Give the metadata of a call to a backend, the token with them."""
        return self._security.with_token(self._call_metadata(backend))

    def counts(self, backend: Backend) -> StatusCounts | None:
        """Give what was counted of the backend's `Status` calls; None where it had none."""
        with self._lock:
            connection = self._connections.get(backend)
        return connection.counts() if connection else None

    def forget(self, backend: Backend) -> None:
        """Close the backend's channel, if it has one; readers that wait get CANCELLED."""
        with self._lock:
            connection = self._connections.pop(backend, None)
        if connection:
            connection.close()

    def close(self) -> None:
        """Close every channel; calls after that get CANCELLED."""
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

    def _connection(self, backend: Backend) -> Connection | None:
        with self._lock:
            if self._closed:
                return None
            # At the end stand those that were used last.
            connection = self._connections.pop(backend, None) or Connection(
                backend.address,
                partial(self.open_channel, backend),
                self._timeout_seconds,
                partial(self.metadata, backend),
                self._make_room,
                self._caller,
                self._waits,
            )
            self._connections[backend] = connection
            return connection

    def _make_room(self) -> bool:
        """Close channels that were not used for longest, until there is room for one more."""
        most = most_channels()
        with self._lock:
            open_ones = [each for each in self._connections.values() if each.is_open]
        surplus = len(open_ones) + 1 - most
        for connection in open_ones:
            if surplus <= 0:
                break
            surplus -= connection.rest()
        return surplus <= 0
