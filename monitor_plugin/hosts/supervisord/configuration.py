"""The configuration of supervisord's programs."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ..discovery import split_command
from .client import SupervisordClient

# The maximum age of the configuration of programs that do not run, as `supervisorctl update` may
# have changed it.
_MAX_SECONDS = 60.0


class ProgramConfiguration(NamedTuple):
    """The configuration of a program.

    Attributes:
        command: its command line; empty if it is not known.
        redirects: whether its standard error goes to its standard output (`redirect_stderr`).
    """

    command: Sequence[str] = ()
    redirects: bool = False


class Configuration:
    """The configuration of the programs that supervisord has. Not thread-safe.

    supervisord is asked only when there is a new process, because an answer takes it a tenth of a
    millisecond per program. After a `reread` it answers with the configuration of later processes.

    Args:
        supervisord: calls the supervisord.
    """

    def __init__(self, supervisord: SupervisordClient) -> None:
        self._supervisord = supervisord
        self._asked_at = -math.inf
        # By group, name and PID; PID 0 stands for the next process.
        self._programs: dict[tuple[str, str, int], ProgramConfiguration] = {}

    def update(self, infos: Sequence[Mapping[str, Any]]) -> None:
        """Ask supervisord if that is due, for the programs that `getAllProcessInfo` lists.

        Raises:
            SupervisordError: supervisord did not answer.
        """
        keys = [_key(info) for info in infos]
        is_old = time.monotonic() > self._asked_at + _MAX_SECONDS
        if self._programs.keys() >= set(keys) and not (is_old and any(not key[2] for key in keys)):
            return
        configuration = self._supervisord.call("getAllConfigInfo")
        self._asked_at = time.monotonic()
        before, self._programs = self._programs, {}
        for info in configuration:
            self._programs[info["group"], info["name"], 0] = ProgramConfiguration(
                split_command(info["command"]), info["redirect_stderr"]
            )
        for key in keys:
            known = before.get(key) if key[2] else None
            following = self._programs.get((*key[:2], 0), ProgramConfiguration())
            self._programs[key] = known or following

    def of(self, info: Mapping[str, Any]) -> ProgramConfiguration:
        """Return the configuration of a program that the last `update` got."""
        return self._programs[_key(info)]


def _key(info: Mapping[str, Any]) -> tuple[str, str, int]:
    return info["group"], info["name"], info["pid"]
