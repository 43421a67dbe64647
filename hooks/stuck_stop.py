"""Stops backends that are stuck, restarts them, or tells of them.

A backend is stuck if, in each sweep for the duration of the limit, one of these was true:

- It was BUSY or had requests, or its status call timed out after a sweep in which that was true.
- It had answered before, its Status call timed out, its process tree used less than 1 % of one
  core, and its GPU was in use for less than 1 % of the time. A GPU counts only if its utilization
  is known, and if no other process uses it. If the connection was lost after a call that timed out,
  the backend still counts as one that does not answer.
- It has no Status, which it had answered before, and its process was stopped (SIGSTOP).

The time of a backend with requests begins again when its figures move: another number of running
requests, of generated tokens per second, or of percent of its KV cache, or fewer waiting requests.
So a server that always has requests is not stuck while it works. More waiting requests are no
progress, because clients send them to a stuck server as well.

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
from typing import NamedTuple

from monitor_plugin import Backend, State, Status, hookimpl
from monitor_plugin.domain.models import Observation
from monitor_plugin.hook_support.idleness import QuietTimes, says_busy
from monitor_plugin.hook_support.settings import HookSettings, Limits, per_model, seconds
from monitor_plugin.hook_support.watchdogs import Watchdog


class _Busy(NamedTuple):
    """A backend that has requests.

    Attributes:
        since: since when it has had them without progress, by the monotonic clock.
        state_changed_at: when its state changed last; it differs if another reading saw a break.
        status: its last status; None if it has not given one since then.
    """

    since: float
    state_changed_at: float | None
    status: Status | None


_logger = logging.getLogger(__name__)
_settings = HookSettings(__name__)
_limits = _settings.get(
    "SECONDS", per_model(seconds), "seconds over 0, as 900, or llama-*=600,*=900", Limits({})
)
_watchdog = Watchdog(_settings, _logger)
_busy: dict[Backend, _Busy] = {}  # in the last sweep
# The backends that had answered, and whose Status call timed out in the last sweep or before it.
_hung: set[Backend] = set()

if not _limits.least():
    _logger.info("the hook does nothing: %s is not set", _settings.variable("SECONDS"))


def _note_busy(observation: Observation, before: _Busy | None, now: float) -> _Busy | None:
    """Return since when a backend has had requests without progress; None if it has none."""
    changed_at = observation.state_changed_at
    if before is not None and before.state_changed_at != changed_at:
        before = None
    status = observation.reading.status if observation.reading else None
    if status is None:
        works = before is not None or observation.last_state is State.BUSY
    else:
        works = status.state in (State.BUSY, State.READY)
    if not (works and says_busy(observation)):
        return None
    if before is None:
        return _Busy(now, changed_at, status)
    if status is None:
        return before
    if before.status is not None and _has_progressed(before.status, status):
        return _Busy(now, changed_at, status)
    return before._replace(status=status)


def _has_progressed(before: Status, status: Status) -> bool:
    """Whether figures of both statuses show that the backend has worked between them."""
    moving = [
        (before.requests_running, status.requests_running),
        (before.tokens_per_second, status.tokens_per_second),
        (before.kv_cache_percent, status.kv_cache_percent),
    ]
    waited, waiting = before.requests_waiting, status.requests_waiting
    has_taken = waited is not None and waiting is not None and waiting < waited
    return has_taken or any(None not in each and each[0] != each[1] for each in moving)


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
    before = dict(_busy)
    _busy.clear()
    for each in observations:
        backend, limit = each.backend, _limits.of(each.backend.model)
        busy = 0.0
        if noted := _note_busy(each, before.get(backend), now):
            _busy[backend] = noted
            busy = now - noted.since
        quiet = _silence.quiet_seconds(backend, now)
        if limit and max(busy, quiet) >= limit.value:
            what = "busy" if busy >= limit.value else "silent, and used no CPU,"
            why = f"it was {what} for {max(busy, quiet):.0f} s, over {limit.value:g} s"
            _watchdog.act(backend, f"{why} for {limit.pattern!r}", force=True)
    _watchdog.end_sweep()
