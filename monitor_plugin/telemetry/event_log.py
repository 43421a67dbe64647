"""What happened of late, numbered, for clients that follow it."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ..domain.exits import exit_to_dict
from ..domain.models import Backend, state_name, utc_datetime

KEPT = 1000


class Event(NamedTuple):
    """Something that happened to a backend.

    Attributes:
        id: greater than those before, also than those of an earlier monitor.
        at: when, in seconds since the epoch.
        type: `registered`, `state_changed`, `ended`, `shutdown_phase` or `shutdown_finished`.
        backend: to which.
        facts: more of it, the arguments of the hook that tells of it.
    """

    id: int
    at: float
    type: str
    backend: Backend
    facts: Mapping[str, Any]


class EventBatch(NamedTuple):
    """Happenings after one that a client knows.

    Attributes:
        events: oldest first.
        next: the id to ask with the next time.
        gap: whether some between are not kept any more, or the client's id is of elsewhere.
    """

    events: Sequence[Event]
    next: int
    gap: bool


class EventLog:
    """A bounded ring of happenings. Safe to call from any thread; adding never blocks.

    Args:
        now: the time of its start, in seconds since the epoch, from which ids count up: so that
            those of a later monitor are greater, which one in a millisecond does not outrun.
    """

    def __init__(self, now: float) -> None:
        self._ring: deque[Event] = deque(maxlen=KEPT)
        self._changed = threading.Condition()
        self._first = self._last = int(now * 1000)
        self._closed = False

    def add(self, type: str, backend: Backend, **facts: Any) -> None:
        """Add what has just happened."""
        with self._changed:
            self._last += 1
            self._ring.append(Event(self._last, time.time(), type, backend, facts))
            self._changed.notify_all()

    def after(self, known: int, wait_seconds: float = 0.0) -> EventBatch:
        """Give what happened after an id, 0 for all that is kept.

        Args:
            known: the id.
            wait_seconds: how long to wait for something to happen, where nothing has yet.
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
        """End all waiting, now and later."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


def event_to_dict(event: Event, node: str | None = None) -> dict[str, Any]:
    """Turn something that happened into an item of the answer."""
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
        return {**item, **exit_to_dict(facts["exit"])}
    if event.type == "state_changed":
        names = {f"{name}_name": state_name(state) for name, state in facts.items()}
        return {**item, **facts, **names}
    return {**item, **facts}
