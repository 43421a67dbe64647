"""`Status` calls, their outcomes, and the counts of the calls."""

from __future__ import annotations

import threading
import time
from array import array
from bisect import bisect_left
from collections.abc import Mapping
from itertools import accumulate
from typing import NamedTuple

import grpc

from ..domain.models import Status

# Upper bounds of the histogram's buckets in seconds. By default a reader waits for 1 s, and a call
# lasts at most 31 s.
DURATION_BOUNDS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0)

_CODES = tuple(code.name for code in grpc.StatusCode)

# The codes of a failed call with which the backend has not answered.
NO_ANSWER = (grpc.StatusCode.DEADLINE_EXCEEDED.name, grpc.StatusCode.UNAVAILABLE.name)


class StatusOutcome(NamedTuple):
    """The result of a `Status` call: a status, or the name of the gRPC code of its failure.

    Attributes:
        status: the status; None if the call failed.
        rpc_error: the name of the code; None if the call did not fail. A request by HTTP has the
            code that gRPC has for such a failure.
        answered: whether the server has answered, with a status or with an error of its own.
        source: `grpc` or `http`.
        protocol: the name of the protocol that gave the status; None without a status, and if no
            protocol is known yet.
        error_text: why there is no status, for people; None if only the code is known.
        pause_seconds: for how long the server gets no further call; it is called again because
            another server may have taken its place. 0: the next reader may call it.
    """

    status: Status | None
    rpc_error: str | None
    answered: bool = False
    source: str = "grpc"
    protocol: str | None = None
    error_text: str | None = None
    pause_seconds: float = 0.0


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
