"""The units in which hosts run backends: in lists, in metrics, and while hooks are slow."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from monitor_plugin import Backend, HostUnit, Monitor, hookimpl
from monitor_plugin.readings import unit_reader

from ..support import Client, Spawner, register

UNIT = HostUnit(
    manager="systemd",
    name="llama@1.service",
    memory_current=5 * 2**20,
    memory_max=2**30,
    tasks=3,
    cpu_quota=1.5,
    restarts=2,
)


class Describing:
    """A host that describes the units of its backends by their models."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    @hookimpl
    def monitor_describe_unit(self, backend: Backend) -> HostUnit | None:
        self.calls.append(backend.model)
        return UNIT if backend.model == "llama" else None


def test_unit_is_in_lists_and_metrics_and_read_once_a_second(
    make_monitor: Callable[..., Monitor], spawner: Spawner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unit_reader, "_MAX_AGE_SECONDS", 600.0)
    host = Describing()
    monitor = make_monitor(plugins=[host])
    for number, model in enumerate(("llama", "other"), 1):
        register(monitor, spawner.sleeper().pid, model, f"unix:/{number}")
    client = Client(monitor.url)
    for _ in range(2):
        items = client.request("GET", "/backends").json["backends"]
        units = {each["model"]: each["unit"] for each in items}
        assert units["other"] is None
        assert units["llama"] == {
            "manager": "systemd",
            "name": "llama@1.service",
            "memory_current": 5 * 2**20,
            "memory_max": 2**30,
            "memory_peak": None,
            "tasks": 3,
            "cpu_quota": 1.5,
            "restarts": 2,
        }
    metrics = client.request("GET", "/metrics").body.decode()
    labels = 'manager="systemd",model="llama",replica="unix:/1",unit="llama@1.service"'
    lines = [each for each in metrics.splitlines() if each.startswith("monitor_unit_")]
    assert f"monitor_unit_restarts_total{{{labels}}} 2.0" in lines
    assert not any("memory_peak" in each for each in lines)
    assert sorted(host.calls) == ["llama", "other"]


def test_units_of_many_backends_take_one_time_limit(
    make_monitor: Callable[..., Monitor], spawner: Spawner
) -> None:
    """A hook that hangs keeps no list from being answered; calls are made at the same time."""
    released = threading.Event()
    calls: list[int] = []

    class Hanging:
        @hookimpl
        def monitor_describe_unit(self, backend: Backend) -> HostUnit:
            calls.append(backend.pid)
            released.wait(120)
            return UNIT

    monitor = make_monitor(plugins=[Hanging()], hook_timeout_seconds=0.5)
    for number in range(40):
        register(monitor, spawner.sleeper().pid, "m", f"unix:/{number}")
    reader = monitor._services.unit_reader
    assert reader.read(monitor.backends()) == {}
    assert 1 <= len(calls) <= unit_reader._MAX_CONCURRENT_CALLS
    released.set()


def test_hook_of_units_is_not_looked_for_without_a_host(
    monitor: Monitor, spawner: Spawner, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(monitor, spawner.sleeper().pid)
    services = monitor._services
    monkeypatch.setattr(services.unit_reader, "_request", None)
    assert services.unit_reader.read(monitor.backends()) == {}
