"""The monitor as a plugin of circus: `use = monitor_plugin.hosts.circus.MonitorPlugin`.

circus runs a plugin in a process of its own, as one more watcher. Needs the extra `[circus]`.
"""

from __future__ import annotations

import inspect
import logging
import os
import signal
import sys
import threading
import time
import types
from collections.abc import Sequence
from typing import Any

from circus.client import CircusClient
from circus.exc import CallError
from circus.plugins import CircusPlugin
from circus.watcher import Watcher
from tornado.ioloop import PeriodicCallback

from ...domain.errors import ListenError, MonitorError, ShutdownFailed
from ...domain.models import Backend
from ...hookspecs import hookimpl
from ...monitor import Monitor
from ...processes.process_table import read_row, take_snapshot
from ..discovery import find_backends
from ..poller import Poller
from ..registry_sync import RegistrySync
from .options import check_arguments, parse_options
from .watchers import CircusFailed, Watchers

_logger = logging.getLogger(__name__)

_LISTEN_SECONDS = 15.0
_RETRY_SECONDS = 0.2
_STOP_SELF_SECONDS = 5.0
_LOOK_FOR_CIRCUS_MILLISECONDS = 500


class MonitorPlugin(CircusPlugin):  # type: ignore[misc] # circus has no types
    """Runs a monitor of the programs of this circus. Its options are those of the section."""

    name = "monitor"

    def __init__(self, *arguments: Any, **options: str) -> None:
        super().__init__(*arguments, **options)
        self._options = options
        self._watchers = Watchers(self._call_circus)
        self._follower: Poller | None = None
        self._parent = os.getppid()

    def start(self) -> None:
        """Run until circus stops it, or has ended; backends are left alone."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, _end)
        logging.getLogger("monitor_plugin.audit").setLevel(logging.INFO)
        try:
            self._run()
        except MonitorError as error:
            self._give_up(error)
        except KeyboardInterrupt:
            pass
        except Exception:  # circus starts the plugin again, but its stderr is /dev/null
            _logger.exception("the monitor failed")
            raise

    def _run(self) -> None:
        check_arguments(sys.argv)
        settings, rules = parse_options(self._options, _circus_options(), os.environ)
        monitor = Monitor(settings)
        roster = RegistrySync(monitor)
        stopper = StopHook(monitor, roster, self._watchers)
        monitor.plugin_manager.register(stopper, "circus")
        self._follower = Poller(
            "circus", lambda: roster.sync(find_backends(self._watchers.programs(), rules))
        )
        try:
            _start(monitor)
            if settings.listen is not None:
                _logger.info("the monitor answers at %s", monitor.url)
            self._follower.start()
            super().start()
        finally:
            self._follower.close()
            monitor.close()

    def handle_init(self) -> None:
        """Look whether circus is there: nobody else would end what a killed one leaves."""
        PeriodicCallback(self._look_for_circus, _LOOK_FOR_CIRCUS_MILLISECONDS).start()

    def handle_recv(self, data: Sequence[bytes]) -> None:
        """Take an event as a hint; what it says may be old, and names in it are not whole."""
        if self._follower:
            self._follower.hint()

    def _look_for_circus(self) -> None:
        if os.getppid() != self._parent:
            _logger.warning("circusd (process %d) has ended, and so does its monitor", self._parent)
            self.stop()

    def _give_up(self, error: MonitorError) -> None:
        """Have circus stop this plugin, which it would else start again and again."""
        watcher = self._options.get("name", f"{__name__}.{type(self).__name__}")
        _logger.error(
            "%s. The watcher %r is stopped: correct its section, then `circusctl reloadconfig`",
            error,
            watcher,
        )
        stopped = False
        while not stopped and os.getppid() == self._parent:  # until its SIGTERM
            try:
                stopped = self._watchers.stop(watcher, _STOP_SELF_SECONDS)
            except CircusFailed as failure:  # busy with starting all the others, say
                _logger.debug("%s", failure)

    def _call_circus(self, seconds: float, command: str, **properties: Any) -> dict[str, Any]:
        # One each, as an answer that comes too late would be taken for the next one's.
        client = CircusClient(endpoint=self.endpoint, timeout=seconds, ssh_server=self.ssh_server)
        try:
            return dict(client.send_message(command, **properties))
        except CallError as error:
            raise CircusFailed(
                f"circus at {self.endpoint} did not answer {command!r} within {seconds:.1f} s"
            ) from error
        finally:
            client.stop()


class StopHook:
    """Stops backends through their watchers, so that circus does not start them again.

    Args:
        monitor: says which others are being stopped.
        roster: knows whose each backend is.
        watchers: stops them.
    """

    def __init__(self, monitor: Monitor, roster: RegistrySync, watchers: Watchers) -> None:
        self._monitor = monitor
        self._roster = roster
        self._watchers = watchers

    @hookimpl
    def monitor_closing(self) -> None:
        """End the waits."""
        self._watchers.closing.set()

    @hookimpl
    def monitor_stop_backend(self, backend: Backend, timeout_seconds: float) -> bool | None:
        """Stop the watcher, where that stops nothing else; see the hook's specification."""
        name, deadline = self._roster.name_of(backend.pid), time.monotonic() + timeout_seconds
        if name is None:
            return None
        snapshot = take_snapshot()
        tree = {pid: snapshot.rows[pid].started for pid in snapshot.tree(backend.pid)}
        try:
            self._check_alone(name, backend)
            stopped = self._watchers.stop(name, deadline - time.monotonic())
        except CircusFailed as failure:
            raise ShutdownFailed(backend.model, f"watcher {name!r}: {failure}") from failure
        if not stopped:
            self._warn(name, timeout_seconds)
            return True
        # Circus stopped its own child: what that started is left to the monitor, which None says.
        left = (
            pid
            for pid, started in tree.items()
            if (row := read_row(pid)) and row.started == started
        )
        return None if any(left) else True

    def _check_alone(self, name: str, backend: Backend) -> None:
        stopping = [each.pid for each in self._monitor.stopping()]
        others = [
            each.pid
            for each in self._monitor.backends()
            if self._roster.name_of(each.pid) == name and each.pid not in stopping
        ]
        pids = self._watchers.pids(name)
        # Of the watcher's processes, some may not be registered: two of one address, say.
        if others or (len(pids) > 1 and self._monitor.stops_one(backend)):
            raise ShutdownFailed(
                backend.model,
                f"watcher {name!r} of circus runs {len(pids)} processes, and "
                "circus cannot stop one of them for good; stop the whole model, or run it in a "
                "watcher of its own",
            )

    def _warn(self, name: str, seconds: float) -> None:
        graceful = self._watchers.graceful_timeout(name)
        _logger.warning(
            "watcher %r: circus has been stopping it for %g s, and kills it after its "
            "graceful_timeout, %s s: the setting stop_timeout_seconds should be above that",
            name,
            seconds,
            "?" if graceful is None else f"{graceful:g}",
        )


def _start(monitor: Monitor) -> None:
    """Start it; at a reload the one before may still hold the address for a moment."""
    deadline, told = time.monotonic() + _LISTEN_SECONDS, False
    while True:
        try:
            return monitor.start()
        except ListenError as error:
            if time.monotonic() > deadline:
                raise
            if not told:
                _logger.warning("%s; trying again for %g s", error, _LISTEN_SECONDS)
            told = True
            time.sleep(_RETRY_SECONDS)


def _circus_options() -> set[str]:
    """Name the options that circus itself puts in or takes: all of a watcher's."""
    return {"__name__", "active", *inspect.signature(Watcher.__init__).parameters}


def _end(number: int, frame: types.FrameType | None) -> None:
    """Turn circus' SIGTERM, of which its plugins know nothing, into what they do end by."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt
