"""Follows a monitor until Ctrl-C, for the commands `events -f` and `logs -f`."""

from __future__ import annotations

import io
import select
import sys
import time
from collections.abc import Callable
from typing import TypeVar

import click

from ..domain.errors import RequestFailed
from .options import PROGRAM, explain

#: The time until a monitor that does not answer is asked again, in seconds.
RETRY_SECONDS = 1.0

_REFUSALS = (400, 401, 403)

T = TypeVar("T")


class Follower:
    """Sends the requests of a command that follows a monitor, also across the monitor's restart."""

    def __init__(self) -> None:
        self._has_answered = False
        self._failure: str | None = None

    def ask(self, request: Callable[[], T]) -> T | None:
        """Send a request; None if it failed and may be repeated, which is said once on stderr.

        Raises:
            RequestFailed: the first request has failed, or the monitor refuses the request.
        """
        try:
            answer = request()
        except RequestFailed as error:
            # Other errors end when the monitor or the backend was restarted, such as a proxy's 502,
            # and the 404 for the log of a backend that is not registered yet.
            if not self._has_answered or error.status in _REFUSALS:
                raise
            failure = explain(error)
            if self._failure != failure:
                click.echo(f"{PROGRAM}: {failure}: trying again", err=True)
                self._failure = failure
            return None
        self._has_answered, self._failure = True, None
        return answer


def pause(seconds: float) -> None:
    """Wait, and stop immediately when stdout loses its reader.

    Raises:
        BrokenPipeError: the reader of the pipe has gone, as in `events -f | head -1`.
    """
    try:
        descriptor = sys.stdout.fileno()
    except (io.UnsupportedOperation, ValueError):  # stdout is no file
        time.sleep(seconds)
        return
    poll = select.poll()
    poll.register(descriptor, 0)  # errors are reported without being asked for
    if poll.poll(seconds * 1000):
        raise BrokenPipeError
