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

from ...domain.errors import ListenError, MonitorError
from ...monitor import Monitor
from .adapter import Adapter
from .client import CircusError, Watchers
from .options import check_arguments, parse_options

_logger = logging.getLogger(__name__)

# The name of the plugin's watcher if its section does not give one.
_PATH = "monitor_plugin.hosts.circus.MonitorPlugin"

_LISTEN_SECONDS = 15.0
_RETRY_SECONDS = 0.2
_STOP_SELF_SECONDS = 5.0
_PARENT_CHECK_MILLISECONDS = 500


class MonitorPlugin(CircusPlugin):  # type: ignore[misc] # circus has no types
    """Runs a monitor of the programs that circus runs. Its options are those of its section."""

    name = "monitor"

    def __init__(self, *arguments: Any, **options: str) -> None:
        super().__init__(*arguments, **options)
        self._options = options
        self._watchers = Watchers(self._call_circus)
        self._adapter: Adapter | None = None
        self._parent = os.getppid()

    def start(self) -> None:
        """Run until circus stops the plugin or ends. The backends go on running."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, _interrupt)
        logging.getLogger("monitor_plugin.audit").setLevel(logging.INFO)
        try:
            self._run()
        except MonitorError as error:
            self._give_up(error)
        except KeyboardInterrupt:
            pass
        except Exception:  # log it, as circus starts the plugin again with stderr at /dev/null
            _logger.exception("the monitor failed")
            raise

    def _run(self) -> None:
        check_arguments(sys.argv)
        settings, rules = parse_options(self._options, _circus_options(), os.environ)
        monitor = Monitor(settings)
        adapter = self._adapter = Adapter(monitor, self._watchers, rules)
        monitor.plugin_manager.register(adapter, "circus")
        try:
            _start(monitor)
            if settings.listen is not None:
                _logger.info("the monitor answers at %s", monitor.url)
            adapter.poller.start()
            super().start()
        finally:
            adapter.poller.close()
            monitor.close()

    def handle_init(self) -> None:
        """Begin to check that circus runs: if it is killed, nothing else ends this process."""
        PeriodicCallback(self._check_parent, _PARENT_CHECK_MILLISECONDS).start()

    def handle_recv(self, data: Sequence[bytes]) -> None:
        """Pass an event on."""
        if self._adapter:
            self._adapter.on_event(*data)

    def _check_parent(self) -> None:
        if os.getppid() != self._parent:
            _logger.warning("circusd (process %d) has ended, and so does its monitor", self._parent)
            self.stop()

    def _give_up(self, error: MonitorError) -> None:
        """Have circus stop this plugin, which it would otherwise start again and again."""
        watcher = self._options.get("name", _PATH)
        _logger.error(
            "%s. The watcher %r is stopped: correct its section, then `circusctl reloadconfig`",
            error,
            watcher,
        )
        stopped = False
        while not stopped and os.getppid() == self._parent:  # which ends with its SIGTERM
            try:
                stopped = self._watchers.stop(watcher, _STOP_SELF_SECONDS)
            except CircusError as failure:  # such as while it starts the other watchers
                _logger.debug("%s", failure)

    def _call_circus(self, seconds: float, command: str, **properties: Any) -> dict[str, Any]:
        # A client for each command, as a late answer would be taken for that of the next command.
        client = CircusClient(endpoint=self.endpoint, timeout=seconds, ssh_server=self.ssh_server)
        try:
            return dict(client.send_message(command, **properties))
        except CallError as error:
            raise CircusError(
                f"circus at {self.endpoint} did not answer {command!r} within {seconds:.1f} s"
            ) from error
        finally:
            client.stop()


def _start(monitor: Monitor) -> None:
    """Start the monitor, also if the plugin before a reload still holds the address."""
    deadline, is_logged = time.monotonic() + _LISTEN_SECONDS, False
    while True:
        try:
            return monitor.start()
        except ListenError as error:
            if time.monotonic() > deadline:
                raise
            if not is_logged:
                _logger.warning("%s; trying again for %g s", error, _LISTEN_SECONDS)
            is_logged = True
            time.sleep(_RETRY_SECONDS)


def _circus_options() -> set[str]:
    """Return the options that circus itself adds or uses: those of every watcher."""
    return {"__name__", "active", *inspect.signature(Watcher.__init__).parameters}


def _interrupt(number: int, frame: types.FrameType | None) -> None:
    """Turn SIGTERM, which plugins of circus do not handle, into a KeyboardInterrupt."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt
