"""Polls a host at intervals, and at once when the host reports an event."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

_logger = logging.getLogger(__name__)

# Seconds after an event: at first, a new program may not have its final command line yet, and the
# program before it may still hold the address.
_POLLS_AFTER_EVENT = (0.2, 0.5, 1.0, 2.0, 5.0)
_INTERVAL_SECONDS = 10.0
# Events often come in bursts, for which one poll is enough.
_BURST_SECONDS = 0.05


class Poller:
    """Calls a function on a thread of its own: at the start, after events, and every 10 s.

    Args:
        name: the name of the thread.
        poll: the function. An exception is logged once, until a call succeeds.
    """

    def __init__(self, name: str, poll: Callable[[], None]) -> None:
        self._poll = poll
        self._closing = False
        self._woken = threading.Event()
        self._changed = threading.Condition()  # notified when a poll has ended, and by `close`
        self._begun = self._ended = 0  # how many polls have
        self._failing = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Start the thread, which polls at once."""
        self._thread.start()

    def poll_soon(self) -> None:
        """Poll after an event. Returns at once, and may be called at any rate."""
        self._woken.set()

    def wait_for_poll(self, seconds: float) -> None:
        """Poll soon, and wait until a poll that began after this call has ended.

        Args:
            seconds: the maximum time to wait. The wait also ends when the poller is closed.
        """
        with self._changed:
            number = self._begun + 1
            self._woken.set()
            self._changed.wait_for(lambda: self._ended >= number or self._closing, seconds)

    def close(self) -> None:
        """End the thread, after the call that is running."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._woken.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        event_at = time.monotonic()
        while not self._closing:
            self._try()
            age = time.monotonic() - event_at
            due = next((each for each in _POLLS_AFTER_EVENT if each > age), age + _INTERVAL_SECONDS)
            if self._woken.wait(due - age):
                event_at = time.monotonic()
                time.sleep(_BURST_SECONDS)
                self._woken.clear()

    def _try(self) -> None:
        with self._changed:
            self._begun += 1
        try:
            self._poll()
        except Exception as error:  # the next poll may succeed
            if not self._failing:
                _logger.warning(
                    "%s: %s", self._thread.name, error, exc_info=_logger.isEnabledFor(logging.DEBUG)
                )
            self._failing = True
        else:
            if self._failing:
                _logger.info("%s: it works again", self._thread.name)
            self._failing = False
        finally:
            with self._changed:
                self._ended = self._begun
                self._changed.notify_all()
