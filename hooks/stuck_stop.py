"""Stops backends that are stuck, restarts them, or tells of them.

A backend is stuck if, in each sweep for the duration of the limit, one of these was true:

- It was BUSY, or had been BUSY and its Status call timed out.
- It had answered before, its Status call timed out, its process tree used less than 1 % of one
  core, and its GPU was in use for less than 1 % of the time. A GPU counts only if its utilization
  is known, and if no other process uses it. If the connection was lost after a call that timed out,
  the backend still counts as one that does not answer.
- It has no Status, which it had answered before, and its process was stopped (SIGSTOP).

A backend that has never answered is starting, and one whose last state is UNINITIALIZED is loading.
Neither is stuck. A backend that loads or serves a request on its only thread misses deadlines as
well, but uses the CPU or a GPU. A backend without Status is not asked again, so nothing else than a
stopped process shows that it is stuck.

The hook stops a stuck backend by force, because it would not become idle. A stop that fails is
logged once, and tried again every minute. `monitor_plugin.hook_support.watchdogs` says how models
are restarted. The hook acts after each background sweep (the monitor's setting
`sweep_interval_seconds`), and needs two of them. It does not notice a break between two sweeps
unless another reading finds it, so set a limit above the duration of the longest request.

To enable it, copy or link this file into the folder of the monitor's setting `hooks_dir`, and set
environment variables MONITOR_HOOK_STUCK_STOP_...

    SECONDS   the limit, in seconds: `900`; or by model, `llama-*=600,train-*=never,*=900`, where
              the first matching pattern counts; models without one have no limit
    ACTION    `stop`; `restart`, which starts the model again; or `tell`, which only reports the
              backend, once (stop)
    PROTECT   patterns of models that are never stopped or restarted, only reported:
              `llama-*,embed`
    RESTARTS_PER_HOUR   how often a model is restarted at most within an hour (5)
"""

from __future__ import annotations

import logging
import time
from pathlib import Path

from monitor_plugin import Backend, State, hookimpl
from monitor_plugin.domain.models import Observation
from monitor_plugin.hook_support.idleness import QuietTimes, says_busy
from monitor_plugin.hook_support.settings import HookSettings, Limits, per_model, seconds
from monitor_plugin.hook_support.watchdogs import Watchdog

_logger = logging.getLogger(__name__)
_settings = HookSettings(__name__)
_limits = _settings.get(
    "SECONDS", per_model(seconds), "seconds over 0, as 900, or llama-*=600,*=900", Limits({})
)
_watchdog = Watchdog(_settings, _logger)
# The time since which each backend has been busy, on the monotonic clock. The key contains the time
# of the last change of state, which differs if another reading saw a break.
_busy_since: dict[tuple[Backend, float | None], float] = {}
# The backends that had answered, and whose Status call timed out in the last sweep or before it.
_hung: set[Backend] = set()

if not _limits.least():
    _logger.info("the hook does nothing: %s is not set", _settings.variable("SECONDS"))


def _is_silent(observation: Observation) -> bool:
    """Whether a backend that has answered before does not answer in this sweep."""
    reading = observation.reading
    if reading is None or not observation.answered or reading.address_owner:
        return False
    if reading.rpc_error == "UNIMPLEMENTED":
        return _is_stopped(observation.served_by or observation.backend.pid)
    if reading.rpc_error == "DEADLINE_EXCEEDED":
        return observation.last_state is not State.UNINITIALIZED
    # Later calls to a backend that hangs cannot connect.
    return reading.rpc_error == "UNAVAILABLE" and observation.backend in _hung


def _is_stopped(pid: int) -> bool:
    """Whether SIGSTOP or another signal has stopped a process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return False
    return stat.rpartition(b")")[2].split()[:1] == [b"T"]


_silence = QuietTimes(_is_silent, _limits.least())


monitor_started = _watchdog.stops.monitor_started
monitor_closing = _watchdog.stops.monitor_closing


@hookimpl
def monitor_readings_swept() -> None:
    """Act on the backends that have been stuck for too long."""
    monitor = _watchdog.stops.monitor
    if not monitor or not _limits.least():
        return
    observations, now = monitor.sweep(fresh=False), time.monotonic()
    silent = {each.backend for each in observations if _is_silent(each)}
    _silence.note(observations, now)
    _hung.clear()
    _hung.update(silent)
    before = dict(_busy_since)
    _busy_since.clear()
    for each in observations:
        backend, limit = each.backend, _limits.of(each.backend.model)
        busy = 0.0
        if each.last_state is State.BUSY and says_busy(each):
            key = backend, each.state_changed_at
            busy = now - _busy_since.setdefault(key, before.get(key, now))
        quiet = _silence.quiet_seconds(backend, now)
        if limit and max(busy, quiet) >= limit.value:
            what = "busy" if busy >= limit.value else "silent, and used no CPU,"
            why = f"it was {what} for {max(busy, quiet):.0f} s, over {limit.value:g} s"
            _watchdog.act(backend, f"{why} for {limit.pattern!r}", force=True)
    _watchdog.end_sweep()
