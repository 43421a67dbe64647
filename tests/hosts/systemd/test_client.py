"""The connection to systemd where there is none, and where nothing answers."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from monitor_plugin.hosts.systemd import client as client_module
from monitor_plugin.hosts.systemd.client import SystemdClient, SystemdError

from ...support import descriptors, logged


@pytest.fixture
def systemd() -> Iterator[SystemdClient]:
    client = SystemdClient(user=False)
    yield client
    client.close()


def start(client: SystemdClient, bus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", f"unix:path={bus}")
    client.start(lambda name, properties: None)


def test_missing_bus_is_an_error(
    systemd: SystemdClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemdError, match=r"systemd cannot be reached: .*No such file"):
        start(systemd, tmp_path / "none", monkeypatch)
    with pytest.raises(SystemdError, match="cannot be reached"):
        systemd.manager_call("ListUnits")


# dbus-fast before 5.0 leaves the socket of a bus that does not answer to the garbage collector.
@pytest.mark.once
def test_silent_bus_is_an_error(
    systemd: SystemdClient,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is logged once, though the connection is tried again."""
    monkeypatch.setattr(client_module, "CALL_SECONDS", 0.1)
    monkeypatch.setattr(client_module, "_RECONNECT_SECONDS", 0.01)
    with socket.socket(socket.AF_UNIX) as bus:
        bus.bind(str(tmp_path / "bus"))
        bus.listen(100)
        with pytest.raises(SystemdError, match="systemd cannot be reached"):
            start(systemd, tmp_path / "bus", monkeypatch)
        for _ in range(3):
            bus.accept()[0].close()
    assert len(logged(caplog)) <= 2  # a closed connection is another error


def test_closed_client_refuses_calls_and_leaves_nothing_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = descriptors()
    client = SystemdClient(user=False)
    with pytest.raises(SystemdError):
        start(client, tmp_path / "none", monkeypatch)
    client.close()
    with pytest.raises(SystemdError, match="the monitor does not run"):
        client.manager_call("ListUnits")
    assert not descriptors() - before


def test_user_manager_has_the_bus_of_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DBUS_SESSION_BUS_ADDRESS", raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    client = SystemdClient(user=True)
    with pytest.raises(SystemdError, match="the user's systemd cannot be reached"):
        client.start(lambda name, properties: None)
    client.close()
