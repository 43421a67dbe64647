"""How units end: a real systemd tells it by its signals."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from dbus_fast import Message, MessageType, unpack_variants
from dbus_fast.aio import MessageBus

from monitor_plugin.domain.units import HostExit
from monitor_plugin.hosts.systemd.exits import UnitExits, exit_code_of

from ...support import eventually
from ...systemd_machine import SystemdMachine

pytestmark = pytest.mark.once

SYSTEMD = "org.freedesktop.systemd1"


class Signals:
    """Gives the properties that signals of systemd have to a function, on a thread of its own."""

    def __init__(self, path: str, handle: Callable[[dict[str, Any]], object]) -> None:
        self._path = path
        self._handle = handle
        self._subscribed = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))

    def start(self) -> None:
        self._thread.start()
        assert self._subscribed.wait(60)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._closing.set)
        self._thread.join()

    async def _run(self) -> None:
        self._loop, self._closing = asyncio.get_running_loop(), asyncio.Event()
        bus = await MessageBus(f"unix:path={self._path}").connect()
        bus.add_message_handler(self._receive)
        name = "org.freedesktop.DBus"
        rule = "type='signal',member='PropertiesChanged'"
        for body in (
            Message(name, "/org/freedesktop/DBus", name, "AddMatch", signature="s", body=[rule]),
            Message(SYSTEMD, "/org/freedesktop/systemd1", f"{SYSTEMD}.Manager", "Subscribe"),
        ):
            reply = await bus.call(body)
            assert reply
            assert reply.message_type is MessageType.METHOD_RETURN
        self._subscribed.set()
        await self._closing.wait()
        bus.disconnect()

    def _receive(self, message: Message) -> None:
        if message.member == "PropertiesChanged" and message.body[0] == f"{SYSTEMD}.Service":
            self._handle(unpack_variants(message.body[1]))


@pytest.fixture(scope="module")
def exits(systemd_machine: SystemdMachine) -> Iterator[UnitExits]:
    exits = UnitExits()
    bus = systemd_machine.path("/run/dbus/system_bus_socket")
    signals = Signals(str(bus), exits.record)
    signals.start()
    try:
        yield exits
    finally:
        signals.close()


@pytest.mark.parametrize(
    ("script", "options", "expected"),
    [
        ("exit 0", [], HostExit(result="success", exit_code=0, manager="systemd")),
        ("exit 3", [], HostExit(result="exit-code", exit_code=3, manager="systemd")),
        ("kill -KILL $$$$", [], HostExit(result="signal", signal=9, manager="systemd")),
        (
            "sleep 1000",
            ["RuntimeMaxSec=0.1"],
            HostExit(result="timeout", signal=15, manager="systemd"),
        ),
        (
            "systemd-notify --ready; sleep 1000",
            ["Type=notify", "NotifyAccess=all", "WatchdogSec=0.1", "LimitCORE=0"],
            HostExit(result="watchdog", signal=6, manager="systemd"),
        ),
    ],
)
def test_exit_is_known_after_the_next_start(
    script: str,
    options: list[str],
    expected: HostExit,
    systemd_machine: SystemdMachine,
    exits: UnitExits,
) -> None:
    """The next start, which is immediate, resets the result of the unit."""
    name = f"ends-{expected.result}"
    script = f"[ -e /run/{name} ] && exec sleep 1000; echo $$$$ >/run/{name}; {script}"
    options = ["Restart=always", "RestartSec=0", *options]
    properties = [f"--property={each}" for each in options]
    systemd_machine.run("systemd-run", f"--unit={name}", *properties, "sh", "-c", script)
    eventually(lambda: systemd_machine.show(name, "NRestarts") == "1")
    eventually(lambda: systemd_machine.show(name, "ActiveState") in ("active", "activating"))
    pid = int(systemd_machine.path(f"/run/{name}").read_text())
    eventually(lambda: exits.of(pid) == expected)
    assert exits.of(int(systemd_machine.show(name, "MainPID"))) is None
    systemd_machine.run("systemctl", "stop", name)


def test_start_limit_is_the_result_of_the_last_process(
    systemd_machine: SystemdMachine, exits: UnitExits
) -> None:
    properties = ["Restart=always", "RestartSec=0", "StartLimitBurst=2"]
    command = ("systemd-run", "--unit=limited", *(f"--property={each}" for each in properties))
    systemd_machine.run(*command, "true")
    eventually(lambda: systemd_machine.show("limited", "ActiveState") == "failed")
    pid = int(systemd_machine.show("limited", "ExecMainPID"))
    expected = HostExit(result="start-limit-hit", exit_code=0, manager="systemd")
    eventually(lambda: exits.of(pid) == expected)


def ended(pid: int, result: str, code: int, status: int) -> dict[str, Any]:
    return {"ExecMainPID": pid, "Result": result, "ExecMainCode": code, "ExecMainStatus": status}


def test_exit_is_reported_once() -> None:
    """systemd sends several signals about an end, and a PID may be used again."""
    exits = UnitExits()
    assert exits.record(ended(7, "success", 0, 0)) is None
    assert exits.of(7) is None
    killed = HostExit(result="oom-kill", signal=9, manager="systemd")
    assert exits.record(ended(7, "oom-kill", 2, 9)) == (7, killed)
    assert exits.record(ended(7, "oom-kill", 2, 9)) is None
    assert exits.of(7) == killed
    assert exits.record(ended(7, "success", 0, 0)) is None
    assert exits.of(7) is None
    assert exits.record({"NRestarts": 1}) is None
    for pid in range(10, 3000):
        exits.record(ended(pid, "success", 1, 0))
    assert exits.of(10) is None
    assert exits.of(2999) == HostExit(result="success", exit_code=0, manager="systemd")


def test_exit_code_is_that_of_subprocess() -> None:
    exits = UnitExits()
    for pid, (result, code, status), expected in (
        (5, ("core-dump", 3, 11), -11),
        (6, ("signal", 2, 15), -15),
        (7, ("exit-code", 1, 3), 3),
    ):
        exits.record(ended(pid, result, code, status))
        found = exits.of(pid)
        assert found
        assert exit_code_of(found) == expected
