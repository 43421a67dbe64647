"""`Status` calls to backends: how they are made, waited for, and what they give."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import grpc
from google.protobuf.message import DecodeError

from ..concurrency.thread_pool import ThreadPool
from ..domain.models import Status
from .protocol import STATUS_METHOD, status_from_wire


class StatusOutcome(NamedTuple):
    """What asking a backend gave: a status, or the name of the gRPC code with which it failed."""

    status: Status | None
    rpc_error: str | None


def say(code: grpc.StatusCode, patience_seconds: float) -> StatusOutcome:
    """Answer with a code at once, however patient the reader is."""
    return StatusOutcome(None, code.name)


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
        self.answer: StatusOutcome | None = None


class StatusCaller:
    """Makes `Status` calls, each on a thread that is kept a moment for the next.

    gRPC's own futures start a thread for each call, at half its cost.

    Args:
        status_response: the class of the message `StatusResponse`.
    """

    def __init__(self, status_response: Any) -> None:
        self._status_response = status_response
        self._workers = ThreadPool("monitor-status")

    def begin(
        self,
        channel: grpc.Channel,
        timeout_seconds: float,
        metadata: tuple[tuple[str, str], ...],
        done: Callable[[StatusOutcome | Exception], object],
    ) -> None:
        """Begin a call.

        Args:
            channel: to the backend.
            timeout_seconds: the call's deadline.
            metadata: sent with it.
            done: called on that thread with the outcome, or with the exception raised.

        Raises:
            RuntimeError: the system starts no more threads.
            ValueError: the channel is closed.
        """
        method = channel.unary_unary(STATUS_METHOD, None, None)
        call = partial(method, b"", timeout=timeout_seconds, metadata=metadata)
        self._workers.run(lambda: done(self._outcome(call)))

    def _outcome(self, call: Callable[[], bytes]) -> StatusOutcome | Exception:
        try:
            response = call()
        except grpc.RpcError as error:
            return StatusOutcome(None, error.code().name)
        except Exception as error:
            return error
        try:
            return StatusOutcome(status_from_wire(self._status_response.FromString(response)), None)
        except (DecodeError, ValueError):  # ValueError: text that is not UTF-8, in some versions
            return StatusOutcome(None, grpc.StatusCode.INTERNAL.name)

    def close(self) -> None:
        """End the threads that are idle; those that wait for a call end with it."""
        self._workers.close()
