"""What circus runs, and how it is stopped there: circus' own commands, and nothing of its code."""

from __future__ import annotations

import threading
import time
from typing import Any, Protocol

from ..discovery import Program

_LOOK_SECONDS = 0.1
_SHORTEST_ASK_SECONDS = 0.2
_BRIEF_ASK_SECONDS = 0.5
_ASK_SECONDS = 2.0
_BUSY = 5  # circus' COMMAND_ERROR, which is more than "the arbiter is already running ..."
_NOT_FOUND = 3  # circus' MESSAGE_ERROR


class CircusFailed(Exception):
    """circus did not answer, or answered with an error; the message says which.

    Attributes:
        errno: of the error, as circus gives it; None where it did not answer.
    """

    def __init__(self, reason: str, errno: int | None = None) -> None:
        super().__init__(reason)
        self.errno = errno

    @property
    def busy(self) -> bool:
        """Whether another command was in the way."""
        return self.errno == _BUSY and "arbiter is" in str(self)

    @property
    def silent(self) -> bool:
        """Whether no answer came in time, whatever circus does."""
        return self.errno is None

    @property
    def not_found(self) -> bool:
        """Whether there is no such watcher."""
        return self.errno == _NOT_FOUND and "not found" in str(self)


class Call(Protocol):
    """Sends a command to circus, and gives its answer."""

    def __call__(self, seconds: float, command: str, **properties: Any) -> dict[str, Any]:
        """Wait for the answer at most `seconds`; raises `CircusFailed` where none came."""


class Watchers:
    """circus' watchers. Safe to call from any thread.

    Never asks for `options`, which hold a program's whole environment.

    Args:
        call: sends a command.

    Attributes:
        closing: once set, waits end.
    """

    def __init__(self, call: Call) -> None:
        self._call = call
        self.closing = threading.Event()

    def programs(self) -> list[Program]:
        """List the processes of all watchers: a watcher's name is its model's.

        Raises:
            CircusFailed: circus did not answer.
        """
        statuses = self._ask(_ASK_SECONDS, "status")["statuses"]
        programs = []
        # Names that differ in case alone are one to all other commands.
        for name in {name.lower(): name for name in statuses}.values():
            programs += [Program(name, name, pid) for pid in self.pids(name)]
        return programs

    def pids(self, name: str) -> list[int]:
        """List the processes of a watcher; none where there is no such watcher.

        Raises:
            CircusFailed: circus did not answer.
        """
        try:
            return list(self._ask(_ASK_SECONDS, "list", name=name)["pids"])
        except CircusFailed as error:
            if error.not_found:  # removed since it was named
                return []
            raise

    def stop(self, name: str, seconds: float) -> bool:
        """Stop a watcher for good, and wait; one that is stopped stays so.

        Args:
            name: the watcher's.
            seconds: by when to be back.

        Returns:
            Whether it is stopped; False where circus is at it, also where it has taken it and then
            says nothing.

        Raises:
            CircusFailed: circus did not take it.
        """
        deadline = time.monotonic() + seconds
        taken, status = False, ""
        while True:
            refusal = None
            try:
                status = str(self._ask(_left(deadline), "status", name=name)["status"])
                if taken and status == "stopped":
                    return True
                if taken and status != "stopping":
                    raise CircusFailed(f"circus took the stop, and yet the watcher is {status}", 0)
                if not taken:
                    # Without `waiting`, which does not say that it was taken, and cannot be broken
                    # off. A name is a pattern unless it is said that it is none.
                    self._ask(_left(deadline), "stop", name=name, match="simple")
                    taken = True
            except CircusFailed as failure:
                if failure.not_found:  # it was removed, which stops it too
                    return True
                if not (failure.busy or failure.silent):
                    raise
                refusal = failure
            if time.monotonic() > deadline or self.closing.wait(_LOOK_SECONDS):
                break
        if refusal and not taken and status != "stopping":  # else by another's word
            raise refusal
        return False

    def graceful_timeout(self, name: str) -> float | None:
        """Say after how many seconds circus kills what it stops; None where it does not answer."""
        try:
            # Briefly: it is asked by who has no time left.
            answer = self._ask(_BRIEF_ASK_SECONDS, "get", name=name, keys=["graceful_timeout"])
            return float(answer["options"]["graceful_timeout"])
        except CircusFailed:
            return None

    def _ask(self, seconds: float, command: str, **properties: Any) -> dict[str, Any]:
        answer = self._call(seconds, command, **properties)
        if answer.get("status") == "error":
            raise CircusFailed(str(answer.get("reason")), int(answer.get("errno") or 0))
        return answer


def _left(deadline: float) -> float:
    """Say how long an answer may take."""
    return max(_SHORTEST_ASK_SECONDS, min(_ASK_SECONDS, deadline - time.monotonic()))
