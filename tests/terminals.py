"""Runs a program in a pseudo-terminal, and reads its screen with a terminal emulator."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import termios
from collections.abc import Callable
from typing import Any

import pyte

from .support import Spawner, eventually


class Terminal:
    """Runs a program in a terminal of the given size."""

    def __init__(
        self, spawner: Spawner, *command: str, columns: int = 80, lines: int = 24, **options: Any
    ) -> None:
        self._screen = pyte.Screen(columns, lines)
        self._stream = pyte.ByteStream(self._screen)
        self.printed = b""
        self._controller, self._terminal = pty.openpty()
        self.resize(columns, lines)
        self.modes = termios.tcgetattr(self._terminal)
        environment = {**os.environ, "TERM": "xterm-256color", **options.pop("env", {})}
        self.process = spawner.process(
            *("setsid", "--ctty", *command),
            stdin=self._terminal,
            stdout=self._terminal,
            stderr=self._terminal,
            start_new_session=False,
            env=environment,
            **options,
        )

    def resize(self, columns: int, lines: int) -> None:
        size = struct.pack("HHHH", lines, columns, 0, 0)
        fcntl.ioctl(self._terminal, termios.TIOCSWINSZ, size)
        self._screen.resize(lines, columns)
        if hasattr(self, "process"):
            self.process.send_signal(signal.SIGWINCH)

    def press(self, keys: str) -> None:
        os.write(self._controller, keys.encode())

    def interrupt(self) -> None:
        """Press Ctrl-C until the program ends: Python loses one as it begins to read a line."""
        for _ in range(6):
            self.press("\x03")
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(5)
                return

    @property
    def screen(self) -> list[str]:
        """The lines that the screen shows now."""
        while select.select([self._controller], [], [], 0)[0]:
            data = os.read(self._controller, 65536)
            self.printed += data
            self._stream.feed(data)
        return [line.rstrip() for line in self._screen.display]

    def wait_for(self, words: str) -> list[str]:
        """Wait until the screen shows these words; return its lines."""
        self._eventually(lambda: words in "\n".join(self.screen), f"no {words!r}")
        return self.screen

    def ended(self) -> int:
        """Wait for the program's end, check that it restored the modes; return its exit code."""
        self._eventually(lambda: [self.screen, self.process.poll()][1] is not None, "no end")
        assert self.screen
        assert termios.tcgetattr(self._terminal) == self.modes
        return int(self.process.returncode)

    def _eventually(self, condition: Callable[[], bool], complaint: str) -> None:
        try:
            eventually(condition)
        except AssertionError:
            screen = "\n".join(self.screen)
            raise AssertionError(f"{complaint}; on the screen:\n{screen}") from None

    def close(self) -> None:
        for descriptor in (self._controller, self._terminal):
            with contextlib.suppress(OSError):
                os.close(descriptor)
