"""A costly value that all who ask at about the same time share."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

T = TypeVar("T")


class Shared(Generic[T]):
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
        self._future: Future[T] = Future()
        self._started_at: float | None = None

    def get(self, max_age_seconds: float | None = None) -> T:
        """Give a value no older than `max_age_seconds`, computing it where need be.

        Args:
            max_age_seconds: another age than all others go by.
        """
        now = time.monotonic()
        most = self._max_age_seconds if max_age_seconds is None else max_age_seconds
        with self._lock:
            computes = self._started_at is None or (
                self._future.done() and now - self._started_at > most
            )
            if computes:
                self._future = Future()
                self._started_at = now
            future = self._future
        if computes:
            try:
                future.set_result(self._compute())
            except BaseException as error:
                with self._lock:
                    self._started_at = None
                future.set_exception(error)
        return future.result()
