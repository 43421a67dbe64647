"""When supervisord is asked for the configuration of its programs, and what is kept of it."""

from __future__ import annotations

import math
from typing import Any

import pytest

from monitor_plugin.hosts.supervisord import configuration as module
from monitor_plugin.hosts.supervisord.client import SupervisordClient
from monitor_plugin.hosts.supervisord.configuration import Configuration, ProgramConfiguration


class Supervisord(SupervisordClient):
    """A supervisord with a configuration, which counts the calls."""

    def __init__(self, **commands: str) -> None:
        self.commands = commands
        self.calls = 0

    def call(self, method: str, *arguments: Any) -> Any:
        self.calls += 1
        return [
            {"group": name, "name": name, "command": command, "redirect_stderr": False}
            for name, command in self.commands.items()
        ]


def info(name: str, pid: int) -> dict[str, Any]:
    return {"group": name, "name": name, "pid": pid}


def test_configuration_is_asked_for_when_there_is_a_new_process() -> None:
    """A process keeps its configuration; a program that does not run has that of its next one."""
    supervisord = Supervisord(a="old", b="old")
    configuration = Configuration(supervisord)

    def commands(*pids: int) -> list[object]:
        infos = [info(name, pid) for name, pid in zip("abc", pids, strict=False)]
        configuration.update(infos)
        return [configuration.of(each).command for each in infos]

    assert commands(1, 0) == [["old"], ["old"]]
    assert commands(1, 0) == commands(0, 0) == commands(1, 0)
    assert supervisord.calls == 1
    supervisord.commands = {"a": "new", "b": "new"}
    assert commands(1, 2) == [["old"], ["new"]]
    assert commands(0, 2) == [["new"], ["new"]]
    assert commands(4, 2, 3) == [["new"], ["new"], ()]  # the third was removed meanwhile
    assert supervisord.calls == 3
    assert configuration.of(info("c", 3)) == ProgramConfiguration()


def test_old_configuration_of_programs_that_do_not_run_is_asked_for_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An update may have changed it."""
    supervisord = Supervisord(a="old")
    configuration = Configuration(supervisord)
    configuration.update([info("a", 0)])
    supervisord.commands = {"a": "new"}
    monkeypatch.setattr(module, "_MAX_SECONDS", -math.inf)
    configuration.update([info("a", 0)])
    assert configuration.of(info("a", 0)).command == ["new"]
    configuration.update([info("a", 1)])
    calls = supervisord.calls
    configuration.update([info("a", 1)])
    assert supervisord.calls == calls
