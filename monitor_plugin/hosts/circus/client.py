"""Commands to circus: what its watchers run, and stops of watchers."""

from __future__ import annotations

import shlex
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

from circus.util import replace_gnu_args

from ..discovery import Program, split_command

_POLL_SECONDS = 0.1
_MIN_COMMAND_SECONDS = 0.2
_SHORT_COMMAND_SECONDS = 0.5
_COMMAND_SECONDS = 2.0
# circus' COMMAND_ERROR and MESSAGE_ERROR. Both have more meanings, which the message tells apart.
_BUSY = 5
_NOT_FOUND = 3


def _nothing() -> None:
    pass


class CircusError(Exception):
    """circus did not answer, or answered with an error.

    Attributes:
        errno: the number of circus' error; None if circus did not answer.
    """

    def __init__(self, reason: str, errno: int | None = None) -> None:
        super().__init__(reason)
        self.errno = errno

    @property
    def busy(self) -> bool:
        """Whether circus was running another command."""
        return self.errno == _BUSY and "arbiter is" in str(self)

    @property
    def silent(self) -> bool:
        """Whether no answer came in time; circus may have received the command."""
        return self.errno is None

    @property
    def not_found(self) -> bool:
        """Whether the watcher does not exist."""
        return self.errno == _NOT_FOUND and "not found" in str(self)


class SendCommand(Protocol):
    """Sends a command to circus, and returns the answer."""

    def __call__(self, seconds: float, command: str, **properties: Any) -> dict[str, Any]:
        """Raise `CircusError` if no answer comes within `seconds`."""


class Watchers:
    """circus' watchers. Its methods may be called from any thread.

    The command `options` is not used, as its answer has a program's whole environment.

    Args:
        send_command: sends a command to circus.

    Attributes:
        closing: an event that ends all waits for stops.
    """

    def __init__(self, send_command: SendCommand) -> None:
        self._send_command = send_command
        self.closing = threading.Event()

    def programs(self) -> list[Program]:
        """List the processes of the watchers that circus is not stopping.

        The watcher's name is name and display name.

        Raises:
            CircusError: circus did not answer.
        """
        statuses = self._call(_COMMAND_SECONDS, "status")["statuses"]
        programs = []
        # Other commands ignore the case of names.
        for name in {name.lower(): name for name in statuses}.values():
            if statuses[name] != "stopping" and (pids := self.pids(name)):
                command = self._command(name)
                numbers = self._numbers(name) if "wid" in command.lower() else {}
                for pid in pids:
                    variables = {"wid": numbers[pid]} if pid in numbers else {}
                    arguments = split_command(replace_gnu_args(command, **variables))
                    programs.append(Program(name, name, pid, arguments))
        return programs

    def _command(self, name: str) -> str:
        """Return the command line in a watcher's configuration; empty if it is not known."""
        try:
            answer = self._call(_COMMAND_SECONDS, "get", name=name, keys=["cmd", "args"])
        except CircusError as error:
            if error.silent:
                raise
            return ""  # the watcher was removed
        options = answer["options"]
        cmd, args = options["cmd"] or "", options["args"] or ""
        # With `shell` circus quotes all arguments, so that the shell replaces nothing.
        return f"{cmd} {args if isinstance(args, str) else shlex.join(args)}"

    def _numbers(self, name: str) -> dict[int, int]:
        """Return the numbers of a watcher's processes by PID, which commands name `circus.wid`."""
        try:
            infos = self._call(_COMMAND_SECONDS, "stats", name=name)["info"]
        except CircusError as error:
            if error.silent:
                raise
            return {}  # the watcher was removed
        return {int(pid): each["wid"] for pid, each in infos.items() if isinstance(each, dict)}

    def pids(self, name: str) -> list[int]:
        """List the processes of a watcher; empty if the watcher does not exist.

        Raises:
            CircusError: circus did not answer.
        """
        try:
            return list(self._call(_COMMAND_SECONDS, "list", name=name)["pids"])
        except CircusError as error:
            if error.not_found:  # removed after `status` listed it
                return []
            raise

    def stop(self, name: str, seconds: float, meanwhile: Callable[[], None] = _nothing) -> bool:
        """Stop a watcher for good, and wait until it has stopped.

        Args:
            name: the name of the watcher.
            seconds: the maximum time to wait.
            meanwhile: called before each question to circus, ten times a second.

        Returns:
            Whether it has stopped. False: circus is still stopping it, or accepted the stop and
            does not answer any more.

        Raises:
            CircusError: circus did not take it.
        """
        deadline = time.monotonic() + seconds
        accepted, status = False, ""
        while True:
            error = None
            meanwhile()
            try:
                status = str(self._call(_timeout(deadline), "status", name=name)["status"])
                if accepted and status == "stopped":
                    return True
                if accepted and status != "stopping":
                    raise CircusError(f"circus took the stop, and yet the watcher is {status}", 0)
                if not accepted:
                    # Without `waiting`, which would block and not tell whether circus accepted the
                    # stop. `match="simple"`, as a name is a pattern otherwise.
                    self._call(_timeout(deadline), "stop", name=name, match="simple")
                    accepted = True
            except CircusError as failure:
                if failure.not_found:  # removing a watcher stops it too
                    return True
                if not (failure.busy or failure.silent):
                    raise
                error = failure
            if time.monotonic() > deadline or self.closing.wait(_POLL_SECONDS):
                break
        if error and not accepted and status != "stopping":  # else another client has stopped it
            raise error
        return False

    def graceful_timeout(self, name: str) -> float | None:
        """Return after how many seconds circus sends SIGKILL; None if it does not answer."""
        try:
            # A short timeout, as the stop has used up its time.
            answer = self._call(_SHORT_COMMAND_SECONDS, "get", name=name, keys=["graceful_timeout"])
            return float(answer["options"]["graceful_timeout"])
        except CircusError:
            return None

    def _call(self, seconds: float, command: str, **properties: Any) -> dict[str, Any]:
        answer = self._send_command(seconds, command, **properties)
        if answer.get("status") == "error":
            raise CircusError(str(answer.get("reason")), int(answer.get("errno") or 0))
        return answer


def _timeout(deadline: float) -> float:
    """Return the timeout of a command before a deadline."""
    return max(_MIN_COMMAND_SECONDS, min(_COMMAND_SECONDS, deadline - time.monotonic()))
