"""The registry is kept in line with what a host says runs."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest

from monitor_plugin import Backend, Monitor, hookimpl
from monitor_plugin.hosts.discovery import Found
from monitor_plugin.hosts.registry_sync import RegistrySync

from ..support import Spawner, eventually, logged


def registered(monitor: Monitor) -> list[tuple[str, int, str]]:
    return [(each.model, each.pid, each.address) for each in monitor.backends()]


def test_what_is_new_or_changed_is_registered(
    make_monitor: Callable[..., Monitor], spawner: Spawner
) -> None:
    """Each backend is registered once, and again where its model or address has changed."""
    told: list[Backend] = []

    class Plugin:
        @hookimpl
        def monitor_backend_registered(self, backend: Backend) -> None:
            told.append(backend)

    monitor = make_monitor([Plugin()])
    first, second = spawner.sleeper().pid, spawner.sleeper().pid
    roster = RegistrySync(monitor)
    roster.sync([Found("g:a", "m", first, "127.0.0.1:1")])
    roster.sync([Found("g:a", "m", first, "127.0.0.1:1"), Found("g:b", "m", second, "127.0.0.1:2")])
    assert registered(monitor) == [("m", first, "127.0.0.1:1"), ("m", second, "127.0.0.1:2")]
    assert len(told) == 2
    roster.sync([Found("g:a", "n", first, "127.0.0.1:3")])
    assert set(registered(monitor)) == {("n", first, "127.0.0.1:3"), ("m", second, "127.0.0.1:2")}


def test_a_program_that_was_started_again(monitor: Monitor, spawner: Spawner) -> None:
    """Its new process takes the place of the old one, whose program is still known."""
    old, new = spawner.sleeper(), spawner.sleeper()
    roster = RegistrySync(monitor)
    roster.sync([Found("g:a", "m", old.pid, "127.0.0.1:1")])
    old.kill()
    old.wait()
    roster.sync([Found("g:a", "m", new.pid, "127.0.0.1:1")])
    eventually(lambda: registered(monitor) == [("m", new.pid, "127.0.0.1:1")])
    assert roster.name_of(old.pid) == roster.name_of(new.pid) == "g:a"
    assert roster.name_of(1) is None


def test_what_is_refused_is_said_once_and_tried_again(
    monitor: Monitor, spawner: Spawner, caplog: pytest.LogCaptureFixture
) -> None:
    """A refusal is logged when it is new, with the program's name, and does not hinder others."""
    one, two = spawner.sleeper(), spawner.sleeper()
    roster = RegistrySync(monitor)
    found = [Found("g:a", "m", one.pid, "nonsense"), Found("g:b", "m", two.pid, "127.0.0.1:1")]
    with caplog.at_level(logging.WARNING):
        roster.sync(found)
        roster.sync(found)
    assert logged(caplog) == [
        "program 'g:a': the backend was not registered: address 'nonsense' is no gRPC target; use "
        + "host:port, [::1]:port, unix:/path, unix-abstract:name, dns:///host:port, or "
        + "grpcs://host:port for TLS"
    ]
    assert registered(monitor) == [("m", two.pid, "127.0.0.1:1")]
    taken = [Found("g:c", "m", one.pid, "127.0.0.1:1")]
    roster.sync(taken)
    assert "is held by process" in caplog.text
    two.kill()
    two.wait()
    roster.sync(taken)
    eventually(lambda: registered(monitor) == [("m", one.pid, "127.0.0.1:1")])


def test_a_program_is_known_once_its_backend_is(
    make_monitor: Callable[..., Monitor], spawner: Spawner
) -> None:
    """Who stops a backend that was registered just now, and others are yet to be, finds it."""
    names: list[str | None] = []

    class Plugin:
        @hookimpl
        def monitor_backend_registered(self, backend: Backend) -> None:
            names.append(roster.name_of(backend.pid))

    roster = RegistrySync(make_monitor([Plugin()]))
    pids = [spawner.sleeper().pid for _ in range(2)]
    roster.sync([Found(f"g:{pid}", "m", pid, f"unix:/{pid}") for pid in pids])
    assert names == [f"g:{pid}" for pid in pids]
