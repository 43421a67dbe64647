"""Events as plain values, for hooks that pass them on to other systems."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from ..domain.models import Backend, BackendExit, Freed, State
from ..domain.postmortems import PostMortem
from ..hookspecs import hookimpl
from ..telemetry import event_log
from ..telemetry.event_log import event_to_dict

#: An event as in `GET /events`, without its number; JSON can encode all values.
EventItem = dict[str, Any]

#: The former name of `EventItem`.
Event = EventItem


class EventHooks:
    """Hooks that pass on events of backends as `GET /events` shows them.

    Each hook calls `tell` with the event, on a hook's thread. A hook file assigns the methods to
    variables of the same names: `monitor_backend_gone = events.monitor_backend_gone`.
    """

    def __init__(self, tell: Callable[[EventItem], None]) -> None:
        self._tell = tell

    @hookimpl
    def monitor_backend_gone(self, backend: Backend, exit: BackendExit) -> None:
        """Pass on an exit."""
        self._pass_on("ended", backend, exit=exit)

    @hookimpl
    def monitor_backend_postmortem(self, backend: Backend, postmortem: PostMortem) -> None:
        """Pass on an exit with all that is known of it, also its last output.

        For a hook that does not pass on exits by `monitor_backend_gone`. The last output may hold
        what users sent to the model.
        """
        self._pass_on(
            "ended",
            backend,
            exit=postmortem.exit,
            end_id=postmortem.id,
            uptime_seconds=round(postmortem.uptime_seconds, 3),
            ready_seconds=postmortem.ready_seconds,
            ends_last_hour=postmortem.ends_last_hour,
            left_behind=postmortem.left_behind,
            last_output=postmortem.last_output,
            host_exit=postmortem.host_exit,
        )

    @hookimpl
    def monitor_backend_left_behind(self, backend: Backend, pids: Sequence[int]) -> None:
        """Pass on which processes a backend has left behind."""
        self._pass_on("left_behind", backend, pids=pids)

    @hookimpl
    def monitor_state_changed(
        self, backend: Backend, previous: State | None, current: State
    ) -> None:
        """Pass on a change of state."""
        self._pass_on("state_changed", backend, previous=previous, current=current)

    @hookimpl
    def monitor_shutdown_finished(
        self, backend: Backend, outcome: str, seconds: float, freed: Freed | None
    ) -> None:
        """Pass on the outcome of a shutdown."""
        facts = {"outcome": outcome, "seconds": round(seconds, 3), "freed": freed}
        self._pass_on("shutdown_finished", backend, **facts)

    @hookimpl
    def monitor_watchdog_acted(
        self, backend: Backend, watchdog: str, action: str, reason: str
    ) -> None:
        """Pass on what a watchdog has found and does."""
        self._pass_on("watchdog", backend, watchdog=watchdog, action=action, reason=reason)

    def _pass_on(self, type: str, backend: Backend, **facts: Any) -> None:
        event = event_to_dict(event_log.Event(0, time.time(), type, backend, facts))
        del event["id"]
        self._tell(msgspec.to_builtins(event))
