"""What happened, numbered."""

from __future__ import annotations

import threading
import time

from monitor_plugin import Backend
from monitor_plugin.journal import KEPT, Journal

from .support import eventually

BACKEND = Backend("m", 7, "unix:/m", 1.0)


def test_what_happened_after_an_id_is_given() -> None:
    """Oldest first, with its facts; then nothing, until more happens."""
    journal = Journal(5.0)
    assert journal.after(0) == ([], 5000, False)
    journal.add("registered", BACKEND)
    journal.add("state_changed", BACKEND, previous=None, current=2)
    happenings, known, gap = journal.after(0)
    assert [(each.id, each.type, each.facts) for each in happenings] == [
        (5001, "registered", {}),
        (5002, "state_changed", {"previous": None, "current": 2}),
    ]
    assert (known, gap) == (5002, False)
    assert journal.after(5001).happenings == happenings[1:]
    assert journal.after(5002) == ([], 5002, False)


def test_a_gap_is_told() -> None:
    """Where some are not kept any more, and where an id is of no journal of this kind."""
    journal = Journal(5.0)
    for _ in range(KEPT):
        journal.add("registered", BACKEND)
    assert not journal.after(0).gap
    assert not journal.after(5000).gap
    journal.add("registered", BACKEND)
    assert journal.after(0).gap
    assert journal.after(5000).gap
    assert not journal.after(5001).gap
    ahead = journal.after(10**9)
    assert ahead.gap
    assert len(ahead.happenings) == KEPT
    assert ahead.next == 5000 + KEPT + 1


def test_a_later_journal_has_greater_ids() -> None:
    """An id of an earlier one is a gap in it, and none of its own."""
    earlier, later = Journal(time.time() - 1), Journal(time.time())
    earlier.add("registered", BACKEND)
    later.add("registered", BACKEND)
    page = later.after(earlier.after(0).next)
    assert page.gap
    assert page.happenings[0].id > earlier.after(0).next


def test_waiting_ends_when_something_happens_or_nothing_will() -> None:
    """It ends at once for what is there already, with the next one, and when it is closed."""
    journal = Journal(5.0)
    pages = []

    def follow() -> None:
        pages.append(journal.after(5000, 100.0))
        pages.append(journal.after(5000, 100.0))
        pages.append(journal.after(5001, 100.0))
        pages.append(journal.after(5001, 100.0))

    thread = threading.Thread(target=follow)
    thread.start()
    eventually(lambda: journal._changed._waiters)  # type: ignore[attr-defined]
    journal.add("registered", BACKEND)
    eventually(lambda: len(pages) == 2)
    journal.close()
    thread.join(30)
    assert [len(page.happenings) for page in pages] == [1, 1, 0, 0]
