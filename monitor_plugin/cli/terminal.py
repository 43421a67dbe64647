"""A terminal in which each key is read at once; its modes are restored at the end."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import termios
from collections.abc import Iterator
from types import FrameType
from typing import Any

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
    """Waits for keys, signals and other threads at once. `open_terminal` makes it.

    Args:
        descriptor: the terminal's.
        wake_reader, wake_writer: the ends of a pipe; a byte in it ends a wait.

    Attributes:
        ended_by: the number of the signal that is to end the program; None while there is none.
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
        """Wait for keys, a signal or `wake()`; returns the keys: characters, `up`, `escape`."""
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
    """Read keys without echo, and receive signals without ending; restores both afterwards.

    Call this from the main thread.
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
        termios.tcsetattr(descriptor, termios.TCSADRAIN, _without_echo(modes))
        yield terminal
    finally:
        with contextlib.suppress(termios.error):  # the terminal is gone
            termios.tcsetattr(descriptor, termios.TCSAFLUSH, modes)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(wakeup)
        os.close(wake_reader)
        os.close(wake_writer)


def _without_echo(modes: list[Any]) -> list[Any]:
    """Switch echo, line editing, Ctrl-S and Ctrl-Z off; Ctrl-C stays a signal."""
    input_flags, output_flags, control_flags, local_flags, *speeds, characters = modes
    characters = list(characters)
    characters[termios.VMIN], characters[termios.VTIME] = 1, 0
    characters[termios.VSUSP] = b"\0"
    return [
        input_flags & ~termios.IXON,
        output_flags,
        control_flags,
        local_flags & ~(termios.ECHO | termios.ICANON),
        *speeds,
        characters,
    ]


def split_keys(text: str) -> list[str]:
    """Split what was typed into keys; unknown escape sequences are left out."""
    keys = []
    while text:
        end = 1
        if text[0] == "\x1b" and text[1:2] in ("[", "O"):
            end = 2
            while end < len(text) and not text[end].isalpha() and text[end] != "~":
                end += 1
            end += 1
        sequence, text = text[:end], text[end:]
        if not sequence.startswith("\x1b"):
            keys.append(sequence)
        elif sequence in _SEQUENCES:
            keys.append(_SEQUENCES[sequence])
    return keys
