"""The adapter to circus: a plugin of the monitor. `plugin` has the plugin of circus."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from ...domain.errors import ShutdownFailed
from ...domain.models import Backend
from ...hookspecs import hookimpl
from ...monitor import Monitor
from ...shutdown.stop import format_pids
from ..process_trees import ProcessTrees
from ..registry_sync import RegistrySync
from .client import CircusError, Watchers

_logger = logging.getLogger(__name__)


class Adapter:
    """Has circus stop backends by their watchers, so that circus does not start them again.

    Args:
        monitor: the monitor of the backends.
        registry_sync: knows the watcher of each backend.
        watchers: stops watchers.
        poll_soon: asks circus soon what runs.
    """

    def __init__(
        self,
        monitor: Monitor,
        registry_sync: RegistrySync,
        watchers: Watchers,
        poll_soon: Callable[[], None],
    ) -> None:
        self._monitor = monitor
        self._registry_sync = registry_sync
        self._watchers = watchers
        self._poll_soon = poll_soon

    @hookimpl
    def monitor_backend_gone(self) -> None:
        """Ask soon what runs: the watcher's process may go on, and then circus reports no event."""
        self._poll_soon()

    @hookimpl
    def monitor_closing(self) -> None:
        """Stop waiting for watchers that circus is stopping."""
        self._watchers.closing.set()

    @hookimpl
    def monitor_stop_backend(self, backend: Backend, timeout_seconds: float) -> bool | None:
        """Have circus stop the backend's watcher.

        Returns:
            True: circus has stopped the backend, or is stopping it. None: the backend is not one of
            circus, or the monitor must stop processes that the backend started and circus left.

        Raises:
            ShutdownFailed: circus did not stop the watcher, or the watcher runs other backends too,
                or unregistered processes of the watcher still run.
        """
        deadline = time.monotonic() + timeout_seconds
        name = self._registry_sync.program_of(backend.pid)
        if name is None:
            return None
        with ProcessTrees() as own, ProcessTrees() as others:
            try:
                for pid in (self._registry_sync.own_process_of(backend.pid), backend.pid):
                    own.add(pid)
                self._check_no_other_backends(name, backend)
                for pid in self._unregistered_pids(name):
                    others.add(pid)
                stopped = self._watchers.stop(name, deadline - time.monotonic(), others.rescan)
                if stopped:
                    others.end(deadline - time.monotonic(), self._watchers.closing)
                own.rescan()
            except (CircusError, OSError) as failure:
                raise ShutdownFailed(backend.model, f"watcher {name!r}: {failure}") from failure
            if not stopped:
                self._warn_of_timeouts(name, timeout_seconds)
            if pids := others.alive():
                why = f"watcher {name!r}: processes that it started still run"
                raise ShutdownFailed(backend.model, f"{why}: {format_pids(pids)}", pids)
            # circus stops its own child only, not the processes that the child started.
            return None if stopped and own.alive() else True

    def _unregistered_pids(self, name: str) -> list[int]:
        """List a watcher's processes whose members are those of no backend."""
        own_process_of = self._registry_sync.own_process_of
        registered = {own_process_of(each.pid) for each in self._monitor.backends()}
        return [pid for pid in self._watchers.pids(name) if pid not in registered]

    def _check_no_other_backends(self, name: str, backend: Backend) -> None:
        stopping = [each.pid for each in self._monitor.stopping()]
        others = [
            each.pid
            for each in self._monitor.backends()
            if self._registry_sync.program_of(each.pid) == name and each.pid not in stopping
        ]
        pids = self._watchers.pids(name)
        # Processes of the watcher may be unregistered, such as a second one with the same address.
        if others or (len(pids) > 1 and self._monitor.stops_one(backend)):
            raise ShutdownFailed(
                backend.model,
                f"watcher {name!r} of circus runs {len(pids)} processes, and "
                "circus cannot stop one of them for good; stop the whole model, or run it in a "
                "watcher of its own",
            )

    def _warn_of_timeouts(self, name: str, seconds: float) -> None:
        graceful = self._watchers.graceful_timeout(name)
        _logger.warning(
            "watcher %r: circus has been stopping it for %g s, and kills it after its "
            "graceful_timeout, %s s: the setting stop_timeout_seconds should be above that",
            name,
            seconds,
            "?" if graceful is None else f"{graceful:g}",
        )
