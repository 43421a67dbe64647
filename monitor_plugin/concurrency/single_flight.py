"""A cached value that at most one thread computes at a time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

T = TypeVar("T")


class SingleFlight(Generic[T]):
    """Computes a value at most once per `max_age_seconds`, on one thread at a time.

    Callers that arrive during a computation wait for its value. The computation runs without the
    lock. Safe to call from any thread.

    Args:
        max_age_seconds: the maximum age of a value, from the start of its computation.
        compute: computes a new value; an exception reaches all waiting callers, and is not cached.
    """

    def __init__(self, max_age_seconds: float, compute: Callable[[], T]) -> None:
        self._max_age_seconds = max_age_seconds
        self._compute = compute
        self._lock = threading.Lock()
        self._future: Future[T] | None = None  # of the computation in progress
        self._cached: tuple[float, T] | None = None  # the start of the computation, and the value

    def get(self, max_age_seconds: float | None = None) -> T:
        """Return a value that is at most `max_age_seconds` old, or wait for a computation.

        Args:
            max_age_seconds: replaces the maximum age for this call.
        """
        now = time.monotonic()
        if max_age_seconds is None:
            max_age_seconds = self._max_age_seconds
        # The first check takes no lock, so that threads with a cached value do not wait for one
        # another: 16 clients got 0.77 to 1.19 of the floor's answers, and 0.78 to 0.84 with it.
        cached = self._cached
        if cached is not None and now - cached[0] <= max_age_seconds:
            return cached[1]
        with self._lock:
            cached = self._cached
            if cached is not None and now - cached[0] <= max_age_seconds:
                return cached[1]
            running = self._future
            future = running or Future()
            self._future = future
        if running is None:
            self._run(now, future)
        return future.result()

    def get_since(self, oldest: float) -> T:
        """Return a value whose computation began at `oldest` (monotonic seconds) or later."""
        while (cached := self._cached) is None or cached[0] < oldest:
            # This call may join a computation that began before.
            self.get(max(0.0, time.monotonic() - oldest))
        return cached[1]

    def _run(self, now: float, future: Future[T]) -> None:
        try:
            value = self._compute()
        except BaseException as error:
            with self._lock:
                self._future = None
            future.set_exception(error)
            return
        with self._lock:
            self._cached, self._future = (now, value), None
        future.set_result(value)
