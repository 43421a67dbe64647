"""A function that is called periodically on its own thread."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

_logger = logging.getLogger(__name__)

_PAUSE_PER_CPU_SECOND = 9  # so that the calls use at most a tenth of a core


class PeriodicTask:
    """Calls a function at an interval until the task is closed. A closed task may be restarted.

    Args:
        name: the name of the thread.
        seconds: the time from the end of a call to the start of the next; longer if the calls
            would use more than a tenth of a core.
        tick: the function, whose result is ignored. An exception is logged, and does not prevent
            later calls.
    """

    def __init__(self, name: str, seconds: float, tick: Callable[[], object]) -> None:
        self._name = name
        self._seconds = seconds
        self._tick = tick
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread.

        Raises:
            RuntimeError: no thread can be started.
        """
        self._closing.clear()
        thread = threading.Thread(target=self._run, name=self._name, daemon=True)
        thread.start()
        self._thread = thread  # only a started thread can be joined

    @property
    def stopping(self) -> bool:
        """Whether `stop` or `close` was called."""
        return self._closing.is_set()

    def stop(self) -> None:
        """Begin no further calls, without waiting for a call in progress."""
        self._closing.set()

    def close(self) -> None:
        """End the thread, after the call in progress."""
        self.stop()
        if self._thread:
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        seconds = self._seconds
        while not self._closing.wait(seconds):
            began = time.thread_time()
            try:
                self._tick()
            except Exception:
                _logger.exception("%s failed", self._name)
            seconds = max(self._seconds, _PAUSE_PER_CPU_SECOND * (time.thread_time() - began))
