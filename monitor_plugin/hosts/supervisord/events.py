"""supervisord's event protocol, on standard input and output: each event is taken for a hint."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from typing import TextIO

from supervisor import childutils


class EventProtocol:
    """Answers supervisord's events.

    Args:
        events: where they come from.
        answers: where they are acknowledged.
    """

    def __init__(self, events: TextIO, answers: TextIO) -> None:
        self._events = events
        self._answers = answers

    @classmethod
    def claim(cls) -> EventProtocol:
        """Take standard input and output for the protocol alone.

        One line that does not belong to the protocol would make supervisord send no more events:
        whatever else is printed goes to standard error from now on, in child processes too.
        """
        events, answers = os.dup(0), os.dup(1)
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.close(nothing)
        os.dup2(2, 1)
        sys.stdout = sys.stderr
        # A payload's length is in bytes: a character must be one.
        return cls(
            open(events, encoding="latin-1", newline="\n"),
            open(answers, "w", encoding="latin-1", newline="\n"),
        )

    def run(self, hint: Callable[[], None]) -> None:
        """Acknowledge each event, and then call `hint`; return when supervisord ends it."""
        try:
            while True:
                childutils.listener.ready(self._answers)
                header = self._events.readline()
                if not header:
                    return
                self._events.read(int(childutils.get_headers(header)["len"]))
                childutils.listener.ok(self._answers)
                hint()
        except BrokenPipeError:  # and what is left to be written is of no more use
            with contextlib.suppress(BrokenPipeError):
                self._answers.close()
