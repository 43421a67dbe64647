"""The starts, shutdowns and restarts of models: one kind at a time for each model."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager

from ..backends.registry import Registry
from ..concurrency.group_lock import GroupLock
from ..domain.errors import ModelNotLoaded, PidNotHeld
from ..domain.models import Freed
from ..shutdown.coordinator import ShutdownCoordinator
from .starter import ModelStarter


class ModelOperations:
    """Starts, stops and restarts models. Safe to call from any thread.

    Starts, shutdowns and restarts of one model exclude one another, in the order of arrival. Starts
    that arrive one after the other share one start; so do shutdowns, and restarts.

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
        self._lock = threading.Lock()
        self._starts: dict[tuple[object, ...], Future[None]] = {}
        self._callers: Counter[str] = Counter()  # of starts and restarts, by model
        self.on_change: Callable[[], object] = lambda: None

    def starting(self) -> list[str]:
        """List the models for which a start or a restart runs, or waits for its turn."""
        with self._lock:
            return list(self._callers)

    def is_starting(self, model: str) -> bool:
        """Whether a start or a restart of a model runs, or waits for its turn."""
        with self._lock:
            return model in self._callers

    def shutdown(
        self, model: str, force: bool = False, pid: int | None = None, spare_busy: bool = False
    ) -> Freed:
        """Stop a model: see `ShutdownCoordinator.shutdown`.

        With `force`, the wait of a start or a restart of the model ends, which then fails.
        """
        if force:
            self._starter.cancel(model)
        with self._order.hold(model, "shutdown"):
            return self._coordinator.shutdown(model, force, pid, spare_busy)

    def start(self, model: str, timeout_seconds: float | None = None) -> None:
        """Start a model, and wait until it is ready: see `ModelStarter.start`."""
        seconds = self._start_timeout_seconds if timeout_seconds is None else timeout_seconds
        with self._count(model), self._order.hold(model, "start"):
            self._share(("start", model), lambda: self._starter.start(model, seconds))

    def restart(
        self,
        model: str,
        force: bool = False,
        pid: int | None = None,
        *,
        spare_busy: bool = False,
        timeout_seconds: float | None = None,
    ) -> None:
        """Stop a model or one of its backends, and start the model; only start it if it is stopped.

        Raises:
            PidNotHeld, ShutdownRefused, ShutdownFailed: as for a shutdown; nothing was started.
            StartFailed: as for a start.
        """
        seconds = self._start_timeout_seconds if timeout_seconds is None else timeout_seconds

        def run() -> None:
            count = len(self._registry.records(model))
            try:
                self._coordinator.shutdown(model, force, pid, spare_busy)
            except PidNotHeld:
                raise
            except ModelNotLoaded:
                pass
            self._starter.start(model, seconds, backends=max(1, count), again=True)

        with self._count(model), self._order.hold(model, "restart"):
            self._share(("restart", model, force, pid, spare_busy), run)

    def close(self) -> None:
        """End the waits of all starts, and refuse further ones."""
        self._starter.close()

    @contextmanager
    def _count(self, model: str) -> Iterator[None]:
        """Have a model in `starting` during a start or a restart of it."""
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

    def _share(self, key: tuple[object, ...], run: Callable[[], None]) -> None:
        """Run an operation, or wait for the one with the same key that another thread runs."""
        with self._lock:
            future = self._starts.get(key)
            leads = future is None
            if future is None:
                future = self._starts[key] = Future()
        if leads:
            try:
                run()
            except BaseException as error:  # of any kind, as others wait for the result
                future.set_exception(error)
            else:
                future.set_result(None)
            finally:
                with self._lock:
                    del self._starts[key]
        future.result()
