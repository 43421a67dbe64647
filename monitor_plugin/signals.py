"""The signals of a command: SIGTERM and SIGINT end it, SIGHUP reads its tokens again."""

from __future__ import annotations

import queue
import signal
from collections.abc import Callable


class Signals:
    """Takes the signals from when it is made; `wait()` acts on them. For the main thread.

    Handlers run in the midst of whatever the main thread does, which may hold any lock: an event's,
    say, that it is about to wait for. So they do no more than put a number into a queue, whose
    `put` is made for that.
    """

    def __init__(self) -> None:
        self._numbers: queue.SimpleQueue[int] = queue.SimpleQueue()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda number, frame: self._numbers.put(number))

    def end(self) -> None:
        """End the wait, as SIGTERM does. From any thread."""
        self._numbers.put(signal.SIGTERM)

    def wait(self, reload: Callable[[], None]) -> None:
        """Wait for the end, and call `reload` at each SIGHUP."""
        while self._numbers.get() == signal.SIGHUP:
            reload()
