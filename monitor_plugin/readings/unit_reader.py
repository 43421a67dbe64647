"""Reads the units in which hosts run backends, by the hook `monitor_describe_unit`."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from concurrent.futures import Future, wait
from typing import NamedTuple

from ..concurrency.thread_pool import ThreadPool
from ..domain.models import Backend
from ..domain.units import HostUnit
from ..plugins.hooks import Hooks

_MAX_AGE_SECONDS = 1.0
_MAX_CONCURRENT_CALLS = 16


class _Call(NamedTuple):
    """A call of the hook for a backend: when it was requested (monotonic seconds), its result."""

    requested_at: float
    future: Future[HostUnit | None]


class UnitReader:
    """Reads the units of backends, each at most once a second. Safe to call from any thread.

    The hook is called for several backends at the same time. A list waits for it no longer than
    one call may take, regardless of the number of backends: later units are unknown in that list.

    Args:
        hooks: describe the units.
        thread_pool: runs the calls.
        timeout_seconds: how long `read` waits.
    """

    def __init__(self, hooks: Hooks, thread_pool: ThreadPool, timeout_seconds: float) -> None:
        self._hooks = hooks
        self._thread_pool = thread_pool
        self._timeout_seconds = timeout_seconds
        self._lock = threading.Lock()
        self._calls: dict[Backend, _Call] = {}  # those in progress, and of the last second

    def read(self, backends: Iterable[Backend]) -> dict[Backend, HostUnit]:
        """Read the units of backends; those that are not known are left out."""
        if not self._hooks.may_describe_unit():
            return {}
        futures = self._request(list(backends))
        done = wait(futures.values(), self._timeout_seconds).done
        units = {
            backend: future.result()
            for backend, future in futures.items()
            if future in done and future.exception() is None
        }
        return {backend: unit for backend, unit in units.items() if unit is not None}

    def _request(self, backends: list[Backend]) -> dict[Backend, Future[HostUnit | None]]:
        """Begin the calls that are due; return the calls of all backends that could be begun."""
        now = time.monotonic()
        with self._lock:
            self._calls = {
                backend: call
                for backend, call in self._calls.items()
                if now - call.requested_at < _MAX_AGE_SECONDS or not call.future.done()
            }
            due = [each for each in dict.fromkeys(backends) if each not in self._calls]
            try:
                futures = self._thread_pool.map(
                    self._hooks.describe_unit, due, _MAX_CONCURRENT_CALLS
                )
            except RuntimeError:  # no thread can be started
                futures = []
            for backend, future in zip(due, futures, strict=False):
                self._calls[backend] = _Call(now, future)
            return {each: self._calls[each].future for each in backends if each in self._calls}
