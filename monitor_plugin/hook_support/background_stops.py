"""Stops backends for a hook in background threads, at most one stop per backend at a time."""

from __future__ import annotations

import logging
import threading
import time
from functools import partial

from ..domain.errors import ModelNotLoaded, PidNotHeld
from ..domain.models import Backend
from ..hookspecs import Monitor, hookimpl


class BackgroundStops:
    """Stops backends in background threads. Thread-safe.

    Each stop is logged with its reason. The first failure of a backend, such as the refusal of
    another hook, is logged as well; `stop` ignores that backend for the next `retry_seconds`. A
    hook file assigns the methods `monitor_started` and `monitor_closing` to variables of the same
    names.

    Attributes:
        monitor: stops the backends; None before `monitor_started`.
    """

    def __init__(self, logger: logging.Logger, retry_seconds: float = 60.0) -> None:
        self.monitor: Monitor | None = None
        self._logger = logger
        self._retry_seconds = retry_seconds
        self._lock = threading.Lock()
        self._under_way: set[Backend] = set()
        self._retry_at: dict[Backend, float] = {}  # of backends whose last stop failed
        self._closed = False

    @hookimpl
    def monitor_started(self, monitor: Monitor) -> None:
        """Store the monitor."""
        self.monitor = monitor

    @hookimpl
    def monitor_closing(self) -> None:
        """Begin no more stops."""
        self.close()

    def under_way(self) -> set[Backend]:
        """Return the backends that are being stopped, also by clients and other hooks."""
        stopping = self.monitor.stopping() if self.monitor else []
        with self._lock:
            return self._under_way.union(stopping)

    def stop(
        self, backend: Backend, why: str, force: bool = False, spare_busy: bool = False
    ) -> bool:
        """Begin to stop a backend in the background. See `Monitor.shutdown` for the flags.

        The log gets the reason `why`, such as `it was idle for 3605 s`. Returns whether a stop has
        begun; False if a stop is under way or has failed recently, or if no thread can be started,
        which is logged.
        """
        monitor = self.monitor
        if monitor is None or backend in self.under_way():
            return False
        registered = set(monitor.backends())
        now = time.monotonic()
        with self._lock:
            self._retry_at = {key: at for key, at in self._retry_at.items() if key in registered}
            if self._closed or now < self._retry_at.get(backend, now) or backend in self._under_way:
                return False
            self._under_way.add(backend)
            level = logging.DEBUG if backend in self._retry_at else logging.WARNING
        text = "model %r (process %d) is being stopped: %s"
        self._logger.log(level, text, backend.model, backend.pid, why)
        run = partial(self._run, monitor, backend, force, spare_busy)
        try:
            threading.Thread(target=run, name="monitor-hook-stop", daemon=True).start()
        except RuntimeError as error:
            with self._lock:
                self._under_way.discard(backend)
            text = "model %r (process %d) was not stopped: %s"
            self._logger.error(text, backend.model, backend.pid, error)
            return False
        return True

    def close(self) -> None:
        """Begin no more stops. The monitor ends the stops under way when it closes."""
        with self._lock:
            self._closed = True

    def _run(self, monitor: Monitor, backend: Backend, force: bool, spare_busy: bool) -> None:
        try:
            monitor.shutdown(backend.model, force, backend.pid, spare_busy=spare_busy)
        except (ModelNotLoaded, PidNotHeld):
            pass  # the backend has ended by itself
        except Exception as error:
            with self._lock:
                again = backend in self._retry_at or self._closed
                self._retry_at[backend] = time.monotonic() + self._retry_seconds
            level = logging.DEBUG if again else logging.ERROR
            text = "model %r (process %d) was not stopped; the next try is in at least %g s: %s"
            facts = (backend.model, backend.pid, self._retry_seconds, error)
            self._logger.log(level, text, *facts)
        finally:
            with self._lock:
                self._under_way.discard(backend)
