"""Looks at a host again after each hint that something has changed there, and now and then."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

_logger = logging.getLogger(__name__)

# A shell's child comes after its parent, and what is refused now may be taken then.
_FOLLOW_UP_SECONDS = (0.0, 0.2, 0.5, 1.0, 2.0, 5.0)
_PAUSE_SECONDS = 0.1
_CLOSE_SECONDS = 0.5


class Synchroniser:
    """Calls a function soon after each hint, a few times more, and at an interval; first at start.

    Hints that come while it waits or works count as one. Safe to call from any thread.

    Args:
        synchronise: what is called; what it raises is logged, and the next call comes all the same.
        seconds: from one call to the next where nothing is hinted.
    """

    def __init__(self, synchronise: Callable[[], None], seconds: float = 10.0) -> None:
        self._synchronise = synchronise
        self._seconds = seconds
        self._condition = threading.Condition()
        self._hinted = True
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="monitor-synchroniser", daemon=True)

    def start(self) -> None:
        """Start the thread that calls."""
        self._thread.start()

    def hint(self) -> None:
        """Say that something may have changed."""
        with self._condition:
            self._hinted = True
            self._condition.notify()

    def close(self) -> None:
        """End the thread, after the call that it is in, for which it does not wait for long."""
        with self._condition:
            self._closing = True
            self._condition.notify()
        self._thread.join(_CLOSE_SECONDS)

    def _run(self) -> None:
        last = -self._seconds
        follow_ups: list[float] = []
        while True:
            with self._condition:
                now = time.monotonic()
                if self._closing:
                    return
                if self._hinted:
                    self._hinted = False
                    follow_ups = [now + seconds for seconds in _FOLLOW_UP_SECONDS]
                due = max(min(follow_ups, default=last + self._seconds), last + _PAUSE_SECONDS)
                if now < due:
                    self._condition.wait(due - now)
                    continue
            follow_ups = [each for each in follow_ups if each > now]
            try:
                self._synchronise()
            except Exception:  # one bad call must not end all later ones
                _logger.exception("cannot see what runs")
            last = time.monotonic()
