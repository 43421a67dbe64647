"""Something that is done again and again in the background, on a thread of its own."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

_logger = logging.getLogger(__name__)

_PAUSE_TO_CPU = 9  # seconds of pause for one of CPU time


class PeriodicTask:
    """Calls a function at an interval, until it is closed.

    Args:
        name: the thread's.
        seconds: from the end of one call to the start of the next; more where calls would use
            more than a tenth of a core.
        tick: what is called; what it raises is logged, and the next call comes all the same.
    """

    def __init__(self, name: str, seconds: float, tick: Callable[[], None]) -> None:
        self._seconds = seconds
        self._tick = tick
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Start ticking."""
        self._thread.start()

    @property
    def stopping(self) -> bool:
        """Whether no more calls come."""
        return self._closing.is_set()

    def stop(self) -> None:
        """Begin no more calls, without waiting for the one under way."""
        self._closing.set()

    def close(self) -> None:
        """End the thread, after the call that it is in."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        seconds = self._seconds
        while not self._closing.wait(seconds):
            began = time.thread_time()
            try:
                self._tick()
            except Exception:  # one bad tick must not end all later ones
                _logger.exception("%s failed", self._thread.name)
            seconds = max(self._seconds, _PAUSE_TO_CPU * (time.thread_time() - began))
