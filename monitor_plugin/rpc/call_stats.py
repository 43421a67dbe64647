"""How long `Status` calls took, and how they failed, counted for one backend."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Mapping
from itertools import accumulate
from typing import NamedTuple

import grpc

# Seconds: readers wait for one, unless it is set otherwise, and a call is given up after 30.
DURATION_BOUNDS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0)

_CODES = tuple(code.name for code in grpc.StatusCode)


class StatusCounts(NamedTuple):
    """The `Status` calls of one backend that have finished.

    Attributes:
        calls: how many took no longer than each of DURATION_BOUNDS, and how many there were.
        seconds: what all of them took.
        failures: how many failed, by the gRPC code's name.
    """

    calls: tuple[int, ...]
    seconds: float
    failures: Mapping[str, int]


class StatusCounter:
    """Counts the `Status` calls of one backend, in under 1 KiB. Its owner's lock guards it."""

    def __init__(self) -> None:
        self._calls = array("Q", [0] * (len(DURATION_BOUNDS) + 1))
        self._seconds = 0.0
        self._failures = array("Q", [0] * len(_CODES))

    def add(self, seconds: float, rpc_error: str | None) -> None:
        """Count a call that took so long, and failed with that code, if with any."""
        self._calls[bisect_left(DURATION_BOUNDS, seconds)] += 1
        self._seconds += seconds
        if rpc_error is not None:
            self._failures[_CODES.index(rpc_error)] += 1

    def counts(self) -> StatusCounts:
        """Give what was counted so far."""
        failures = {code: n for code, n in zip(_CODES, self._failures, strict=True) if n}
        return StatusCounts(tuple(accumulate(self._calls)), self._seconds, failures)
