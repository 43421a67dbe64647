"""What the monitor tells systemd, received by a socket of the test."""

from __future__ import annotations

import os
import socket
import socketserver
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from monitor_plugin import Monitor, Settings
from monitor_plugin.domain.errors import MonitorError
from monitor_plugin.hosts.systemd.notify import ServiceNotifier

from ...support import eventually, foreign_server, logged, sends

pytestmark = pytest.mark.once

SETTINGS = Settings(sweep_interval_seconds=0.05, listen="127.0.0.1:0")


class Systemd:
    """The socket at which systemd is notified."""

    def __init__(self, receiver: socket.socket, address: str) -> None:
        self._receiver = receiver
        self.environment = {"NOTIFY_SOCKET": address}

    def with_watchdog(self, seconds: float = 0.2) -> dict[str, str]:
        microseconds = str(int(seconds * 1_000_000))
        return {**self.environment, "WATCHDOG_USEC": microseconds, "WATCHDOG_PID": str(os.getpid())}

    def receive(self, *, but: str = "", seconds: float = 60.0) -> str | None:
        """Receive the next notification that is another one; None if there is none in time."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self._receiver.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                received = self._receiver.recv(4096).decode()
            except TimeoutError:
                return None
            if received != but:
                return received
        return None


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[Systemd]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(tmp_path / "notify"))
        yield Systemd(receiver, str(tmp_path / "notify"))


class FakeMonitor:
    """A monitor of which only the HTTP server exists, or does not."""

    def __init__(self, url: str | None) -> None:
        self._url = url

    @property
    def url(self) -> str:
        if self._url is None:
            raise MonitorError("there is no HTTP server")
        return self._url


def start(systemd: Systemd, url: str | None) -> ServiceNotifier:
    """Start a notifier with a watchdog."""
    notifier = ServiceNotifier(systemd.with_watchdog(), SETTINGS)
    monitor: Any = FakeMonitor(url)
    notifier.monitor_started(monitor)
    assert systemd.receive() == "READY=1"
    return notifier


def test_systemd_is_notified_of_start_progress_reload_and_end(systemd: Systemd) -> None:
    notifier = ServiceNotifier(systemd.with_watchdog(), SETTINGS)
    with Monitor(SETTINGS, [notifier]):
        assert systemd.receive() == "READY=1"
        assert [systemd.receive() for _ in range(3)] == 3 * ["WATCHDOG=1"]
        before = time.monotonic_ns() // 1000
        notifier.reload(lambda: None)
        reloading = systemd.receive(but="WATCHDOG=1")
        assert reloading
        first, _, second = reloading.partition("\n")
        assert first == "RELOADING=1"
        assert before <= int(second.removeprefix("MONOTONIC_USEC=")) <= time.monotonic_ns() // 1000
        assert systemd.receive(but="WATCHDOG=1") == "READY=1"
    assert systemd.receive(but="WATCHDOG=1") == "STOPPING=1"


def test_reload_that_fails_leaves_the_monitor_ready(systemd: Systemd) -> None:
    def fail() -> None:
        raise MonitorError("no such file")

    with pytest.raises(MonitorError):
        ServiceNotifier(systemd.environment, SETTINGS).reload(fail)
    reloading = systemd.receive()
    assert reloading
    assert reloading.startswith("RELOADING=1")
    assert systemd.receive() == "READY=1"


def test_abstract_socket_is_notified() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(b"")
        address = f"@{receiver.getsockname()[1:].decode()}"
        ServiceNotifier({"NOTIFY_SOCKET": address}, SETTINGS).monitor_closing()
        assert receiver.recv(4096) == b"STOPPING=1"


class Silent(socketserver.BaseRequestHandler):
    """Reads what a client sends, and never answers."""

    def handle(self) -> None:
        while self.request.recv(4096):
            pass


def test_server_that_does_not_answer_ends_the_signs_of_life(
    systemd: Systemd, caplog: pytest.LogCaptureFixture
) -> None:
    with foreign_server(Silent) as server:
        notifier = start(systemd, f"http://{server.address}")
        assert systemd.receive(seconds=0.5) is None
        notifier.monitor_closing()
    assert "the HTTP server does not answer: timed out" in logged(caplog)


def test_any_answer_of_the_server_is_a_sign_of_life(systemd: Systemd) -> None:
    """A server that has too much to do answers 503."""
    answer = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"
    with foreign_server(sends(answer)) as server:
        notifier = start(systemd, f"http://{server.address}")
        assert systemd.receive() == "WATCHDOG=1"
        notifier.monitor_closing()


def set_max_sweep_age(patch: pytest.MonkeyPatch, seconds: float) -> None:
    """Let sweeps count as stuck after less than a minute."""
    others = SETTINGS.sweep_interval_seconds + SETTINGS.status_timeout_seconds
    seconds -= others + SETTINGS.hook_timeout_seconds
    patch.setattr("monitor_plugin.hosts.systemd.notify._SWEEP_SECONDS", seconds)


def test_sweeps_that_do_not_end_end_the_signs_of_life(
    systemd: Systemd, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """They begin again with the next sweep."""
    set_max_sweep_age(monkeypatch, 0.3)
    notifier = start(systemd, None)
    while systemd.receive(seconds=0.5):
        pass
    assert any(line.startswith("the last sweep ended") for line in logged(caplog))

    def receive_after_sweep() -> str | None:
        notifier.monitor_readings_swept()
        return systemd.receive(seconds=0.1)

    assert eventually(receive_after_sweep) == "WATCHDOG=1"
    notifier.monitor_closing()


def test_monitor_without_sweeps_has_a_watchdog(
    systemd: Systemd, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_max_sweep_age(monkeypatch, -1.0)
    settings = Settings(sweep_interval_seconds=0.0)
    notifier = ServiceNotifier(systemd.with_watchdog(), settings)
    monitor: Any = FakeMonitor(None)
    notifier.monitor_started(monitor)
    assert systemd.receive(but="READY=1") == "WATCHDOG=1"
    notifier.monitor_closing()


@pytest.mark.parametrize(
    "environment",
    [{}, {"WATCHDOG_USEC": "1000"}, {"NOTIFY_SOCKET": "", "WATCHDOG_USEC": "1000"}],
)
def test_monitor_that_systemd_does_not_watch_notifies_nobody(environment: dict[str, str]) -> None:
    with Monitor(SETTINGS, [ServiceNotifier(environment, SETTINGS)]):
        pass


def test_watchdog_of_another_process_is_ignored(systemd: Systemd) -> None:
    """The variables are inherited by every child."""
    environment = {**systemd.with_watchdog(0.01), "WATCHDOG_PID": "1"}
    notifier = ServiceNotifier(environment, SETTINGS)
    monitor: Any = FakeMonitor(None)
    notifier.monitor_started(monitor)
    assert systemd.receive() == "READY=1"
    assert systemd.receive(seconds=0.2) is None


def test_systemd_that_cannot_be_notified_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    ServiceNotifier({"NOTIFY_SOCKET": "/no/such/socket"}, SETTINGS).monitor_closing()
    (line,) = logged(caplog)
    assert line.startswith("systemd cannot be notified at /no/such/socket: ")
