"""Makes `Status` calls, decodes their outcomes, and counts them."""

from __future__ import annotations

import threading
import time
from array import array
from bisect import bisect_left
from collections.abc import Callable, Mapping
from itertools import accumulate
from typing import NamedTuple

import grpc
from google.protobuf.message import DecodeError

from ..concurrency.thread_pool import ThreadPool
from ..domain.models import Status
from .protocol import STATUS_METHOD, load_messages, status_from_wire

# Upper bounds of the histogram's buckets in seconds. By default a reader waits for 1 s, and a call
# lasts at most 31 s.
DURATION_BOUNDS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0)

_CODES = tuple(code.name for code in grpc.StatusCode)

# The codes of a failed call with which the backend has not answered.
NO_ANSWER = (grpc.StatusCode.DEADLINE_EXCEEDED.name, grpc.StatusCode.UNAVAILABLE.name)

# What the details of the error contain, from gRPC 1.49.1 to 1.85.3, if the server sent something
# else than HTTP/2. The code is then always UNAVAILABLE.
_NOT_HTTP2 = ("Failed parsing HTTP/2", "Trying to connect an http1.x server")


class StatusOutcome(NamedTuple):
    """The result of a `Status` call: a status, or the name of the gRPC code of its failure.

    Attributes:
        status: the status; None if the call failed.
        rpc_error: the name of the code; None if the call did not fail.
        answered: whether the server has answered, with a status or with an error of its own.
        speaks_grpc: False if the server has sent something that is not gRPC.
    """

    status: Status | None
    rpc_error: str | None
    answered: bool = False
    speaks_grpc: bool = True


NOT_GRPC = StatusOutcome(None, grpc.StatusCode.UNAVAILABLE.name, speaks_grpc=False)


def speaks_grpc(error: grpc.RpcError) -> bool:
    """Return False if a call failed because the server sent something that is not gRPC.

    A server that sends nothing may still be starting, so that it counts as one that speaks gRPC.
    """
    details = error.details() or ""
    is_unavailable = error.code() is grpc.StatusCode.UNAVAILABLE
    return not (is_unavailable and any(each in details for each in _NOT_HTTP2))


class StatusCall:
    """A `Status` call, which any number of readers may wait for.

    Attributes:
        sent_at: when the call was sent (monotonic seconds); before that, when it was created.
        done: set once there is an outcome.
        outcome: None while the call is in flight.
        is_counted: whether the call was counted as failed while it was in flight.
    """

    def __init__(self, outcome: StatusOutcome | None = None) -> None:
        self.sent_at = time.monotonic()
        self.outcome = outcome
        self.is_counted = False
        self.done = threading.Event()
        if outcome is not None:
            self.done.set()


class StatusCaller:
    """Makes `Status` calls, each on a thread of a pool.

    gRPC's own futures start a thread for each call, which takes 750 µs of CPU time instead of 450
    to 520.
    """

    def __init__(self) -> None:
        self._response_class = load_messages()["StatusResponse"]
        self._threads = ThreadPool("monitor-status")

    def start(
        self,
        channel: grpc.Channel,
        timeout_seconds: float,
        get_metadata: Callable[[], tuple[tuple[str, str], ...]],
        on_outcome: Callable[[StatusOutcome | Exception], object],
    ) -> None:
        """Start a call.

        Args:
            channel: the channel to the backend.
            timeout_seconds: the call's deadline.
            get_metadata: returns the call's metadata. It is called on the call's thread, as it may
                call slow hooks.
            on_outcome: called on the call's thread, with the outcome, or with the exception that
                prevented the call, for example because the metadata are invalid.

        Raises:
            RuntimeError: no more threads can be started.
            ValueError: the channel is closed.
        """
        method = channel.unary_unary(STATUS_METHOD, None, None)

        def call() -> None:
            outcome: StatusOutcome | Exception
            try:
                response = method(b"", timeout=timeout_seconds, metadata=get_metadata())
                outcome = self._decode(response)
            except grpc.RpcError as error:
                code = error.code().name
                outcome = StatusOutcome(None, code, code not in NO_ANSWER, speaks_grpc(error))
            except Exception as error:  # the call's readers must get an outcome
                outcome = error
            on_outcome(outcome)

        self._threads.run(call)

    def _decode(self, response: bytes) -> StatusOutcome:
        try:
            status = status_from_wire(self._response_class.FromString(response))
            return StatusOutcome(status, None, answered=True)
        except (DecodeError, ValueError):  # some versions raise ValueError for invalid UTF-8
            return StatusOutcome(None, grpc.StatusCode.INTERNAL.name, answered=True)

    def close(self) -> None:
        """End the threads, each after its current call."""
        self._threads.close()


class StatusCounts(NamedTuple):
    """The finished `Status` calls of one backend.

    Attributes:
        calls: for each of DURATION_BOUNDS, the number of calls that took at most so long; the last
            item is the number of all calls.
        seconds: the sum of the durations of all calls.
        failures: the number of failed calls, by the name of the gRPC code; including calls in
            flight for which a reader has stopped waiting.
    """

    calls: tuple[int, ...]
    seconds: float
    failures: Mapping[str, int]


class StatusCounter:
    """Counts the `Status` calls of one backend in less than 1 KiB of memory. Not thread-safe."""

    def __init__(self) -> None:
        self._calls = array("Q", [0] * (len(DURATION_BOUNDS) + 1))
        self._seconds = 0.0
        self._failures = array("Q", [0] * len(_CODES))

    def add(self, seconds: float, rpc_error: str | None) -> None:
        """Count a call that took `seconds`, and that failed if `rpc_error` is not None."""
        self._calls[bisect_left(DURATION_BOUNDS, seconds)] += 1
        self._seconds += seconds
        if rpc_error is not None:
            self.add_failure(rpc_error)

    def add_failure(self, rpc_error: str) -> None:
        """Count a call as failed, with the name of the gRPC code."""
        self._failures[_CODES.index(rpc_error)] += 1

    def counts(self) -> StatusCounts:
        """Return the counts so far."""
        failures = {code: n for code, n in zip(_CODES, self._failures, strict=True) if n}
        return StatusCounts(tuple(accumulate(self._calls)), self._seconds, failures)
