"""A costly value that all who ask at about the same time share."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

T = TypeVar("T")


class SingleFlight(Generic[T]):
    """Computes a value at most once per `max_age_seconds`, one computation at a time.

    Who asks while it is computed waits for it; the computation runs outside the lock.

    Args:
        max_age_seconds: how old a value may be that is handed out, from the start of computing it.
        compute: gives a fresh one; what it raises reaches all who waited, and is not kept.
    """

    def __init__(self, max_age_seconds: float, compute: Callable[[], T]) -> None:
        self._max_age_seconds = max_age_seconds
        self._compute = compute
        self._lock = threading.Lock()
        self._future: Future[T] | None = None  # of the computation under way
        self._kept: tuple[float, T] | None = None  # when it was begun, and the value

    def get(self, max_age_seconds: float | None = None) -> T:
        """Give a value no older than `max_age_seconds`, computing it where need be.

        Args:
            max_age_seconds: another age than all others go by.
        """
        now = time.monotonic()
        most = self._max_age_seconds if max_age_seconds is None else max_age_seconds
        kept = self._kept
        if kept is not None and now - kept[0] <= most:  # without the lock, as most who ask
            return kept[1]
        with self._lock:
            future = self._future
            computes = future is None and self._kept is kept  # else it was just computed
            if future is None and computes:
                future = self._future = Future()
        if future is None:
            return self.get(max_age_seconds)
        if computes:
            self._run(now, future)
        return future.result()

    def _run(self, now: float, future: Future[T]) -> None:
        try:
            value = self._compute()
        except BaseException as error:
            with self._lock:
                self._future = None
            future.set_exception(error)
            return
        with self._lock:
            self._kept, self._future = (now, value), None
        future.set_result(value)
