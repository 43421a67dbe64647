"""The services of a real systemd, followed by its signals."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from monitor_plugin.domain.known_models import KnownModel
from monitor_plugin.hosts.systemd.client import SERVICE, SystemdClient, unit_name, unit_path
from monitor_plugin.hosts.systemd.units import Unit, UnitTable, describe_unit, known_models

from ...support import eventually
from ...systemd_machine import SystemdMachine

LIMIT = "start-limit-hit: it was started too often; systemctl reset-failed a.service allows a start"


class CountingClient(SystemdClient):
    """Counts the calls to systemd."""

    calls = 0

    async def _call_on(self, *arguments: Any, **options: Any) -> Any:
        self.calls += 1
        return await super()._call_on(*arguments, **options)


@pytest.fixture
def systemd(
    systemd_machine: SystemdMachine, monkeypatch: pytest.MonkeyPatch
) -> Iterator[CountingClient]:
    bus = systemd_machine.path("/run/dbus/system_bus_socket")
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", f"unix:path={bus}")
    client = CountingClient(user=False)
    yield client
    client.close()


@pytest.fixture
def table(systemd: CountingClient) -> UnitTable:
    """The services, where those are models whose names begin with `model`."""
    table = UnitTable(systemd, lambda unit: unit.name.startswith("model"))
    systemd.start(lambda name, properties: table.record_change(name))
    return table


def refreshed(table: UnitTable) -> Callable[[str], Unit | None]:
    """Return a function that reads the services that have changed, and returns one of them."""

    def get(name: str) -> Unit | None:
        table.refresh()
        return table.get(name)

    return get


def start(machine: SystemdMachine, unit: str, *options: str) -> None:
    properties = [f"--property={each}" for each in options]
    machine.run("systemd-run", f"--unit={unit}", "--quiet", *properties, "sleep", "1000")


def test_table_follows_signals_and_is_silent_between_them(
    systemd_machine: SystemdMachine, systemd: CountingClient, table: UnitTable
) -> None:
    """A unit that systemd loads to answer about it, and unloads, starts no circle of questions."""
    systemd_machine.write_unit("model-file.service", "[Service]\nExecStart=sleep 1000\n")
    systemd_machine.reload()
    get = refreshed(table)
    eventually(lambda: get("model-file.service"))
    start(systemd_machine, "model-run.service")
    eventually(lambda: (unit := get("model-run.service")) and unit.state == "active (running)")
    unit = table.get("model-run.service")
    assert unit
    assert str(unit.main_pid) == systemd_machine.show("model-run", "MainPID")
    assert unit.invocation_id == systemd_machine.show("model-run", "InvocationID")
    systemd_machine.run("systemctl", "stop", "model-run")
    eventually(lambda: get("model-run.service") is None)

    def is_silent() -> bool:
        before = systemd.calls
        return all(get("model-file.service") for _ in range(100)) and systemd.calls == before

    eventually(is_silent)
    assert get("model-file.service") == Unit(
        "model-file.service",
        stop_seconds=90.0,
        condition_result=False,
        command=["sleep", "1000"],
        journal_streams=frozenset({"stdout", "stderr"}),
    )


def test_instance_that_ran_stays_known(systemd_machine: SystemdMachine, table: UnitTable) -> None:
    """It has no file of its own, and systemd unloads it when it has ended."""
    systemd_machine.write_unit("model@.service", "[Service]\nExecStart=sleep 1000\n")
    systemd_machine.reload()
    get = refreshed(table)
    systemd_machine.run("systemctl", "start", "model@7")
    eventually(lambda: (unit := get("model@7.service")) and unit.main_pid)
    systemd_machine.run("systemctl", "stop", "model@7")
    for _ in range(2):
        eventually(lambda: (unit := get("model@7.service")) and unit.state == "inactive (dead)")
        systemd_machine.reload()


def test_unit_that_cannot_be_loaded_says_why(
    systemd_machine: SystemdMachine, table: UnitTable
) -> None:
    systemd_machine.write_unit("model-bad.service", "[Service]\nType=simple\n")
    systemd_machine.reload()
    get = refreshed(table)
    unit = eventually(lambda: get("model-bad.service"))
    assert unit
    (model,) = known_models([("m", unit)])
    assert (model.state, model.detail) == ("failed", unit.load_error)
    assert "model-bad.service" in unit.load_error


def test_figures_are_those_of_systemd(
    systemd_machine: SystemdMachine, systemd: CountingClient, table: UnitTable
) -> None:
    """What is not set, or has no limit, is None."""
    start(systemd_machine, "model-limits.service", "MemoryMax=64M", "CPUQuota=150%")
    unit = describe_unit(
        "model-limits.service", systemd.properties("model-limits.service", SERVICE)
    )
    assert (unit.manager, unit.name) == ("systemd", "model-limits.service")
    assert (unit.memory_max, unit.cpu_quota, unit.tasks) == (64 << 20, 1.5, 1)
    assert unit.restarts == 0
    assert unit.memory_current is None or 0 < unit.memory_current < 64 << 20
    systemd_machine.run("systemctl", "stop", "model-limits")
    unit = describe_unit("no.service", systemd.properties("no.service", SERVICE))
    assert (unit.memory_current, unit.memory_max, unit.memory_peak) == (None, None, None)
    assert (unit.tasks, unit.cpu_quota) == (None, None)


@pytest.mark.parametrize(
    ("active", "sub", "state"),
    [
        ("active", "running", "running"),
        ("active", "exited", "exited"),
        ("reloading", "reload", "running"),
        ("activating", "start-pre", "starting"),
        ("activating", "auto-restart", "waiting"),
        ("activating", "auto-restart-queued", "waiting"),
        ("deactivating", "stop-sigterm", "stopped"),
        ("inactive", "dead", "stopped"),
        ("failed", "failed", "failed"),
    ],
)
def test_states_of_units_are_those_of_models(active: str, sub: str, state: str) -> None:
    unit = Unit("a.service", active_state=active, sub_state=sub)
    detail = "systemd is stopping it" if active == "deactivating" else None
    assert known_models([("m", unit)]) == [KnownModel("m", state, detail, can_start=True)]


@pytest.mark.parametrize(
    ("code", "status", "said"),
    [
        (1, 3, "exit-code: its process exited with code 3"),
        (2, 9, "oom-kill: its process was killed by SIGKILL"),
        (3, 11, "core-dump: its process was killed by SIGSEGV"),
        (1, 0, LIMIT),
        (0, 0, "resources"),
    ],
)
def test_failed_unit_has_the_result_of_systemd(code: int, status: int, said: str) -> None:
    result = said.partition(":")[0]
    unit = Unit(
        "a.service", "loaded", "", "failed", "failed", result, exit_code=code, exit_status=status
    )
    assert known_models([("m", unit)]) == [KnownModel("m", "failed", said, can_start=True)]


def test_signals_of_others_than_systemd_are_ignored(
    systemd_machine: SystemdMachine, systemd: CountingClient, table: UnitTable
) -> None:
    """Any user may send a signal to a connection whose name is known, and any names are."""
    job = "/org/freedesktop/systemd1/job/1"
    manager = ("/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager", "JobRemoved")
    assert systemd._bus
    to = f"--destination={systemd._bus.unique_name}"
    systemd_machine.run(
        *("busctl", "emit", to, *manager, "uoss", "1", job, "a.service", "done"),
    )
    start(systemd_machine, "model-later.service")  # its signals come after the forged one
    get = refreshed(table)
    eventually(lambda: get("model-later.service"))
    assert systemd.wait_for_job(job, 0.0) is None


@pytest.mark.parametrize("name", ["a.service", "7b@1.service", "a_b-c@x\\x2dy:z.service"])
def test_path_of_a_unit_has_its_name(name: str, systemd: CountingClient, table: UnitTable) -> None:
    """systemd itself says what the path is."""
    assert systemd.manager_call("LoadUnit", "s", name) == unit_path(name)
    assert unit_name(unit_path(name)) == name
