"""The signals of a command: SIGTERM and SIGINT end the command, SIGHUP reloads its tokens."""

from __future__ import annotations

import contextlib
import queue
import signal
import socket
from collections.abc import Callable


class Signals:
    """Installs signal handlers when created; `wait()` acts on the signals. For the main thread.

    A handler interrupts the main thread, which may hold any lock. So a handler only puts the
    signal's number into a `SimpleQueue`, whose `put` is reentrant. Python runs handlers only
    between two bytecodes, so a signal that arrives just before a blocking call would not end that
    call. `wait` therefore reads from a socket: the interpreter writes a byte to the socket when a
    signal arrives.
    """

    def __init__(self) -> None:
        self._numbers: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._waker: socket.socket | None = None
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda number, frame: self._numbers.put(number))

    @property
    def pending(self) -> bool:
        """Whether a signal has arrived that `wait` has not yet acted on."""
        return not self._numbers.empty()

    def end(self) -> None:
        """End the wait as SIGTERM does. Safe to call from any thread."""
        self._numbers.put(signal.SIGTERM)
        if waker := self._waker:
            with contextlib.suppress(OSError):  # the wait has just ended
                waker.send(b"\0")

    def wait(self, reload: Callable[[], None]) -> None:
        """Wait for SIGTERM or SIGINT, and call `reload` at each SIGHUP."""
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
