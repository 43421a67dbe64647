"""llama.cpp's server under systemd and under supervisord, started and stopped from the page."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import pytest

from ..integration import supervisord_host, test_systemd
from ..integration.browser import Tabs, chromium
from ..integration.test_page import NOTE_STATES, badge, confirm, end_of, model_row, row, shows
from ..support import Client, eventually, is_running
from .servers import LlamaCpp

if TYPE_CHECKING:
    from playwright.sync_api import Page

# The page learns of a new state in about a second. A stop may wait for the reading in flight.
FLAGS = ("--sweep-interval-seconds", "0.2", "--stop-timeout-seconds", "60")


class SlowToLoad(LlamaCpp):
    """llama.cpp's server with a cache of 3 GB, which it fills with zeros while it loads.

    Its model alone is loaded in a quarter of a second, which a page may not see.
    """

    def command(self) -> list[str]:
        return [*super().command(), "--ctx-size", "131072"]


class Host(Protocol):
    """A process manager that has the server, which it does not start by itself, and a monitor.

    Attributes:
        client: asks the monitor.
    """

    client: Client

    def is_stopped(self) -> bool:
        """Whether the manager's own command says that the server is stopped."""

    def running(self) -> tuple[int, int] | None:
        """Return what the manager's own command says of a running server.

        Returns:
            The PID that the manager gives, and the PID as seen from outside; None if the manager
            does not say that the server runs.
        """

    def close(self) -> None:
        """End the manager and all its processes."""


class Systemd(test_systemd.Host):
    """A systemd, in whose service the server is started again whenever it ends."""

    def __init__(self, server: LlamaCpp) -> None:
        super().__init__()
        variables = test_systemd.declares("tiny", server.address)
        self._unit = test_systemd.service(" ".join(server.command()), variables)

    def start(self) -> Systemd:
        super().start()
        self.write_unit("llama.service", self._unit)
        self.run_monitor(*FLAGS)
        return self

    def is_stopped(self) -> bool:
        return self.state("llama") == "inactive dead" and self.show("llama", "MainPID") == "0"

    def running(self) -> tuple[int, int] | None:
        pid = int(self.show("llama", "MainPID"))
        if self.state("llama") != "active running" or not pid:
            return None
        return pid, self.outer_pid(pid)

    def close(self) -> None:
        if self.init:  # pytest shows it if a test fails
            print(self.run("journalctl", "--no-pager", "--unit=llama", "--unit=monitor"))
        super().close()


class Supervisord(supervisord_host.Host):
    """A supervisord, by whose program the server is started again whenever it ends.

    A rule names the model, as supervisord does not tell the environment of a program that has not
    run yet.
    """

    def __init__(self, folder: Path, server: LlamaCpp) -> None:
        variables = f'environment=MONITOR_ADDRESS="{server.address}"'
        log = f"stderr_logfile={server.log}"
        command = " ".join(server.command())
        section = supervisord_host.program("llama", command, variables, log, "autostart=false")
        super().__init__(folder / "host", section, flags=" ".join((*FLAGS, "--backend llama=tiny")))

    def is_stopped(self) -> bool:
        return self._status()[1] == "STOPPED"

    def running(self) -> tuple[int, int] | None:
        """Parse such a line: `llama    RUNNING   pid 17, uptime 0:00:03`."""
        _, state, *more = self._status()
        if state != "RUNNING":
            return None
        pid = int(more[1].rstrip(","))
        return pid, pid

    def _status(self) -> list[str]:
        return self.control("status", "llama").split()


@pytest.fixture
def server(tmp_path: Path) -> LlamaCpp:
    return SlowToLoad(tmp_path)


@pytest.fixture(params=["systemd", "supervisord"])
def host(request: pytest.FixtureRequest, tmp_path: Path, server: LlamaCpp) -> Iterator[Host]:
    host: Systemd | Supervisord
    host = Systemd(server) if request.param == "systemd" else Supervisord(tmp_path, server)
    try:
        host.start()
        yield host
    finally:
        host.close()


@pytest.fixture
def page(host: Host) -> Iterator[Page]:
    """The page of the host's monitor, which notes each word of the server's state."""
    eventually(lambda: answers(host.client))
    with chromium() as browser:
        tabs = Tabs(browser)
        page = tabs.open(host.client.url).page
        page.set_default_timeout(120_000)  # ms; a busy machine needs more for a start
        page.evaluate(NOTE_STATES)
        yield page
        tabs.close()


def answers(client: Client) -> bool:
    try:
        return client.request("GET", "/backends").status == 200
    except OSError:
        return False


def start(page: Page, host: Host) -> int:
    """Start the server from the page, and see it load; return its PID as seen from outside."""
    model_row(page, "tiny").locator(".badge", has_text="stopped").wait_for()
    assert host.is_stopped()
    page.evaluate("window.seen = []")
    page.get_by_role("button", name="Start tiny", exact=True).click()
    badge(page, "tiny")("uninitialized")
    loading = host.running()
    badge(page, "tiny")("ready")
    seen = page.evaluate("window.seen")
    assert seen in (["uninitialized", "ready"], ["starting", "uninitialized", "ready"])
    assert loading
    assert loading == host.running()
    pid, outer_pid = loading
    page.get_by_role("button", name=f"Stop tiny, PID {pid}", exact=True).wait_for()
    model_row(page, "tiny").wait_for(state="detached")
    return outer_pid


def stop(page: Page, host: Host, pid: int) -> None:
    """Stop the server from the page, and see that it stays stopped."""
    confirm(page, "tiny")
    badge(page, "tiny")("gone")
    assert host.is_stopped()
    assert not is_running(pid)
    assert "shutdown" in end_of(page, "tiny")
    row(page, "tiny").wait_for(state="detached")


def test_server_is_started_used_and_stopped_from_the_page(
    host: Host, server: LlamaCpp, page: Page
) -> None:
    """It loads, is ready, busy with a request, ready, and stopped; then it is started again."""
    first = start(page, host)
    running = host.running()
    with server.busy():
        badge(page, "tiny")("busy")
        shows(page, "tiny", "1 running, 0 waiting", "tokens/s")
        assert host.running() == running
    badge(page, "tiny")("ready")
    shows(page, "tiny", "0 running, 0 waiting")
    assert host.running() == running
    stop(page, host, first)
    second = start(page, host)
    assert second != first
    assert server.status_of("/health") == 200
    with server.busy():
        badge(page, "tiny")("busy")
        shows(page, "tiny", "1 running, 0 waiting")
    badge(page, "tiny")("ready")
