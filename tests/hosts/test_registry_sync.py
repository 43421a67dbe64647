"""Registration of the backends that a host runs."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable

import pytest

from monitor_plugin import Backend, Monitor, ShutdownRefused, hookimpl
from monitor_plugin.domain.address import FORMS
from monitor_plugin.hosts.discovery import DiscoveredBackend
from monitor_plugin.hosts.registry_sync import RegistrySync

from ..support import Spawner, eventually, logged


def registered(monitor: Monitor) -> list[tuple[str, int, str]]:
    return [(each.model, each.pid, each.address) for each in monitor.backends()]


def test_new_and_changed_backends_are_registered(
    make_monitor: Callable[..., Monitor], spawner: Spawner
) -> None:
    """A backend is registered once, and again if its model or address has changed."""
    told: list[Backend] = []

    class Plugin:
        @hookimpl
        def monitor_backend_registered(self, backend: Backend) -> None:
            told.append(backend)

    monitor = make_monitor([Plugin()])
    first, second = spawner.sleeper().pid, spawner.sleeper().pid
    registry_sync = RegistrySync(monitor)
    registry_sync.sync([DiscoveredBackend("g:a", "m", first, "127.0.0.1:1")])
    registry_sync.sync(
        [
            DiscoveredBackend("g:a", "m", first, "127.0.0.1:1"),
            DiscoveredBackend("g:b", "m", second, "127.0.0.1:2"),
        ]
    )
    assert registered(monitor) == [("m", first, "127.0.0.1:1"), ("m", second, "127.0.0.1:2")]
    assert len(told) == 2
    registry_sync.sync([DiscoveredBackend("g:a", "n", first, "127.0.0.1:3")])
    assert set(registered(monitor)) == {("n", first, "127.0.0.1:3"), ("m", second, "127.0.0.1:2")}


def test_restarted_program_replaces_its_old_process(monitor: Monitor, spawner: Spawner) -> None:
    """The program of the old process is still known."""
    old, new = spawner.sleeper(), spawner.sleeper()
    registry_sync = RegistrySync(monitor)
    registry_sync.sync([DiscoveredBackend("g:a", "m", old.pid, "127.0.0.1:1")])
    old.kill()
    old.wait()
    registry_sync.sync([DiscoveredBackend("g:a", "m", new.pid, "127.0.0.1:1")])
    eventually(lambda: registered(monitor) == [("m", new.pid, "127.0.0.1:1")])
    assert registry_sync.program_of(old.pid) == registry_sync.program_of(new.pid) == "g:a"
    assert registry_sync.program_of(1) is None


def test_refused_registration_is_logged_once_and_repeated(
    monitor: Monitor, spawner: Spawner, caplog: pytest.LogCaptureFixture
) -> None:
    """The log line names the program. The registration of other backends goes on."""
    one, two = spawner.sleeper(), spawner.sleeper()
    registry_sync = RegistrySync(monitor)
    found = [
        DiscoveredBackend("g:a", "m", one.pid, "nonsense"),
        DiscoveredBackend("g:b", "m", two.pid, "127.0.0.1:1"),
    ]
    with caplog.at_level(logging.WARNING):
        registry_sync.sync(found)
        registry_sync.sync(found)
    assert logged(caplog) == [
        "program 'g:a': the backend was not registered: address 'nonsense' is no gRPC target or "
        + f"URL; use {FORMS}"
    ]
    assert registered(monitor) == [("m", two.pid, "127.0.0.1:1")]
    taken = [DiscoveredBackend("g:c", "m", one.pid, "127.0.0.1:1")]
    registry_sync.sync(taken)
    assert "is held by process" in caplog.text
    two.kill()
    two.wait()
    registry_sync.sync(taken)
    eventually(lambda: registered(monitor) == [("m", one.pid, "127.0.0.1:1")])


def test_program_is_known_before_its_backend_is_registered(
    make_monitor: Callable[..., Monitor], spawner: Spawner
) -> None:
    """A hook can stop a backend as soon as it is registered, while others are not yet."""
    names: list[str | None] = []

    class Plugin:
        @hookimpl
        def monitor_backend_registered(self, backend: Backend) -> None:
            names.append(registry_sync.program_of(backend.pid))

    registry_sync = RegistrySync(make_monitor([Plugin()]))
    pids = [spawner.sleeper().pid for _ in range(2)]
    registry_sync.sync([DiscoveredBackend(f"g:{pid}", "m", pid, f"unix:/{pid}") for pid in pids])
    assert names == [f"g:{pid}" for pid in pids]


def found_backend(pid: int, *others: int, listener: int | None = None) -> DiscoveredBackend:
    """Return a backend of the program `g:a`, with other members besides its own process."""
    return DiscoveredBackend("g:a", "m", pid, "127.0.0.1:1", [pid, *others], listener)


def test_member_that_listens_is_registered(monitor: Monitor, spawner: Spawner) -> None:
    """Until it does, and after it has ended, the program's own process is registered."""
    launcher = spawner.process("sh", "-c", "sleep 1000 & echo $!; wait; exec sleep 1000")
    assert launcher.stdout
    own, server = launcher.pid, int(launcher.stdout.readline())
    registry_sync = RegistrySync(monitor)
    assert registry_sync.own_process_of(own) == own
    registry_sync.sync([found_backend(own, server)])
    assert registered(monitor) == [("m", own, "127.0.0.1:1")]
    for _ in range(2):
        registry_sync.sync([found_backend(own, server, listener=server)])
        assert registered(monitor) == [("m", server, "127.0.0.1:1")]
    registry_sync.sync([found_backend(own, server)])  # it has closed its socket, and still runs
    assert registered(monitor) == [("m", server, "127.0.0.1:1")]
    assert registry_sync.program_of(server) == "g:a"
    assert registry_sync.own_process_of(server) == own
    changed = found_backend(own, server, listener=server)._replace(address="127.0.0.1:2")
    registry_sync.sync([changed])
    assert registered(monitor) == [("m", server, "127.0.0.1:2")]
    os.kill(server, signal.SIGKILL)
    eventually(lambda: registered(monitor) == [])
    registry_sync.sync([found_backend(own)])
    assert registered(monitor) == [("m", own, "127.0.0.1:1")]
    assert registry_sync.program_of(server) == "g:a"


def test_adopted_process_belongs_to_the_program_of_the_process_before(
    monitor: Monitor, spawner: Spawner
) -> None:
    """The program is known at once, and also after the program's own process has ended."""
    launcher = spawner.process("sh", "-c", "sleep 1000 & echo $!; wait")
    assert launcher.stdout
    own, child = launcher.pid, int(launcher.stdout.readline())
    server = spawner.sleeper().pid
    registry_sync = RegistrySync(monitor)
    registry_sync.sync([found_backend(own, child)])
    assert not registry_sync.is_adopted(own)
    monitor.adopt_process(monitor.backends()[0], server)
    for found in ([found_backend(own, child)], [found_backend(own, child, listener=child)], []):
        assert registry_sync.is_adopted(server)
        assert registry_sync.program_of(server) == registry_sync.program_of(own) == "g:a"
        assert registry_sync.own_process_of(server) == own
        registry_sync.sync(found)
        assert registered(monitor) == [("m", server, "127.0.0.1:1")]
    changed = found_backend(own, child)._replace(address="127.0.0.1:2")
    registry_sync.sync([changed])
    assert registered(monitor) == [("m", server, "127.0.0.1:2")]
    os.kill(server, signal.SIGKILL)
    eventually(lambda: registered(monitor) == [])
    assert registry_sync.program_of(server) == "g:a"


def test_members_of_a_program_stay_members_if_it_is_found_while_it_serves(
    monitor: Monitor, spawner: Spawner
) -> None:
    """The program's own process is registered first, so that its other children are members."""
    launcher = spawner.process("sh", "-c", "sleep 1000 & sleep 999 & echo $!; wait")
    assert launcher.stdout
    server = int(launcher.stdout.readline())
    RegistrySync(monitor).sync([found_backend(launcher.pid, server, listener=server)])
    assert registered(monitor) == [("m", server, "127.0.0.1:1")]
    (record,) = monitor._services.registry.records()
    assert len(record.members.identities()) == 3


def test_process_is_not_registered_again_during_a_shutdown(
    make_monitor: Callable[..., Monitor], spawner: Spawner, caplog: pytest.LogCaptureFixture
) -> None:
    """Only a new process is: the host has started the model again."""
    launcher = spawner.process("sh", "-c", "sleep 1000 & echo $!; wait")
    assert launcher.stdout
    own, server = launcher.pid, int(launcher.stdout.readline())
    again = spawner.sleeper().pid
    found = [found_backend(own, server, listener=server)]

    class Plugin:
        @hookimpl
        def monitor_before_shutdown(self) -> str:
            registry_sync.sync(found)
            registry_sync.sync([*found, DiscoveredBackend("g:b", "m", again, "127.0.0.1:3")])
            return "not now"

    monitor = make_monitor([Plugin()])
    registry_sync = RegistrySync(monitor)
    registry_sync.sync([found_backend(own, server)])
    with pytest.raises(ShutdownRefused):
        monitor.shutdown("m")
    assert [pid for _, pid, _ in registered(monitor)] == [own, again]
    registry_sync.sync(found)
    assert {pid for _, pid, _ in registered(monitor)} == {server, again}
    assert logged(caplog) == []
