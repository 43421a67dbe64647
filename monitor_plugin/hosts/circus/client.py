"""Commands to circus: what its watchers run, and starts and stops of watchers."""

from __future__ import annotations

import shlex
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from circus.util import replace_gnu_args

from ...domain.logs import STREAMS
from ..discovery import Program, split_command

_POLL_SECONDS = 0.1
_MIN_COMMAND_SECONDS = 0.2
_SHORT_COMMAND_SECONDS = 0.5
_COMMAND_SECONDS = 2.0
# circus' COMMAND_ERROR and MESSAGE_ERROR. Both have more meanings, which the message tells apart.
_BUSY = 5
_NOT_FOUND = 3
# The options of watchers that are asked for.
_KEYS = ("cmd", "args", "numprocesses", "respawn")
_STREAM_KEYS = tuple(f"{stream}_stream_conf" for stream in STREAMS)


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


class WatcherState(NamedTuple):
    """What circus says of a watcher.

    Attributes:
        name: its name, which is name and display name of its programs.
        status: `starting`, `active`, `stopping` or `stopped`.
        programs: its processes; one without a process if none runs, or if circus is stopping it.
        numprocesses: how many processes it should have; None if it has just been removed.
        respawns: whether circus starts a process again that has ended; None if it has just been
            removed.
        logs: the files that circus writes its streams to, `stdout` and `stderr`. A relative path is
            relative to circus' working folder, which is also that of its plugins.
    """

    name: str
    status: str
    programs: Sequence[Program]
    numprocesses: int | None
    respawns: bool | None
    logs: Mapping[str, str]

    @property
    def runs(self) -> bool:
        """Whether it has a process, and circus is not stopping it."""
        return any(each.pid for each in self.programs)


class Watchers:
    """circus' watchers. Its methods may be called from any thread.

    The command `options` is not used, as its answer has a program's whole environment.

    Args:
        send_command: sends a command to circus.

    Attributes:
        closing: an event that ends all waits for starts and stops.
    """

    def __init__(self, send_command: SendCommand) -> None:
        self._send_command = send_command
        self.closing = threading.Event()

    def states(self) -> list[WatcherState]:
        """List the watchers.

        Raises:
            CircusError: circus did not answer.
        """
        statuses = self._call(_COMMAND_SECONDS, "status")["statuses"]
        # Other commands ignore the case of names.
        names = {name.lower(): name for name in statuses}.values()
        return [self._state(name, statuses[name]) for name in names]

    def _state(self, name: str, status: str) -> WatcherState:
        pids = [] if status == "stopping" else self.pids(name)
        # circus answers with an error if it cannot encode the options of a stream.
        options = self._options(name, *_KEYS, *_STREAM_KEYS) or self._options(name, *_KEYS)
        cmd, args = options.get("cmd") or "", options.get("args") or ""
        # With `shell` circus quotes all arguments, so that the shell replaces nothing.
        command = f"{cmd} {args if isinstance(args, str) else shlex.join(args)}"
        numbers = self._numbers(name) if pids and "wid" in command.lower() else {}
        programs = []
        for pid in pids or [0]:
            variables = {"wid": numbers[pid]} if pid in numbers else {}
            arguments = split_command(replace_gnu_args(command, **variables))
            programs.append(Program(name, name, pid, arguments))
        numprocesses, respawns = options.get("numprocesses"), options.get("respawn")
        logs = {
            stream: path
            for stream, key in zip(STREAMS, _STREAM_KEYS, strict=True)
            if (path := _log_path(options.get(key)))
        }
        return WatcherState(name, status, programs, numprocesses, respawns, logs)

    def _options(self, name: str, *keys: str) -> dict[str, Any]:
        """Return options of a watcher; none if it was removed."""
        try:
            return dict(self._call(_COMMAND_SECONDS, "get", name=name, keys=keys)["options"])
        except CircusError as error:
            if error.silent:
                raise
            return {}

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

    def start(self, name: str, seconds: float) -> None:
        """Start a watcher unless it runs. If circus is stopping it, wait until it has stopped.

        Args:
            name: the name of the watcher.
            seconds: the maximum time to wait.

        Raises:
            CircusError: circus did not start it.
        """
        deadline = time.monotonic() + seconds
        accepted, error = False, None
        while True:
            try:
                status = str(self._call(_timeout(deadline), "status", name=name)["status"])
                if status in ("active", "starting"):
                    return
                if status == "stopped" and accepted:
                    raise CircusError("circus could not start a process, its log says why", 0)
                if status == "stopped":
                    # Without the option `waiting`, circus answers when it has started the first
                    # process, or has failed to.
                    self._call(_timeout(deadline), "start", name=name, match="simple")
                    accepted = True
                    continue
                error = CircusError("circus is still stopping it", 0)
            except CircusError as failure:
                if not (failure.busy or failure.silent):
                    raise
                error = failure
            if time.monotonic() > deadline or self.closing.wait(_POLL_SECONDS):
                raise error

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


def _log_path(stream: Any) -> str | None:
    """Return the file of a stream's configuration; None if it names none.

    All classes of circus that write to a file call it `filename`. Devices do not count: /dev/stdout
    would be that of the monitor itself.
    """
    path = stream.get("filename") if isinstance(stream, dict) else None
    is_file = isinstance(path, str) and path and not path.startswith(("/dev/", "/proc/"))
    return path if is_file else None


def _timeout(deadline: float) -> float:
    """Return the timeout of a command before a deadline."""
    return max(_MIN_COMMAND_SECONDS, min(_COMMAND_SECONDS, deadline - time.monotonic()))
