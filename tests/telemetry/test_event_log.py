"""What happened, numbered."""

from __future__ import annotations

import threading
import time

from monitor_plugin import Backend
from monitor_plugin.telemetry.event_log import KEPT, EventLog

from ..support import eventually

BACKEND = Backend("m", 7, "unix:/m", 1.0)


def test_what_happened_after_an_id_is_given() -> None:
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


def test_a_gap_is_told() -> None:
    """Where some are not kept any more, and where an id is of no journal of this kind."""
    event_log = EventLog(5.0)
    for _ in range(KEPT):
        event_log.add("registered", BACKEND)
    assert not event_log.after(0).gap
    assert not event_log.after(5000).gap
    event_log.add("registered", BACKEND)
    assert event_log.after(0).gap
    assert event_log.after(5000).gap
    assert not event_log.after(5001).gap
    ahead = event_log.after(10**9)
    assert ahead.gap
    assert len(ahead.events) == KEPT
    assert ahead.next == 5000 + KEPT + 1


def test_a_later_journal_has_greater_ids() -> None:
    """An id of an earlier one is a gap in it, and none of its own."""
    earlier, later = EventLog(time.time() - 1), EventLog(time.time())
    earlier.add("registered", BACKEND)
    later.add("registered", BACKEND)
    page = later.after(earlier.after(0).next)
    assert page.gap
    assert page.events[0].id > earlier.after(0).next


def test_waiting_ends_when_something_happens_or_nothing_will() -> None:
    """It ends at once for what is there already, with the next one, and when it is closed."""
    event_log = EventLog(5.0)
    pages = []

    def follow() -> None:
        pages.append(event_log.after(5000, 100.0))
        pages.append(event_log.after(5000, 100.0))
        pages.append(event_log.after(5001, 100.0))
        pages.append(event_log.after(5001, 100.0))

    thread = threading.Thread(target=follow)
    thread.start()
    eventually(lambda: event_log._changed._waiters)  # type: ignore[attr-defined]
    event_log.add("registered", BACKEND)
    eventually(lambda: len(pages) == 2)
    event_log.close()
    thread.join(30)
    assert [len(page.events) for page in pages] == [1, 1, 0, 0]
