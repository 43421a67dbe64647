"""Starts, stops and restarts models, and orders these operations for each model."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager

from ..backends.registry import Registry
from ..concurrency.group_lock import Cancelled, Group, GroupLock, LockTimeout
from ..domain.errors import ModelNotLoaded, PidNotHeld, StartFailed
from ..domain.models import Freed
from ..shutdown.coordinator import ShutdownCoordinator
from .starter import ModelStarter

_SHUTDOWN = "shutdown"


class ModelOperations:
    """Starts, stops and restarts models. Safe to call from any thread.

    Starts, shutdowns and restarts of one model exclude one another, in the order of arrival. Equal
    starts that arrive one after the other share one start; so do equal restarts. Shutdowns that
    arrive one after the other run together, as the coordinator says.

    Args:
        registry: the registered backends.
        coordinator: stops models.
        starter: starts models.
        start_timeout_seconds: the maximum time of a start, unless the caller gives another.

    Attributes:
        on_change: called when `starting` may have changed, on the thread of the start; it must not
            block.
    """

    def __init__(
        self,
        registry: Registry,
        coordinator: ShutdownCoordinator,
        starter: ModelStarter,
        start_timeout_seconds: float,
    ) -> None:
        self._registry = registry
        self._coordinator = coordinator
        self._starter = starter
        self._start_timeout_seconds = start_timeout_seconds
        self._order = GroupLock()
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._callers: Counter[str] = Counter()  # callers of starts and restarts, by model
        self.on_change: Callable[[], object] = lambda: None

    def starting(self) -> list[str]:
        """List the models for which a start or a restart runs, or waits for its turn."""
        with self._lock:
            return list(self._callers)

    def is_starting(self, model: str) -> bool:
        """Whether a start or a restart of a model runs, or waits for its turn."""
        with self._lock:
            return model in self._callers

    def is_loaded(self, model: str) -> bool:
        """Whether a start of a model would have nothing to do, and nothing to wait for."""
        return self._order.is_free(model) and self._starter.is_loaded(model)

    def shutdown(
        self, model: str, force: bool = False, pid: int | None = None, spare_busy: bool = False
    ) -> Freed:
        """Stop a model: see `ShutdownCoordinator.shutdown`.

        With `force`, earlier starts and restarts of the model fail, and an earlier shutdown no
        longer waits for busy backends: see `ShutdownCoordinator.skip_drain`.
        """
        if force:
            self._coordinator.skip_drain(model, pid)
        with self._order.hold(model, _SHUTDOWN, cancels=force):
            return self._coordinator.shutdown(model, force, pid, spare_busy)

    def start(self, model: str, timeout_seconds: float | None = None) -> None:
        """Start a model, and wait until it is ready: see `ModelStarter.start`.

        Args:
            model: the model's name.
            timeout_seconds: the maximum time, including the wait for earlier operations.
        """
        seconds = self._seconds(timeout_seconds)
        deadline = time.monotonic() + seconds

        def run(group: Group) -> None:
            self._starter.start(model, seconds, deadline, group.cancelled)

        self._run_once(model, ("start", seconds), run, seconds)

    def restart(
        self,
        model: str,
        force: bool = False,
        pid: int | None = None,
        *,
        spare_busy: bool = False,
        timeout_seconds: float | None = None,
    ) -> None:
        """Stop a model or one of its backends, then start it. A stopped model is only started.

        Args:
            model: the model's name.
            force: as for a shutdown.
            pid: the PID of the only backend to stop; None stops all.
            spare_busy: as for a shutdown.
            timeout_seconds: the maximum time of the start alone.

        Raises:
            PidNotHeld, ShutdownRefused, ShutdownFailed: as for a shutdown; nothing was started.
            StartFailed: as for a start; or no plugin can start models, so that nothing was stopped.
        """
        seconds = self._seconds(timeout_seconds)

        def run(group: Group) -> None:
            count = len(self._registry.records(model))
            if count and not self._starter.may_start():  # it would only be stopped
                reason = "no host of this monitor can start models, so it was not stopped either"
                raise StartFailed(model, reason)
            try:
                self._coordinator.shutdown(model, force, pid, spare_busy)
            except PidNotHeld:
                raise
            except ModelNotLoaded:
                pass
            if pid is not None:
                count = len(self._registry.records(model)) + 1
            deadline = time.monotonic() + seconds
            self._starter.start(
                model, seconds, deadline, group.cancelled, backends=max(1, count), again=True
            )

        self._run_once(model, ("restart", force, pid, spare_busy, seconds), run)

    def close(self) -> None:
        """End the waits of all starts, and refuse further ones."""
        self._closing.set()
        self._order.cancel(keep=_SHUTDOWN)

    @contextmanager
    def _count(self, model: str) -> Iterator[None]:
        """Count a caller of a start or a restart, so that `starting` lists the model."""
        with self._lock:
            self._callers[model] += 1
        self.on_change()
        try:
            yield
        finally:
            with self._lock:
                self._callers[model] -= 1
                if not self._callers[model]:
                    del self._callers[model]
            self.on_change()

    def _seconds(self, timeout_seconds: float | None) -> float:
        if timeout_seconds is None:
            return self._start_timeout_seconds
        return min(timeout_seconds, threading.TIMEOUT_MAX)

    def _run_once(
        self,
        model: str,
        name: Hashable,
        run: Callable[[Group], None],
        seconds: float | None = None,
    ) -> None:
        """Run an operation when earlier ones have ended, or share an equal one of other callers."""
        try:
            with self._count(model), self._order.hold(model, name, seconds) as group:
                if self._closing.is_set():
                    raise Cancelled
                self._order.run_once(group, lambda: run(group))
        except LockTimeout:
            reason = f"another operation on it has not ended within {seconds:g} s"
            raise StartFailed(model, reason) from None
        except Cancelled:
            ended_by = "the end of the monitor" if self._closing.is_set() else "a shutdown by force"
            reason = f"{ended_by} ended the wait for it"
            raise StartFailed(model, reason, is_cancelled=True) from None
