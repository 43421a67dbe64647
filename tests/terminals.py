"""A program in a real pseudo-terminal, the screen of which is read by an emulator."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import signal
import struct
import termios
from typing import Any

import pyte

from .support import Spawner, eventually


class Terminal:
    """Runs a program on a terminal of that size. What it printed stands in `screen`."""

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

    @property
    def screen(self) -> list[str]:
        """What stands on the screen now, line by line."""
        while select.select([self._controller], [], [], 0)[0]:
            data = os.read(self._controller, 65536)
            self.printed += data
            self._stream.feed(data)
        return [line.rstrip() for line in self._screen.display]

    def wait_for(self, words: str) -> list[str]:
        """Wait until the screen shows words; gives its lines."""
        try:
            eventually(lambda: words in "\n".join(self.screen))
        except AssertionError:
            raise AssertionError(
                f"no {words!r} on the screen:\n" + "\n".join(self.screen)
            ) from None
        return self.screen

    def ended(self) -> int:
        """Wait for the program's end, and give its exit code; the terminal is to be as it was."""
        eventually(lambda: [self.screen, self.process.poll() is not None][1])
        assert self.screen
        assert termios.tcgetattr(self._terminal) == self.modes
        return self.process.returncode

    def close(self) -> None:
        for descriptor in (self._controller, self._terminal):
            with contextlib.suppress(OSError):
                os.close(descriptor)
