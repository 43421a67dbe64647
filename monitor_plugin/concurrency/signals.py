"""The signals of a command: SIGTERM and SIGINT end it, SIGHUP reads its tokens again."""

from __future__ import annotations

import contextlib
import queue
import signal
import socket
from collections.abc import Callable


class Signals:
    """Takes the signals from when it is made; `wait()` acts on them. For the main thread.

    Handlers run in the midst of whatever the main thread does, which may hold any lock: an event's,
    say, that it is about to wait for. So they do no more than put a number into a queue, whose
    `put` is made for that. They run between two steps of Python alone, and would so miss a signal
    that comes just as the wait begins: a byte in a socket, written when it comes, ends the wait.
    """

    def __init__(self) -> None:
        self._numbers: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._waker: socket.socket | None = None
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda number, frame: self._numbers.put(number))

    @property
    def pending(self) -> bool:
        """Whether one has come on which `wait` has not acted yet."""
        return not self._numbers.empty()

    def end(self) -> None:
        """End the wait, as SIGTERM does. From any thread."""
        self._numbers.put(signal.SIGTERM)
        if waker := self._waker:
            with contextlib.suppress(OSError):  # it has just ended
                waker.send(b"\0")

    def wait(self, reload: Callable[[], None]) -> None:
        """Wait for the end, and call `reload` at each SIGHUP."""
        woken, waker = socket.socketpair()
        with woken, waker:
            waker.setblocking(False)
            self._waker = waker
            before = signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
            try:
                while True:
                    while not self._numbers.empty():
                        if self._numbers.get() != signal.SIGHUP:
                            return
                        reload()
                    woken.recv(64)
            finally:
                signal.set_wakeup_fd(before)
                self._waker = None
