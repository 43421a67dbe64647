"""What happens to backends as plain values, for hooks that tell others of it."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any

from .hookspecs import hookimpl
from .models import Backend, BackendExit, State

Event = dict[str, Any]


class EventHooks:
    """Hooks that hand on deaths, state changes and shutdowns, in the words of `GET /events`.

    A hook file takes them over by name: `monitor_backend_gone = events.monitor_backend_gone`.

    Args:
        tell: takes each event, a dict that JSON can say, on a hook's thread.
    """

    def __init__(self, tell: Callable[[Event], None]) -> None:
        self._tell = tell

    @hookimpl
    def monitor_backend_gone(self, backend: Backend, exit: BackendExit) -> None:
        """Tell of a death."""
        self._tell(
            _event("ended", exit.ended_at, backend)
            | {
                "cause": exit.cause,
                "exit_code": exit.exit_code,
                "signal": exit.signal,
                "signal_name": _signal_name(exit.signal),
                "oom": exit.oom,
            }
        )

    @hookimpl
    def monitor_state_changed(
        self, backend: Backend, previous: State | None, current: State
    ) -> None:
        """Tell of a change of state."""
        self._tell(
            _event("state_changed", time.time(), backend)
            | {
                "previous": None if previous is None else int(previous),
                "previous_name": None if previous is None else previous.name.lower(),
                "current": int(current),
                "current_name": current.name.lower(),
            }
        )

    @hookimpl
    def monitor_shutdown_finished(self, backend: Backend, outcome: str, seconds: float) -> None:
        """Tell how a shutdown ended."""
        self._tell(
            _event("shutdown_finished", time.time(), backend)
            | {"outcome": outcome, "seconds": round(seconds, 3)}
        )


def _event(type: str, at: float, backend: Backend) -> Event:
    moment = datetime.fromtimestamp(at, timezone.utc)
    return {
        "type": type,
        "at": moment.isoformat(timespec="microseconds").replace("+00:00", "Z"),
        "model": backend.model,
        "pid": backend.pid,
    }


def _signal_name(number: int | None) -> str | None:
    if number is None:
        return None
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"
