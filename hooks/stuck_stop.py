"""Stops backends that have been busy without a break for too long.

A backend is stuck if, in each sweep for the duration of the limit, it was BUSY, or had been BUSY
and its Status call timed out. The hook stops it by force, because it would not become idle. A stop
that fails is logged once, and tried again every minute. A backend without Status is never stuck.
The hook acts after each background sweep (the monitor's setting `sweep_interval_seconds`). It does
not notice a break between two sweeps unless another reading finds it, so set a limit above the
duration of the longest request.

To enable it, copy or link this file into the folder of the monitor's setting `hooks_dir`, and set
the environment variable MONITOR_HOOK_STUCK_STOP_...

    SECONDS   the limit, in seconds: `900`; or by model, `llama-*=600,train-*=never,*=900`, where
              the first matching pattern counts; models without one have no limit
"""

from __future__ import annotations

import logging
import time

from monitor_plugin import Backend, State, hookimpl
from monitor_plugin.hook_support.background_stops import BackgroundStops
from monitor_plugin.hook_support.idleness import says_busy
from monitor_plugin.hook_support.settings import HookSettings, Limits, per_model, seconds

_logger = logging.getLogger(__name__)
_settings = HookSettings(__name__)
_limits = _settings.get(
    "SECONDS", per_model(seconds), "seconds over 0, as 900, or llama-*=600,*=900", Limits({})
)
_stops = BackgroundStops(_logger)
# The time since which each backend has been busy, on the monotonic clock. The key contains the time
# of the last change of state, which differs if another reading saw a break.
_busy_since: dict[tuple[Backend, float | None], float] = {}

if not _limits.least():
    _logger.info("the hook does nothing: %s is not set", _settings.variable("SECONDS"))


monitor_started = _stops.monitor_started
monitor_closing = _stops.monitor_closing


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
