"""What circus runs, and how it is stopped there: circus' own commands, and nothing of its code."""

from __future__ import annotations

import time
from typing import Any, Protocol

from .discovery import Program

# Of each wait for a stop, so much is kept for asking how far it is.
_ASK_SECONDS = 1.0
_ASK_SHARE = 0.25
_RETRY_SECONDS = 0.1
_SNAPSHOT_SECONDS = 2.0
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
    """

    def __init__(self, call: Call) -> None:
        self._call = call

    def programs(self) -> list[Program]:
        """List the processes of all watchers: a watcher's name is its model's.

        Raises:
            CircusFailed: circus did not answer.
        """
        statuses = self._ask(_SNAPSHOT_SECONDS, "status")["statuses"]
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
            return list(self._ask(_SNAPSHOT_SECONDS, "list", name=name)["pids"])
        except CircusFailed as error:
            if error.not_found:  # removed since it was named
                return []
            raise

    def stop(self, name: str, seconds: float) -> bool:
        """Stop a watcher for good; one that is stopped stays so.

        Args:
            name: the watcher's.
            seconds: by when to be back.

        Returns:
            Whether it is stopped; False where circus is at it.

        Raises:
            CircusFailed: circus did not take it.
        """
        kept = min(_ASK_SECONDS, seconds * _ASK_SHARE)
        deadline = time.monotonic() + seconds - kept
        while True:
            left = max(_RETRY_SECONDS, deadline - time.monotonic())
            try:
                # Names are patterns unless it is said that they are not.
                self._ask(left, "stop", name=name, match="simple", waiting=True)
                return True
            except CircusFailed as error:
                if error.not_found:
                    return True
                failure = error
            if failure.errno is not None and not failure.busy:
                raise failure
            if failure.errno is None or time.monotonic() + _RETRY_SECONDS > deadline:
                break
            time.sleep(_RETRY_SECONDS)
        # Circus answers once it is done: see whether it began, or does it for another's word.
        status = self._ask(kept, "status", name=name)["status"]
        if status not in ("stopping", "stopped"):
            raise failure
        return bool(status == "stopped")

    def graceful_timeout(self, name: str) -> float | None:
        """Say after how many seconds circus kills what it stops; None where it does not answer."""
        try:
            answer = self._ask(_ASK_SECONDS, "get", name=name, keys=["graceful_timeout"])
            return float(answer["options"]["graceful_timeout"])
        except CircusFailed:
            return None

    def _ask(self, seconds: float, command: str, **properties: Any) -> dict[str, Any]:
        answer = self._call(seconds, command, **properties)
        if answer.get("status") == "error":
            raise CircusFailed(str(answer.get("reason")), int(answer.get("errno") or 0))
        return answer
