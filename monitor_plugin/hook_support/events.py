"""What happens to backends as plain values, for hooks that tell others of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import msgspec

from ..domain.models import Backend, BackendExit, State
from ..hookspecs import hookimpl
from ..telemetry.event_log import Event as LoggedEvent
from ..telemetry.event_log import event_to_dict

Event = dict[str, Any]


class EventHooks:
    """Hooks that hand on deaths, state changes and shutdowns, as `GET /events` has them.

    A hook file takes them over by name: `monitor_backend_gone = events.monitor_backend_gone`.

    Args:
        tell: takes each event, which JSON can say, on a hook's thread.
    """

    def __init__(self, tell: Callable[[Event], None]) -> None:
        self._tell = tell

    @hookimpl
    def monitor_backend_gone(self, backend: Backend, exit: BackendExit) -> None:
        """Tell of a death."""
        self._hand_on("ended", backend, exit=exit)

    @hookimpl
    def monitor_state_changed(
        self, backend: Backend, previous: State | None, current: State
    ) -> None:
        """Tell of a change of state."""
        self._hand_on("state_changed", backend, previous=previous, current=current)

    @hookimpl
    def monitor_shutdown_finished(self, backend: Backend, outcome: str, seconds: float) -> None:
        """Tell how a shutdown ended."""
        self._hand_on("shutdown_finished", backend, outcome=outcome, seconds=round(seconds, 3))

    def _hand_on(self, type: str, backend: Backend, **facts: Any) -> None:
        event = event_to_dict(LoggedEvent(0, time.time(), type, backend, facts))
        del event["id"]
        self._tell(msgspec.to_builtins(event))
