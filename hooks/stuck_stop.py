"""Stops backends that have been busy without a break for too long.

Stuck means: in each sweep for the whole limit a backend was BUSY, or did not answer Status in time
after that. It is stopped by force, as waiting for it would be in vain. Where that fails it is tried
again every minute, and the log says so once. A backend without Status is never stuck. It looks at
each background sweep (the monitor's setting `sweep_interval_seconds`); a break between two sweeps
that nobody asks about is not seen, so let the limit be longer than the longest work.

To enable it: a copy of, or a link to, this file in the folder of the monitor's setting `hooks_dir`,
and the environment variable MONITOR_HOOK_STUCK_STOP_...

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
# Since when it is busy, on the monotonic clock. With the time of the change of its state, which is
# another one where somebody else saw a break.
_busy_since: dict[tuple[Backend, float | None], float] = {}

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
    """Stop who has been busy for too long."""
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
