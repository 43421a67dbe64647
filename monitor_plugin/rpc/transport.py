"""How a backend is asked for its status: what the connection to a backend needs of a transport."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import grpc

from ..domain.models import Backend
from .call import StatusOutcome

# A server without a known protocol logs an error for each request, so the next one waits this long.
OTHER_PROTOCOL_PAUSE_SECONDS = 60.0


class Link(Protocol):
    """An open connection to one backend. Its methods may be called from any thread."""

    def request_status(self, timeout_seconds: float, metadata: Mapping[str, str]) -> StatusOutcome:
        """Request the status, with a deadline for the whole answer.

        Any exception is a fault of the request, such as invalid metadata, or the link was closed.
        """

    def free(self, timeout_seconds: float, metadata: Mapping[str, str]) -> StatusOutcome:
        """Ask the backend to free its model; the outcome has no status and, on success, no error.

        Is called only if the transport's `can_free` is true.
        """

    def close(self) -> None:
        """Close the connection; a request in flight fails."""


class Transport(Protocol):
    """Opens links to one backend, and keeps what it has learnt of the server between them.

    Attributes:
        source: `grpc` or `http`: see `Reading.source`.
        can_free: whether the protocol has a call that frees the model.
    """

    source: str
    can_free: bool

    def open(self) -> Link:
        """Open a link, which connects at its first request.

        Raises:
            ValueError: the address is not local, and no setting protects or allows such calls.
        """


#: Opens a gRPC channel to a backend: see `StatusClient.open_channel`.
OpenChannel = Callable[[Backend], grpc.Channel]
#: Chooses the transport of a backend; None: LocalAI's protocol. Arguments: the backend; opens a
#: gRPC channel to it; is called when a link that is no gRPC channel has connected.
ChooseTransport = Callable[[Backend, OpenChannel, Callable[[], object]], "Transport | None"]
