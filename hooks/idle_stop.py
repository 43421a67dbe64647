"""Stops backends that have been idle for too long, restarts them, or tells of them.

A backend is idle if, for the duration of the limit, its status said READY in each sweep, it
reported no requests and no generated tokens, its process tree used less than 1 % of one core, and
its GPU was in use for less than 1 % of the time. A GPU counts only if its utilization is known, and
if no other process uses it: otherwise it is not known for which process the GPU works.

The status must deny requests. LocalAI's `Status` does so by READY, and a server that speaks HTTP by
the number of running requests, where it reports that. A backend without a status is never idle,
because it may be serving a request. Nor is a backend that is READY by a hook or by a protocol that
does not tell of requests, such as grpc.health.v1 or the Open Inference Protocol. With
NO_STATUS=cpu, the usage of the CPU and the GPU alone decides for such backends. Exempt a backend
whose `Status` says READY while it serves requests: `NAME=never`.

The hook stops an idle backend as `POST /backend/shutdown` does, unless the backend gets requests
and still has some after `drain_timeout_seconds`. A stop that fails is logged once, and tried again
every minute. `monitor_plugin.hook_support.watchdogs` says how models are restarted. The hook acts
after each background sweep (the monitor's setting `sweep_interval_seconds`). Between two sweeps it
notices only CPU time, generated tokens, and changes of state that other readings found.

To enable it, copy or link this file into the folder of the monitor's setting `hooks_dir`, and set
the environment variable MONITOR_HOOK_IDLE_STOP_...

    SECONDS   the limit, in seconds: `3600`; or by model, `llama-*=600,embed-*=never,*=3600`, where
              the first matching pattern counts; models without one have no limit
    NO_STATUS `cpu`: a backend whose status does not tell of requests is idle if its process tree
              uses less than 1 % of one core, and its GPU is not in use; it is not idle if its
              Status call timed out, or if the last state that it reported was not READY. `cpu` cuts
              off requests that take little CPU time, such as those that wait for a GPU whose use is
              not known. `never`: such a backend is never idle (never)
    ACTION    `stop`; `restart`, which starts the model again; or `tell`, which only reports the
              backend, once (stop)
    PROTECT   patterns of models that are never stopped or restarted, only reported:
              `llama-*,embed`
    RESTARTS_PER_HOUR   how often a model is restarted at most within an hour (5)
"""

from __future__ import annotations

import logging
import time

from monitor_plugin import hookimpl
from monitor_plugin.hook_support.idleness import Activity
from monitor_plugin.hook_support.settings import (
    HookSettings,
    Limits,
    one_of,
    per_model,
    seconds,
)
from monitor_plugin.hook_support.watchdogs import Watchdog

_logger = logging.getLogger(__name__)
_settings = HookSettings(__name__)
_limits = _settings.get(
    "SECONDS", per_model(seconds), "seconds over 0, as 3600, or llama-*=600,*=3600", Limits({})
)
_no_status = _settings.get("NO_STATUS", one_of("never", "cpu"), "never or cpu", "never")
_activity = Activity(_limits.least(), cpu_suffices=_no_status == "cpu")
_watchdog = Watchdog(_settings, _logger)

if not _limits.least():
    _logger.info("the hook does nothing: %s is not set", _settings.variable("SECONDS"))
elif _no_status == "never":
    text = "backends without a Status are never idle; with %s=cpu their use of CPU and GPU decides"
    _logger.info(text, _settings.variable("NO_STATUS"))


monitor_started = _watchdog.stops.monitor_started
monitor_closing = _watchdog.stops.monitor_closing


@hookimpl
def monitor_readings_swept() -> None:
    """Act on the backends that have been idle for too long."""
    monitor = _watchdog.stops.monitor
    if not monitor or not _limits.least():
        return
    observations, now = monitor.sweep(fresh=False), time.monotonic()
    _activity.note(observations, now)
    for backend in (each.backend for each in observations):
        idle, limit = _activity.idle_seconds(backend, now), _limits.of(backend.model)
        if limit and idle >= limit.value:
            why = f"it was idle for {idle:.0f} s, over {limit.value:g} s for {limit.pattern!r}"
            _watchdog.act(backend, why, spare_busy=True)
    _watchdog.end_sweep()
