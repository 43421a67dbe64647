"""Stops backends that have been busy without a break for too long.

Stuck means: in each sweep for the whole limit the backend was BUSY, or did not answer Status in
time after it had been BUSY. The hook stops it by force, because it would not become idle. A stop
that fails is logged once, and tried again every minute. A backend without Status is never stuck.
The hook acts after each background sweep (the monitor's setting `sweep_interval_seconds`). It does
not notice a break between two sweeps that no other reading finds, so set a limit above the longest
work.

To enable it, copy or link this file into the folder of the monitor's setting `hooks_dir`, and set
the environment variable MONITOR_HOOK_STUCK_STOP_...

    SECONDS   the limit, in seconds: `900`; or by model, `llama-*=600,train-*=never,*=900`, where
              the first pattern that matches counts, and a model without one is left alone
"""

from __future__ import annotations

import logging
import time

from monitor_plugin import Backend, Monitor, State, hookimpl
from monitor_plugin.hook_support.background_stops import BackgroundStops
from monitor_plugin.hook_support.idleness import says_busy
from monitor_plugin.hook_support.settings import HookSettings, Limits, per_model, seconds

_logger = logging.getLogger(__name__)
_settings = HookSettings(__name__)
_limits = _settings.get(
    "SECONDS", per_model(seconds), "seconds over 0, as 900, or llama-*=600,*=900", Limits({})
)
_stops = BackgroundStops(_logger)
# Since when each backend has been busy, on the monotonic clock. The key has the time of its last
# change of state, which differs if another reading saw a break.
_busy_since: dict[tuple[Backend, float | None], float] = {}

if not _limits.least():
    _logger.info("it does nothing: %s is not set", _settings.variable("SECONDS"))


@hookimpl
def monitor_started(monitor: Monitor) -> None:
    """Store the monitor."""
    _stops.monitor = monitor


@hookimpl
def monitor_closing() -> None:
    """Begin no more stops."""
    _stops.close()


@hookimpl
def monitor_readings_swept() -> None:
    """Stop the backends that have been busy for too long."""
    if not _stops.monitor or not _limits.least():
        return
    before, now = dict(_busy_since), time.monotonic()
    _busy_since.clear()
    for each in _stops.monitor.sweep(fresh=False):
        if each.last_state is not State.BUSY or not says_busy(each):
            continue
        backend, key = each.backend, (each.backend, each.state_changed_at)
        since = _busy_since[key] = before.get(key, now)
        limit = _limits.of(backend.model)
        if limit and now - since >= limit.value:
            why = f"it was busy for {now - since:.0f} s, over {limit.value:g} s"
            _stops.stop(backend, f"{why} for {limit.pattern!r}", force=True)
