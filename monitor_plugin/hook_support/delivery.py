"""A bounded queue of messages, and the thread that sends them."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")

# Together less than the default of `hook_timeout_seconds`, which limits `monitor_closing`.
_CLOSE_SECONDS = 0.6
_INTERRUPT_SECONDS = 0.3
_MAX_PAUSE_SECONDS = 60.0


class NotSent(Exception):
    """A message could not be sent.

    Attributes:
        again: whether to try again.
        after_seconds: the minimum pause before the next try.
    """

    def __init__(self, reason: str, again: bool = True, after_seconds: float = 0.0) -> None:
        super().__init__(reason)
        self.again = again
        self.after_seconds = after_seconds


class SendQueue(Generic[T]):
    """Sends messages one by one, in order, with retries. Thread-safe.

    A full queue drops its oldest message. The log reports the first failure, the first lost
    message, and, when the queue is empty again, the number of lost messages.

    Args:
        send: sends one message, or raises `NotSent`.
        receiver: the receiver's name, for the log.
        size: the maximum number of queued messages.
        attempts: the maximum number of tries per message.
        pause_seconds: the pause after the first try; each further pause is twice as long, up to
            60 s.
        interrupt: ends a running `send` when the queue closes.
    """

    def __init__(
        self,
        send: Callable[[T], None],
        receiver: str,
        logger: logging.Logger,
        *,
        size: int,
        attempts: int,
        pause_seconds: float,
        interrupt: Callable[[], None],
    ) -> None:
        self._send = send
        self._receiver = receiver
        self._logger = logger
        self._size = size
        self._attempts = attempts
        self._pause_seconds = pause_seconds
        self._interrupt = interrupt
        self._changed = threading.Condition()
        self._waiting: deque[T] = deque()
        self._lost = 0
        self._failing = False  # only the sending thread uses it
        self._closed = threading.Event()
        self._ends_at = math.inf
        self._thread = threading.Thread(target=self._run, name="monitor-send", daemon=True)

    def start(self) -> None:
        """Start the thread, which first sends the messages that are already queued."""
        self._thread.start()

    def put(self, message: T) -> None:
        """Queue a message, without blocking."""
        with self._changed:
            if overflows := len(self._waiting) == self._size:
                self._waiting.popleft()
            self._waiting.append(message)
            self._changed.notify()
        if overflows:
            self._count_lost(f"the queue is full, with {self._size}; the oldest event was dropped")

    def close(self) -> None:
        """Try each queued message once, for at most 0.6 s in total, and end the thread."""
        self._ends_at = time.monotonic() + _CLOSE_SECONDS
        self._closed.set()
        with self._changed:
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join(_CLOSE_SECONDS)
            self._interrupt()
            self._thread.join(_INTERRUPT_SECONDS)
        with self._changed:
            lost = self._lost + len(self._waiting)
        if lost:
            self._logger.error("%s: closed; %d events were lost", self._receiver, lost)

    def _run(self) -> None:
        while (message := self._next()) is not None:
            if failure := self._deliver(message):
                self._count_lost(str(failure))
            elif self._failing or self._lost:
                self._recover()

    def _next(self) -> T | None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed.is_set())
            if self._waiting and time.monotonic() < self._ends_at:
                return self._waiting.popleft()
            return None

    def _deliver(self, message: T) -> NotSent | None:
        """Send a message, with retries; return the last failure, or None if it was sent."""
        pause = min(self._pause_seconds, _MAX_PAUSE_SECONDS)
        for attempt in range(1, self._attempts + 1):
            try:
                return self._send(message)
            except NotSent as error:
                failure = error
            except Exception as error:  # the thread must survive
                failure = NotSent(f"{type(error).__name__}: {error}")
            if not self._failing:
                self._failing = True
                self._logger.warning("%s: an event could not be sent: %s", self._receiver, failure)
            last = not failure.again or attempt == self._attempts
            if last or self._closed.wait(max(pause, failure.after_seconds)):
                break
            pause = min(2 * pause, _MAX_PAUSE_SECONDS)
        return failure

    def _count_lost(self, reason: str) -> None:
        with self._changed:
            self._lost += 1
            first = self._lost == 1
        if first:
            text = "%s: an event is lost (further ones are only counted): %s"
            self._logger.error(text, self._receiver, reason)

    def _recover(self) -> None:
        with self._changed:
            if self._waiting:
                return
            lost, self._lost = self._lost, 0
        self._failing = False
        text = "%s: events are sent again, and the queue is empty; %d were lost"
        self._logger.warning(text, self._receiver, lost)
