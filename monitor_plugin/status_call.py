"""One `Status` call to a backend, which any number of readers wait for, and what it gave."""

from __future__ import annotations

import threading
import time
from typing import Any, NamedTuple

import grpc
from google.protobuf.message import DecodeError

from .models import Status
from .protocol import STATUS_METHOD, status_from_wire


class Answer(NamedTuple):
    """What asking a backend gave: a status, or the name of the gRPC code with which it failed."""

    status: Status | None
    rpc_error: str | None


def say(code: grpc.StatusCode, patience_seconds: float) -> Answer:
    """Answer with a code at once, however patient the reader is."""
    return Answer(None, code.name)


class StatusCall:
    """A `Status` call in flight.

    Attributes:
        started: when it was sent, by the monotonic clock; until then, when it was meant to be.
        done: set once there is an answer.
        answer: what it gave; None while it is in flight.
    """

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.done = threading.Event()
        self.answer: Answer | None = None


def call_status(
    channel: grpc.Channel,
    status_response: Any,
    timeout_seconds: float,
    metadata: tuple[tuple[str, str], ...],
) -> Answer:
    """Call `Status`, and wait for what it gives.

    Args:
        channel: to the backend.
        status_response: the class of the message `StatusResponse`.
        timeout_seconds: the call's deadline.
        metadata: sent with it.

    Raises:
        ValueError: the channel is closed, or gRPC refuses the metadata; other errors, too, of gRPC.
    """
    try:
        method = channel.unary_unary(STATUS_METHOD, None, None)
        response = method(b"", timeout=timeout_seconds, metadata=metadata)
    except grpc.RpcError as error:
        return Answer(None, error.code().name)
    try:
        return Answer(status_from_wire(status_response.FromString(response)), None)
    except (DecodeError, ValueError):  # ValueError: text that is not UTF-8, in some versions
        return Answer(None, grpc.StatusCode.INTERNAL.name)
