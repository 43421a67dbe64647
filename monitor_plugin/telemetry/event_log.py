"""The latest events of all backends, numbered, for clients that follow them."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ..domain.exits import exit_to_dict, member_end_to_dict
from ..domain.models import Backend, state_name, utc_datetime

MAX_EVENTS = 1000


class Event(NamedTuple):
    """Something that happened to a backend.

    Attributes:
        id: greater than the ids of earlier events, also of an earlier monitor.
        at: the time, in seconds since the epoch.
        type: `registered`, `state_changed`, `address_owner`, `member_ended`, `oom_kill`, `ended`,
            `left_behind`, `shutdown_phase`, `shutdown_finished` or `watchdog`.
        backend: the backend.
        facts: the other arguments of the hook that reports the event, if any.
    """

    id: int
    at: float
    type: str
    backend: Backend
    facts: Mapping[str, Any]


class EventBatch(NamedTuple):
    """The events after an id.

    Attributes:
        events: oldest first.
        next: the id for the next request.
        gap: whether events after the id have been dropped, or the id is not of this log.
    """

    events: Sequence[Event]
    next: int
    gap: bool


class EventLog:
    """The last MAX_EVENTS events. Its methods may be called from any thread; `add` never blocks.

    Args:
        now: the time of its start, in seconds since the epoch. Ids count up from that time in
            milliseconds, so that those of a later monitor are greater.
    """

    def __init__(self, now: float) -> None:
        self._ring: deque[Event] = deque(maxlen=MAX_EVENTS)
        self._changed = threading.Condition()
        self._first = self._last = int(now * 1000)
        self._closed = False

    def add(self, type: str, backend: Backend, **facts: Any) -> None:
        """Add an event that has just happened."""
        with self._changed:
            self._last += 1
            self._ring.append(Event(self._last, time.time(), type, backend, facts))
            self._changed.notify_all()

    def after(self, known: int, wait_seconds: float = 0.0) -> EventBatch:
        """Return the events after an id.

        Args:
            known: the id of the last event that the client knows; 0 for all events.
            wait_seconds: the maximum time to wait for an event if there is none yet.
        """
        with self._changed:
            if known == self._last and wait_seconds:
                self._changed.wait_for(lambda: self._last != known or self._closed, wait_seconds)
            last = self._last
            ring = list(self._ring)
        oldest = ring[0].id - 1 if ring else last
        known = known or self._first
        gap = not oldest <= known <= last
        return EventBatch([each for each in ring if gap or each.id > known], last, gap)

    def close(self) -> None:
        """Let `after` return at once, now and from now on."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


def event_to_dict(event: Event, node: str | None = None) -> dict[str, Any]:
    """Return the fields of an event as `GET /events` and hooks give them.

    Args:
        event: the event.
        node: the name of this node; None outside a cluster.
    """
    backend, facts = event.backend, event.facts
    item: dict[str, Any] = {
        "id": event.id,
        "at": utc_datetime(event.at),
        "type": event.type,
        "model": backend.model,
        "pid": backend.pid,
        **({} if node is None else {"node": node}),
    }
    if event.type == "registered":
        return {**item, "address": backend.address}
    if event.type == "ended":
        others = {name: value for name, value in facts.items() if name != "exit"}
        return {**item, **exit_to_dict(facts["exit"], facts.get("host_exit")), **others}
    if event.type == "member_ended":
        return {**item, **member_end_to_dict(facts["end"])}
    if event.type == "state_changed":
        names = {f"{name}_name": state_name(state) for name, state in facts.items()}
        return {**item, **facts, **names}
    return {**item, **facts}
