"""The log of numbered events."""

from __future__ import annotations

import threading
import time

from monitor_plugin import Backend
from monitor_plugin.telemetry.event_log import MAX_EVENTS, EventLog

from ..support import eventually

BACKEND = Backend("m", 7, "unix:/m", 1.0)


def test_event_log_returns_the_events_after_an_id() -> None:
    """Oldest first, with its facts; then nothing, until more happens."""
    event_log = EventLog(5.0)
    assert event_log.after(0) == ([], 5000, False)
    event_log.add("registered", BACKEND)
    event_log.add("state_changed", BACKEND, previous=None, current=2)
    events, known, gap = event_log.after(0)
    assert [(each.id, each.type, each.facts) for each in events] == [
        (5001, "registered", {}),
        (5002, "state_changed", {"previous": None, "current": 2}),
    ]
    assert (known, gap) == (5002, False)
    assert event_log.after(5001).events == events[1:]
    assert event_log.after(5002) == ([], 5002, False)


def test_dropped_events_are_reported_as_a_gap() -> None:
    """Both if events after the id were dropped, and if the id is not of this log."""
    event_log = EventLog(5.0)
    for _ in range(MAX_EVENTS):
        event_log.add("registered", BACKEND)
    assert not event_log.after(0).gap
    assert not event_log.after(5000).gap
    event_log.add("registered", BACKEND)
    assert event_log.after(0).gap
    assert event_log.after(5000).gap
    assert not event_log.after(5001).gap
    ahead = event_log.after(10**9)
    assert ahead.gap
    assert len(ahead.events) == MAX_EVENTS
    assert ahead.next == 5000 + MAX_EVENTS + 1


def test_a_later_event_log_has_greater_ids() -> None:
    """An id of the earlier log is a gap in the later one."""
    earlier, later = EventLog(time.time() - 1), EventLog(time.time())
    earlier.add("registered", BACKEND)
    later.add("registered", BACKEND)
    batch = later.after(earlier.after(0).next)
    assert batch.gap
    assert batch.events[0].id > earlier.after(0).next


def test_waiting_ends_at_the_next_event_and_on_close() -> None:
    """It also ends at once if there are such events already."""
    event_log = EventLog(5.0)
    batches = []

    def follow() -> None:
        batches.append(event_log.after(5000, 100.0))
        batches.append(event_log.after(5000, 100.0))
        batches.append(event_log.after(5001, 100.0))
        batches.append(event_log.after(5001, 100.0))

    thread = threading.Thread(target=follow)
    thread.start()
    eventually(lambda: event_log._changed._waiters)  # type: ignore[attr-defined]
    event_log.add("registered", BACKEND)
    eventually(lambda: len(batches) == 2)
    event_log.close()
    thread.join(30)
    assert [len(batch.events) for batch in batches] == [1, 1, 0, 0]
