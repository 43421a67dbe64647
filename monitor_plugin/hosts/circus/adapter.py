"""The adapter to circus: a plugin of the monitor. `plugin` has the plugin of circus."""

from __future__ import annotations

import logging
import time

from ...domain.errors import ShutdownFailed
from ...domain.models import Backend
from ...hookspecs import hookimpl
from ...monitor import Monitor
from ...processes.process_table import read_row, take_snapshot
from ..registry_sync import RegistrySync
from .client import CircusError, Watchers

_logger = logging.getLogger(__name__)


class Adapter:
    """Has circus stop backends by their watchers, so that circus does not start them again.

    Args:
        monitor: the monitor of the backends.
        registry_sync: knows the watcher of each backend.
        watchers: stops watchers.
    """

    def __init__(self, monitor: Monitor, registry_sync: RegistrySync, watchers: Watchers) -> None:
        self._monitor = monitor
        self._registry_sync = registry_sync
        self._watchers = watchers

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
            ShutdownFailed: circus did not stop the watcher, or the watcher runs other backends too.
        """
        name, deadline = (
            self._registry_sync.program_of(backend.pid),
            time.monotonic() + timeout_seconds,
        )
        if name is None:
            return None
        snapshot = take_snapshot()
        tree = {pid: snapshot.rows[pid].started for pid in snapshot.tree(backend.pid)}
        try:
            self._check_no_other_backends(name, backend)
            stopped = self._watchers.stop(name, deadline - time.monotonic())
        except CircusError as failure:
            raise ShutdownFailed(backend.model, f"watcher {name!r}: {failure}") from failure
        if not stopped:
            self._warn_of_timeouts(name, timeout_seconds)
            return True
        # circus stops its own child only, not the processes that the child started.
        is_left = any(
            (row := read_row(pid)) and row.started == started for pid, started in tree.items()
        )
        return None if is_left else True

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
