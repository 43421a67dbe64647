"""What circus' events tell of its watchers: how their processes ended, and failed starts."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from typing import NamedTuple

from ...domain.exits import make_exit
from ...domain.models import BackendExit


class Event(NamedTuple):
    """An event of a watcher.

    Attributes:
        watcher: the name of the watcher as `event_name` gives it.
        action: what happened, such as `spawn`, `start`, `kill`, `reap` and `stop`.
        pid: the process; 0 if the event names none.
        at: the time, in seconds since the epoch.
        exit_code: as in `subprocess`; None if the event has none.
    """

    watcher: str
    action: str
    pid: int
    at: float
    exit_code: int | None


def parse_event(topic: bytes, message: bytes) -> Event:
    """Parse an event that circus published."""
    name, _, action = topic.decode().removeprefix("watcher.").rpartition(".")
    facts = json.loads(message)
    pid, at = facts.get("process_pid", 0), facts.get("time", 0.0)
    return Event(name, action, pid, at, facts.get("exit_code"))


def event_name(watcher: str) -> str:
    """Return the name of a watcher in circus' events."""
    return watcher.lower().replace(" ", "_")


class WatcherHistory:
    """What the events of one watcher have shown.

    Attributes:
        spawned_at: when its last process was started, in seconds since the epoch; 0 if unknown.
        exit: how the process ended that circus last reaped; None if circus itself had ended it, or
            if unknown.
        was_started: whether circus has started it; None if unknown.
        gave_up: whether circus could not start any process of it.
    """

    def __init__(self) -> None:
        self.spawned_at = 0.0
        self.exit: BackendExit | None = None
        self.was_started: bool | None = None
        self.gave_up = False
        self._killed: set[int] = set()  # the processes that circus is ending itself

    def record(self, event: Event) -> None:
        """Record an event. Actions that are not listed below change nothing."""
        action, pid, at = event.action, event.pid, event.at
        if action == "spawn":
            self.spawned_at, self.gave_up = at, False
        elif action == "kill":
            self._killed.add(pid)
        elif action == "reap":
            self.exit = None if pid in self._killed else make_exit(event.exit_code, False, None, at)
            self._killed.discard(pid)
        elif action == "start":
            self.was_started, self.gave_up = True, False
        elif action == "stop":
            # circus stops a watcher that it cannot start. It has then reported no start.
            self.gave_up, self.was_started = self.was_started is False, False
            self._killed.clear()


class WatcherHistories:
    """The histories of all watchers since the monitor runs. Safe to call from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._histories: dict[str, WatcherHistory] = {}

    def record(self, event: Event) -> None:
        """Record an event."""
        with self._lock:
            self._history(event.watcher).record(event)

    def record_statuses(self, statuses: Mapping[str, str]) -> None:
        """Record the statuses of all watchers, by name, and forget watchers that were removed."""
        with self._lock:
            self._histories = {
                event_name(name): self._history(event_name(name)) for name in statuses
            }
            for name, status in statuses.items():
                history = self._history(event_name(name))
                if history.was_started is None and status in ("active", "stopped"):
                    history.was_started = status == "active"

    def get(self, name: str) -> WatcherHistory:
        """Return the history of a watcher."""
        with self._lock:
            return self._history(event_name(name))

    def _history(self, name: str) -> WatcherHistory:
        return self._histories.setdefault(name, WatcherHistory())
