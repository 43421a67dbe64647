"""The adapter to circus: a plugin of the monitor. `plugin` has the plugin of circus."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

from ...domain.errors import ShutdownFailed, StartFailed
from ...domain.known_models import KnownModel
from ...domain.logs import LogTail
from ...domain.models import Backend
from ...hookspecs import hookimpl
from ...monitor import Monitor
from ...shutdown.stop import format_pids
from ..discovery import BackendRule, Discovery
from ..poller import Poller
from ..process_trees import ProcessTrees
from ..registry_sync import RegistrySync
from .client import CircusError, Watchers
from .history import WatcherHistories, event_name, parse_event
from .logs import WatcherLogs
from .programs import ModelWatcher, known_models

_logger = logging.getLogger(__name__)


class Adapter:
    """Registers circus' backends with a monitor, and has circus start and stop them.

    circus stops a whole watcher, so that it does not start a stopped backend again.

    Args:
        monitor: the monitor of the backends.
        watchers: starts and stops watchers.
        rules: the programs that are backends, besides those that declare it themselves.

    Attributes:
        poller: asks circus what runs. The caller starts and closes it.
    """

    def __init__(
        self, monitor: Monitor, watchers: Watchers, rules: Sequence[BackendRule] = ()
    ) -> None:
        self._monitor = monitor
        self._watchers = watchers
        self._discovery = Discovery(rules)
        self._registry_sync = RegistrySync(monitor)
        self._histories = WatcherHistories()
        self._logs = WatcherLogs()
        self._models: Sequence[ModelWatcher] = ()  # as the last poll found them
        self.poller = Poller("circus", self._poll)

    def on_event(self, topic: bytes, message: bytes) -> None:
        """Record an event of circus, and poll soon, because the event may be old."""
        event = parse_event(topic, message)
        for each in self._models:
            if event_name(each.watcher.name) == event.watcher:
                if event.action == "reap":
                    self._logs.record_end(each.watcher, event.pid)
                elif event.action == "spawn":
                    self._logs.record_begin(each.watcher, event.pid)
        self._histories.record(event)
        self.poller.poll_soon()

    def _poll(self) -> None:
        states = self._watchers.states()
        found = self._discovery.find([program for each in states for program in each.programs])
        self._histories.record_statuses({each.name: each.status for each in states})
        models = []
        for each in states:
            model = self._discovery.model_of(each.name, each.name, each.programs[0].command)
            if model is not None:
                models.append(ModelWatcher(model, each, self._histories.get(each.name)))
        self._models = models
        self._registry_sync.sync(found)

    @hookimpl
    def monitor_backend_gone(self) -> None:
        """Ask soon what runs: the watcher's process may go on, and then circus reports no event."""
        self.poller.poll_soon()

    @hookimpl
    def monitor_closing(self) -> None:
        """Stop waiting for watchers that circus is starting or stopping."""
        self._watchers.closing.set()

    @hookimpl
    def monitor_list_models(self) -> Sequence[KnownModel]:
        """List the models of circus' watchers, as the last poll found them."""
        return known_models(self._models, time.time())

    @hookimpl
    def monitor_start_model(self, model: str, timeout_seconds: float) -> bool | None:
        """Have circus start all watchers of a model that do not run.

        circus itself starts the processes of a running watcher again.

        Returns:
            True: a watcher runs, or circus is starting it. None: no watcher has that model.

        Raises:
            StartFailed: circus started no watcher of the model.
        """
        deadline = time.monotonic() + timeout_seconds
        names = self._names_of(model)
        if not names:  # the watcher may be new
            self.poller.wait_for_poll(timeout_seconds)
            names = self._names_of(model)
        if not names:
            return None
        failures = []
        for name in names:
            try:
                self._watchers.start(name, deadline - time.monotonic())
            except CircusError as error:
                failures.append(f"watcher {name!r}: {error}")
        if len(failures) == len(names):
            raise StartFailed(model, "; ".join(failures))
        for failure in failures:
            _logger.warning("model %r runs without one of its watchers: %s", model, failure)
        # So that `monitor_list_models` has the new states.
        self.poller.wait_for_poll(deadline - time.monotonic())
        return True

    def _names_of(self, model: str) -> list[str]:
        return [each.watcher.name for each in self._models if each.model == model]

    @hookimpl
    def monitor_read_log(
        self, model: str, pid: int | None, stream: str, max_bytes: int
    ) -> LogTail | None:
        """Read the end of a watcher's log: see `WatcherLogs.read`.

        Without a PID, read the log of the model's watcher that circus has started last.
        """
        if pid is None:
            same = [each for each in self._models if each.model == model]
            last = max(same, key=lambda each: each.history.spawned_at, default=None)
            return self._logs.read(last.watcher, None, stream, max_bytes) if last else None
        name = self._registry_sync.program_of(pid)
        watcher = next((each.watcher for each in self._models if each.watcher.name == name), None)
        if watcher is None:
            return None
        own_pid = self._registry_sync.own_process_of(pid)
        return self._logs.read(watcher, own_pid, stream, max_bytes)

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
