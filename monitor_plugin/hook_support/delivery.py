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

# Together less than the default of `hook_timeout_seconds`, the time of `monitor_closing`.
_CLOSE_SECONDS = 0.6
_INTERRUPT_SECONDS = 0.3
_MAX_PAUSE_SECONDS = 60.0


class NotSent(Exception):
    """A message could not be sent.

    Attributes:
        again: whether to try again.
        after_seconds: the shortest pause before the next try.
    """

    def __init__(self, reason: str, again: bool = True, after_seconds: float = 0.0) -> None:
        super().__init__(reason)
        self.again = again
        self.after_seconds = after_seconds


class SendQueue(Generic[T]):
    """Sends messages one by one, in order, and retries. Safe to call from any thread.

    A full queue drops its oldest message. The log says when sending begins to fail, when messages
    begin to be lost, and, after the queue has become empty again, how many were lost.

    Args:
        send: sends one message, or raises `NotSent`.
        receiver: the receiver's name, for the log.
        logger: the hook's logger.
        size: the maximum number of waiting messages.
        attempts: the maximum number of tries for one message.
        pause_seconds: the pause after the first try; it doubles after each try, up to 60 s.
        interrupt: ends a `send` that is under way when the queue closes.
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
        self._failing = False  # used by the sending thread only
        self._closed = threading.Event()
        self._ends_at = math.inf
        self._thread = threading.Thread(target=self._run, name="monitor-send", daemon=True)

    def start(self) -> None:
        """Start the thread. Messages that were put before are sent first."""
        self._thread.start()

    def put(self, message: T) -> None:
        """Queue a message. Never blocks."""
        with self._changed:
            if overflows := len(self._waiting) == self._size:
                self._waiting.popleft()
            self._waiting.append(message)
            self._changed.notify()
        if overflows:
            self._lose(f"the queue is full, with {self._size}, and the oldest made room")

    def close(self) -> None:
        """Try each waiting message once, for at most 0.6 s in all, and end the thread."""
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
            if reason := self._deliver(message):
                self._lose(reason)
            elif self._failing or self._lost:
                self._recover()

    def _next(self) -> T | None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed.is_set())
            if self._waiting and time.monotonic() < self._ends_at:
                return self._waiting.popleft()
            return None

    def _deliver(self, message: T) -> str | None:
        """Send a message, with retries. Returns why it was given up, or None."""
        pause = min(self._pause_seconds, _MAX_PAUSE_SECONDS)
        for attempt in range(1, self._attempts + 1):
            try:
                return self._send(message)
            except NotSent as error:
                failure = error
            except Exception as error:  # the thread must live to send the next messages
                failure = NotSent(f"{type(error).__name__}: {error}")
            if not self._failing:
                self._failing = True
                self._logger.warning("%s: an event could not be sent: %s", self._receiver, failure)
            last = not failure.again or attempt == self._attempts
            if last or self._closed.wait(max(pause, failure.after_seconds)):
                break
            pause = min(2 * pause, _MAX_PAUSE_SECONDS)
        return str(failure)

    def _lose(self, reason: str) -> None:
        with self._changed:
            self._lost += 1
            first = self._lost == 1
        if first:
            self._logger.error(
                "%s: an event is lost, and others may be until the queue is empty: %s",
                self._receiver,
                reason,
            )

    def _recover(self) -> None:
        with self._changed:
            if self._waiting:
                return
            lost, self._lost = self._lost, 0
        self._failing = False
        self._logger.warning(
            "%s: events are sent again, and none waits; %d were lost", self._receiver, lost
        )
