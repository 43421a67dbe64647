"""The signals of a command: SIGTERM and SIGINT end the command, SIGHUP reloads its tokens.

A shell that runs a script starts background commands with SIGINT ignored. The commands of this
program end by SIGINT nevertheless: a user who presses Ctrl-C wants to end the commands that the
terminal shows.
"""

from __future__ import annotations

import contextlib
import queue
import signal
import socket
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any


class Interruptible:
    """While entered, SIGINT and SIGTERM raise `KeyboardInterrupt` in the main thread.

    The earlier handlers are restored at the exit. In another thread than the main one, nothing
    is installed.

    Attributes:
        ended_by: the number of the last signal; None before the first one.
    """

    def __init__(self) -> None:
        self.ended_by: int | None = None
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> Interruptible:
        """Install the handlers."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._handlers[number] = signal.signal(number, self._interrupt)
        return self

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        self.ended_by = number
        raise KeyboardInterrupt

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Restore the handlers."""
        for number, handler in self._handlers.items():
            if handler is not None:  # None is a handler that was not installed from Python
                signal.signal(number, handler)


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
