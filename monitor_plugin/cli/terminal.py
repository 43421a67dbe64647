"""Reads single keys from a terminal, and restores the modes of the terminal at the end."""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import termios
import tty
from collections.abc import Iterator
from types import FrameType

_SEQUENCES = {
    "\x1b[A": "up",
    "\x1bOA": "up",
    "\x1b[B": "down",
    "\x1bOB": "down",
    "\x1b[H": "home",
    "\x1bOH": "home",
    "\x1b[1~": "home",
    "\x1b[F": "end",
    "\x1bOF": "end",
    "\x1b[4~": "end",
    "\x1b": "escape",
}
_END_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Terminal:
    """Waits for keys, signals and `wake()` at the same time. `open_terminal` makes it.

    A byte in the pipe from `wake_writer` to `wake_reader` ends a wait.

    Attributes:
        ended_by: the number of the signal that ends the program; None before such a signal.
    """

    def __init__(self, descriptor: int, wake_reader: int, wake_writer: int) -> None:
        self.ended_by: int | None = None
        self._descriptor = descriptor
        self._wake_reader = wake_reader
        self._wake_writer = wake_writer

    def wake(self) -> None:
        """End the current wait, or the next one. Any thread may call this."""
        with contextlib.suppress(BlockingIOError):  # the pipe is full: the wait ends anyway
            os.write(self._wake_writer, b"\0")

    def wait(self, timeout_seconds: float) -> list[str]:
        """Wait for keys, a signal or `wake()`; returns the keys: `q`, `up`, `escape`."""
        ready, _, _ = select.select([self._descriptor, self._wake_reader], [], [], timeout_seconds)
        if self._wake_reader in ready:
            os.read(self._wake_reader, 4096)
        if self._descriptor not in ready:
            return []
        typed = os.read(self._descriptor, 4096)
        if not typed:  # the terminal is gone
            self.ended_by = signal.SIGHUP
        return split_keys(typed.decode(errors="replace"))

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        """Record a signal. Python itself writes to the pipe, which ends the wait."""
        if number in _END_SIGNALS:
            self.ended_by = number


@contextlib.contextmanager
def open_terminal(descriptor: int) -> Iterator[Terminal]:
    """Switch echo, line editing, Ctrl-S and Ctrl-Z off, and record signals in the terminal.

    Ctrl-C stays a signal. The end restores modes and handlers. For the main thread.
    """
    modes = termios.tcgetattr(descriptor)
    wake_reader, wake_writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    terminal = Terminal(descriptor, wake_reader, wake_writer)
    numbers = (*_END_SIGNALS, signal.SIGWINCH)
    handlers = {number: signal.getsignal(number) for number in numbers}
    wakeup = signal.set_wakeup_fd(wake_writer, warn_on_full_buffer=False)
    try:
        for number in numbers:
            signal.signal(number, terminal.on_signal)
        tty.setcbreak(descriptor, termios.TCSADRAIN)
        changed = termios.tcgetattr(descriptor)
        changed[tty.IFLAG] &= ~termios.IXON
        changed[tty.CC][termios.VSUSP] = b"\0"
        termios.tcsetattr(descriptor, termios.TCSADRAIN, changed)
        yield terminal
    finally:
        with contextlib.suppress(termios.error):  # the terminal is gone
            termios.tcsetattr(descriptor, termios.TCSAFLUSH, modes)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(wakeup)
        os.close(wake_reader)
        os.close(wake_writer)


def split_keys(text: str) -> list[str]:
    """Split what was typed into keys; unknown escape sequences are left out."""
    sequences = re.findall(r"\x1b[\[O][^A-Za-z~]*[A-Za-z~]?|.", text, re.DOTALL)
    keys = [_SEQUENCES.get(sequence, sequence) for sequence in sequences]
    return [key for key in keys if not key.startswith("\x1b")]
