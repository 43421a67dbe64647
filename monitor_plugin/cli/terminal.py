"""A terminal that gives keys one by one, and is left as it was found."""

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
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Terminal:
    """Waits for keys, signals and other threads at once. Made by `open_terminal`.

    Attributes:
        ended_by: the signal that is to end the program; None while there is none.
    """

    def __init__(self, descriptor: int, waking: int, woken: int) -> None:
        self.ended_by: int | None = None
        self._descriptor = descriptor
        self._waking = waking
        self._woken = woken

    def wake(self) -> None:
        """End the wait. From any thread."""
        with contextlib.suppress(BlockingIOError):  # it is full, and so the wait ends anyhow
            os.write(self._waking, b"\0")

    def wait(self, timeout_seconds: float) -> list[str]:
        """Wait for keys, a signal or `wake()`, and give the keys: characters, `up`, `escape`."""
        ready, _, _ = select.select([self._descriptor, self._woken], [], [], timeout_seconds)
        if self._woken in ready:
            os.read(self._woken, 4096)
        if self._descriptor not in ready:
            return []
        pressed = os.read(self._descriptor, 4096)
        if not pressed:  # the terminal is gone
            self.ended_by = signal.SIGHUP
        return keys_of(pressed.decode(errors="replace"))

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        """Note a signal; the wait is ended by the descriptor that Python writes to."""
        if number in _ENDING:
            self.ended_by = number


@contextlib.contextmanager
def open_terminal(descriptor: int) -> Iterator[Terminal]:
    """Take keys without echo, and signals without dying of them; all is as before afterwards.

    For the main thread.
    """
    found = termios.tcgetattr(descriptor)
    woken, waking = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    terminal = Terminal(descriptor, waking, woken)
    numbers = (*_ENDING, signal.SIGWINCH)
    handlers = {number: signal.getsignal(number) for number in numbers}
    wakeup = signal.set_wakeup_fd(waking, warn_on_full_buffer=False)
    try:
        for number in numbers:
            signal.signal(number, terminal.on_signal)
        termios.tcsetattr(descriptor, termios.TCSADRAIN, _quiet(found))
        yield terminal
    finally:
        with contextlib.suppress(termios.error):  # the terminal is gone
            termios.tcsetattr(descriptor, termios.TCSAFLUSH, found)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(wakeup)
        os.close(woken)
        os.close(waking)


def _quiet(found: list[Any]) -> list[Any]:
    """No echo, no lines, no stopping by Ctrl-S or Ctrl-Z; Ctrl-C stays a signal."""
    input_flags, output_flags, control_flags, local_flags, *speeds, characters = found
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


def keys_of(text: str) -> list[str]:
    """Tell the keys apart; a sequence that is not known gives none."""
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
