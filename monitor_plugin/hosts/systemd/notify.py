"""Tells systemd how the monitor's own service is: the protocol of sd_notify(3).

A unit with `Type=notify` counts as started once the monitor serves. With `WatchdogSec=`, systemd
starts the monitor again when the HTTP server no longer answers, or when the sweeps no longer end.
"""

from __future__ import annotations

import http.client
import logging
import os
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import closing

from ...client import open_connection
from ...concurrency.periodic import PeriodicTask
from ...config.settings import Settings
from ...domain.errors import MonitorError
from ...hookspecs import Monitor, hookimpl

_logger = logging.getLogger(__name__)

# How long a sweep may take, besides the timeouts of statuses and hooks, and besides the interval.
# A sweep of 200 backends takes less than a second of CPU time, and the pause after it nine times
# that.
_SWEEP_SECONDS = 60.0


class ServiceNotifier:
    """Notifies systemd of the monitor's start, its end, its reloads and its progress.

    A plugin of the monitor. It does nothing unless systemd has started the process with
    `Type=notify`.

    Args:
        environ: pass `os.environ`. `NOTIFY_SOCKET` names systemd's socket; `WATCHDOG_USEC` is the
            time in which systemd expects the next sign of life, in microseconds.
        settings: the interval of sweeps, and the timeouts of statuses and of hooks.
    """

    def __init__(self, environ: Mapping[str, str], settings: Settings) -> None:
        self._address = environ.get("NOTIFY_SOCKET", "")
        self._watchdog: PeriodicTask | None = None
        self._monitor: Monitor | None = None
        self._http_seconds = 0.0
        self._last_sweep: float | None = None
        self._max_sweep_age: float | None = None
        if settings.sweep_interval_seconds:
            self._max_sweep_age = (
                _SWEEP_SECONDS
                + settings.sweep_interval_seconds
                + settings.status_timeout_seconds
                + settings.hook_timeout_seconds
            )
        if self._address and environ.get("WATCHDOG_PID") in (None, str(os.getpid())):
            seconds = int(environ.get("WATCHDOG_USEC", 0)) / 1_000_000
            if seconds:
                self._http_seconds = seconds / 4
                self._watchdog = PeriodicTask("monitor-watchdog", seconds / 2, self._prove_progress)

    @hookimpl(trylast=True)
    def monitor_started(self, monitor: Monitor) -> None:
        """Notify systemd that the monitor has started."""
        self._monitor = monitor
        self._last_sweep = time.monotonic()
        self._notify("READY=1")
        if self._watchdog:
            self._watchdog.start()

    @hookimpl
    def monitor_readings_swept(self) -> None:
        """Note that the sweeps progress."""
        self._last_sweep = time.monotonic()

    @hookimpl
    def monitor_closing(self) -> None:
        """Notify systemd that the monitor stops."""
        self._notify("STOPPING=1")
        if self._watchdog:
            self._watchdog.close()

    def reload(self, reload: Callable[[], None]) -> None:
        """Call a function, and notify systemd of its begin and its end."""
        # systemd wants the time of CLOCK_MONOTONIC in microseconds (`Type=notify-reload`).
        self._notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
        try:
            reload()
        finally:
            self._notify("READY=1")

    def _prove_progress(self) -> None:
        """Send a sign of life if the HTTP server answers and the sweeps progress."""
        assert self._monitor
        assert self._last_sweep
        age = time.monotonic() - self._last_sweep
        if self._max_sweep_age is not None and age > self._max_sweep_age:
            _logger.error("the last sweep ended %.0f s ago: systemd will restart the monitor", age)
        elif error := self._ask_server(self._monitor):
            _logger.error("the HTTP server does not answer: %s", error)
        else:
            self._notify("WATCHDOG=1")

    def _ask_server(self, monitor: Monitor) -> Exception | None:
        """Return why the HTTP server does not answer; None if it does, or if there is none."""
        try:
            with closing(open_connection(monitor.url, self._http_seconds)) as connection:
                connection.request("GET", "/healthz")
                connection.getresponse()
        except MonitorError:  # the setting `listen` is `none`
            return None
        except (OSError, http.client.HTTPException) as error:
            return error
        return None

    def _notify(self, state: str) -> None:
        if not self._address:
            return
        # systemd writes the first byte of an abstract name, which is 0, as @.
        address = "\0" + self._address[1:] if self._address[0] == "@" else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.connect(address)
                sender.sendall(state.encode())
        except OSError as error:
            _logger.warning("systemd cannot be notified at %s: %s", self._address, error)
