"""Looks at a host again and again, and sooner where it hints that something happened."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

_logger = logging.getLogger(__name__)

# After a hint: a program is started before its command line stands and its address is free.
_LOOKS_AFTER_SECONDS = (0.2, 0.5, 1.0, 2.0, 5.0)
_SLOW_SECONDS = 10.0
# Hints come in crowds.
_CROWD_SECONDS = 0.05


class Poller:
    """Calls a function on a thread of its own: at the start, after hints, and every 10 s.

    Args:
        name: the thread's.
        look: what is called; what it raises is logged once, until a call succeeds.
    """

    def __init__(self, name: str, look: Callable[[], None]) -> None:
        self._look = look
        self._closing = False
        self._woken = threading.Event()
        self._failing = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Begin, with a look at once."""
        self._thread.start()

    def hint(self) -> None:
        """Say that something may have happened. Costs nothing, and may be called at any rate."""
        self._woken.set()

    def close(self) -> None:
        """End the thread, after the call that it is in."""
        self._closing = True
        self._woken.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        hinted = time.monotonic()
        while not self._closing:
            self._try()
            age = time.monotonic() - hinted
            due = next((each for each in _LOOKS_AFTER_SECONDS if each > age), age + _SLOW_SECONDS)
            if self._woken.wait(due - age):
                hinted = time.monotonic()
                time.sleep(_CROWD_SECONDS)
                self._woken.clear()

    def _try(self) -> None:
        try:
            self._look()
        except Exception as error:  # the next look may go better
            if not self._failing:
                _logger.warning(
                    "%s: %s", self._thread.name, error, exc_info=_logger.isEnabledFor(logging.DEBUG)
                )
            self._failing = True
        else:
            if self._failing:
                _logger.info("%s: it works again", self._thread.name)
            self._failing = False
