"""Stops and restarts backends for a hook in background threads, one at a time per backend."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from functools import partial

from ..domain.errors import ModelNotLoaded, PidNotHeld
from ..domain.models import Backend
from ..hookspecs import Monitor, hookimpl


class BackgroundStops:
    """Stops or restarts backends in background threads. Thread-safe.

    Each stop is logged with its reason. The first failure of a backend, such as the refusal of
    another hook, is logged as well; that backend is ignored for the next `retry_seconds`. A hook
    file assigns the methods `monitor_started` and `monitor_closing` to variables of the same names.

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

    @property
    def closed(self) -> bool:
        """Whether no more stops begin."""
        return self._closed

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

        def run(monitor: Monitor, is_retry: bool) -> None:
            level = logging.DEBUG if is_retry else logging.WARNING
            text = "model %r (process %d) is being stopped: %s"
            self._logger.log(level, text, backend.model, backend.pid, why)
            monitor.shutdown(backend.model, force, backend.pid, spare_busy=spare_busy)

        return self.begin(backend, run)

    def begin(
        self, backend: Backend, run: Callable[[Monitor, bool], None], done: str = "stopped"
    ) -> bool:
        """Begin to call a function for a backend, such as its stop, in the background.

        Args:
            backend: the backend.
            run: is called on a thread with the monitor, and with whether the last call for the
                backend failed. A call fails if it raises an exception.
            done: what `run` does, for the log: the backend was not `stopped`.

        Returns:
            Whether the call has begun; see `stop`.
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
            is_retry = backend in self._retry_at
        target = partial(self._run, monitor, backend, run, is_retry, done)
        try:
            threading.Thread(target=target, name="monitor-hook-stop", daemon=True).start()
        except RuntimeError as error:
            with self._lock:
                self._under_way.discard(backend)
            text = "model %r (process %d) was not %s: %s"
            self._logger.error(text, backend.model, backend.pid, done, error)
            return False
        return True

    def close(self) -> None:
        """Begin no more stops. The monitor ends the stops under way when it closes."""
        with self._lock:
            self._closed = True

    def _run(
        self,
        monitor: Monitor,
        backend: Backend,
        run: Callable[[Monitor, bool], None],
        is_retry: bool,
        done: str,
    ) -> None:
        try:
            run(monitor, is_retry)
        except (ModelNotLoaded, PidNotHeld):
            pass  # the backend has ended by itself
        except Exception as error:
            with self._lock:
                is_quiet = is_retry or self._closed
                self._retry_at[backend] = time.monotonic() + self._retry_seconds
            level = logging.DEBUG if is_quiet else logging.ERROR
            text = "model %r (process %d) was not %s; the next try is in at least %g s: %s"
            facts = (backend.model, backend.pid, done, self._retry_seconds, error)
            self._logger.log(level, text, *facts)
        finally:
            with self._lock:
                self._under_way.discard(backend)
