"""Stops backends for a hook, on threads of their own, once at a time for each backend."""

from __future__ import annotations

import logging
import threading
import time

from ..domain.errors import ModelNotLoaded, PidNotHeld
from ..domain.models import Backend
from ..hookspecs import Monitor

_RETRY_SECONDS = 60.0


class BackgroundStops:
    """Stops backends on threads of its own. Safe to call from any thread.

    A stop that fails, or that another hook refuses, is logged once. A later `stop` of the same
    backend does nothing until `retry_seconds` have passed.

    Args:
        logger: the hook's logger; it gets each stop with its reason, and the first failure.
        retry_seconds: the shortest time between a failure and the next try.

    Attributes:
        monitor: the monitor that stops backends; None until the hook sets it.
    """

    def __init__(self, logger: logging.Logger, retry_seconds: float = _RETRY_SECONDS) -> None:
        self.monitor: Monitor | None = None
        self._logger = logger
        self._retry_seconds = retry_seconds
        self._lock = threading.Lock()
        self._under_way: set[Backend] = set()
        self._failed: dict[Backend, float] = {}
        self._closed = False

    def under_way(self) -> set[Backend]:
        """List all backends that are being stopped, also by clients and other hooks."""
        stopping = self.monitor.stopping() if self.monitor else []
        with self._lock:
            return self._under_way.union(stopping)

    def stop(
        self, backend: Backend, why: str, force: bool = False, spare_busy: bool = False
    ) -> bool:
        """Begin to stop a backend, and return at once.

        Args:
            backend: the backend to stop.
            why: the reason for the log, with figures: `it was idle for 3605 s`.
            force: see `Monitor.shutdown`.
            spare_busy: see `Monitor.shutdown`.

        Returns:
            Whether a stop was begun. None is begun while the backend is being stopped, or shortly
            after a stop of it has failed.
        """
        monitor = self.monitor
        if monitor is None or backend in self.under_way():
            return False
        registered = set(monitor.backends())
        now = time.monotonic()
        with self._lock:
            self._failed = {each: at for each, at in self._failed.items() if each in registered}
            if self._closed or now < self._failed.get(backend, now) or backend in self._under_way:
                return False
            self._under_way.add(backend)
            level = logging.DEBUG if backend in self._failed else logging.WARNING
        self._log(level, backend, "is being stopped: %s", why)
        thread = threading.Thread(
            target=self._run,
            args=(monitor, backend, force, spare_busy),
            name="monitor-hook-stop",
            daemon=True,
        )
        thread.start()
        return True

    def close(self) -> None:
        """Begin no more stops. The monitor ends those that are under way when it closes."""
        with self._lock:
            self._closed = True

    def _run(self, monitor: Monitor, backend: Backend, force: bool, spare_busy: bool) -> None:
        failure: Exception | None = None
        try:
            monitor.shutdown(backend.model, force, backend.pid, spare_busy=spare_busy)
        except (ModelNotLoaded, PidNotHeld):
            pass  # the backend has ended by itself
        except Exception as error:  # any failure is logged, and tried again
            failure = error
        if failure is not None:
            with self._lock:
                level = logging.DEBUG if backend in self._failed or self._closed else logging.ERROR
                self._failed[backend] = time.monotonic() + self._retry_seconds
            text = "was not stopped, which is tried every %g s from now on: %s"
            self._log(level, backend, text, self._retry_seconds, failure)
        with self._lock:
            self._under_way.discard(backend)

    def _log(self, level: int, backend: Backend, text: str, *facts: object) -> None:
        self._logger.log(level, f"model %r (process %d) {text}", backend.model, backend.pid, *facts)
