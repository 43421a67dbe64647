"""Stops backends that did nothing for a while.

The monitor sees no inference. Idle means: for the whole limit a backend was never seen BUSY, none
of its Status calls missed the deadline, and its process tree used less than 1 % of a core; what is
unknown is never idle. It is stopped as `POST /backend/shutdown` does it, but not if it has become
BUSY meanwhile, and stays so for `drain_timeout_seconds`. Where that fails it is tried again every
minute, and the log says so once. It looks at each background sweep (the monitor's setting
`sweep_interval_seconds`), and sees nothing in between but the CPU time, and changes of state that
somebody's reading found.

To enable it: a copy of, or a link to, this file in the folder of the monitor's setting `hooks_dir`,
and the environment variable MONITOR_HOOK_IDLE_STOP_...

    SECONDS   the limit, in seconds: `3600`; or by model, `llama-*=600,embed-*=never,*=3600`, where
              the first pattern that matches counts, and a model without one is left alone
"""

from __future__ import annotations

import logging
import time

from monitor_plugin import Monitor, hookimpl
from monitor_plugin.hook_support.background_stops import BackgroundStops
from monitor_plugin.hook_support.idleness import Activity
from monitor_plugin.hook_support.settings import HookSettings, Limits, per_model, seconds

_logger = logging.getLogger(__name__)
_settings = HookSettings(__name__)
_limits = _settings.get(
    "SECONDS", per_model(seconds), "seconds over 0, as 3600, or llama-*=600,*=3600", Limits({})
)
_activity = Activity(_limits.least())
_stops = BackgroundStops(_logger)

if not _limits.least():
    _logger.info("it does nothing: %s is not set", _settings.variable("SECONDS"))


@hookimpl
def monitor_started(monitor: Monitor) -> None:
    """Get hold of the monitor."""
    _stops.monitor = monitor


@hookimpl
def monitor_closing() -> None:
    """Stop no more."""
    _stops.close()


@hookimpl
def monitor_readings_swept() -> None:
    """Stop who has been idle for too long."""
    if not _stops.monitor or not _limits.least():
        return
    observations, now = _stops.monitor.sweep(fresh=False), time.monotonic()
    _activity.note(observations, now)
    for backend in (each.backend for each in observations):
        idle, limit = _activity.idle_seconds(backend, now), _limits.of(backend.model)
        if limit and idle >= limit.value:
            why = f"it was idle for {idle:.0f} s, over {limit.value:g} s for {limit.pattern!r}"
            _stops.stop(backend, why, spare_busy=True)
