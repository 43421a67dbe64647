"""Stops by the real supervisord, of programs in every state; the monitor is in this process."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path

import psutil
import pytest

from monitor_plugin import Backend, Monitor, ShutdownFailed
from monitor_plugin.hosts.supervisord.adapter import Adapter

from ..support import Spawner, eventually, free_port, is_running
from .supervisord_host import Host, program, sleeper

pytestmark = pytest.mark.slow

DEAF = f"{sys.executable} -S -c 'import signal, time; signal.signal(15, 1); time.sleep(100000)'"
SLEEPING = f"{sys.executable} -S -c 'import time; time.sleep(100000)'"


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """A supervisord without the monitor; each test has a program of its own."""

    def deaf(name: str, seconds: int) -> str:
        address = f'environment=MONITOR_ADDRESS="127.0.0.1:{free_port()}"'
        return program(name, DEAF, address, f"stopwaitsecs={seconds}")

    trapping = f"trap : TERM; {SLEEPING} --addr 127.0.0.1:{free_port()}; :"
    sections = [
        sleeper("crashing", "startsecs=3600", "startretries=1000"),
        sleeper("once", "autorestart=false"),
        sleeper("again"),
        sleeper("removed"),
        sleeper("closing"),
        program("trapping", f"sh -c {shlex.quote(trapping)}", "stopwaitsecs=2"),
        *(deaf("stopping", 6), deaf("patient", 3), deaf("impatient", 12), deaf("left", 12)),
    ]
    folder = tmp_path_factory.mktemp("supervisord")
    host = Host(folder, "\n".join(sections), monitored=False).start()
    host.info("again")  # once it answers
    yield host
    host.close()


class Case:
    """A monitor whose adapter knows the host's backends."""

    def __init__(self, host: Host, make_monitor: Callable[..., Monitor], **settings: float) -> None:
        self.host = host
        self.adapter = Adapter(host.supervisord)
        self.monitor = make_monitor([self.adapter], **settings)

    def backend(self, model: str) -> Backend:
        """Return the newest backend of a model, when it runs and is registered."""

        def run() -> list[Backend]:
            self.adapter.poll_soon()  # again: supervisord may not have started it yet
            found = [each for each in self.monitor.backends() if each.model == model]
            return [each for each in found if is_running(each.pid)]

        return eventually(run)[-1]

    def kill(self, model: str) -> Backend:
        """Kill a backend, and wait until supervisord has noticed."""
        backend = self.backend(model)
        os.kill(backend.pid, signal.SIGKILL)
        eventually(lambda: self.host.info(model)["pid"] != backend.pid)
        return backend

    def deaf(self, model: str) -> Backend:
        """Return a backend that ignores SIGTERM, when it does."""
        backend = self.backend(model)
        status = Path(f"/proc/{backend.pid}/status")

        def ignored() -> int:
            return int(status.read_text().partition("SigIgn:")[2].split()[0], 16)

        eventually(lambda: ignored() & 1 << (signal.SIGTERM - 1))
        return backend

    def stop(self, backend: Backend, seconds: float = 30) -> bool | None:
        return self.adapter.monitor_stop_backend(backend, seconds)


@pytest.fixture
def case(host: Host, make_monitor: Callable[..., Monitor]) -> Case:
    return Case(host, make_monitor)


def test_program_in_backoff_is_stopped(case: Case) -> None:
    """A program between two starts is not started again."""
    case.kill("crashing")

    def in_backoff() -> list[Backend]:  # for a second longer each time
        killed = case.kill("crashing")
        return [killed] if case.host.state("crashing") == "BACKOFF" else []

    (backend,) = eventually(in_backoff, 60)
    assert case.stop(backend) is None
    assert case.host.state("crashing") == "STOPPED"


def test_exited_program_counts_as_stopped(case: Case) -> None:
    """A program that supervisord does not start again is stopped already."""
    backend = case.kill("once")
    assert case.stop(backend) is None
    assert case.host.state("once") == "EXITED"


def test_restarted_program_is_stopped(case: Case) -> None:
    """The program is stopped whichever process it has, because the model is to be stopped."""
    old = case.kill("again")
    new = case.host.pid("again")
    assert case.stop(old) is None
    assert case.host.state("again") == "STOPPED"
    assert not is_running(new)


def test_stop_by_another_client_is_awaited(case: Case) -> None:
    """The monitor waits until a slow stop that another client began has ended."""
    backend = case.deaf("stopping")
    case.host.supervisord.call("stopProcess", "stopping", False)
    assert case.host.state("stopping") == "STOPPING"
    assert case.stop(backend) is None
    assert case.host.state("stopping") == "STOPPED"
    assert not is_running(backend.pid)


def test_slow_program_is_killed_by_supervisord(case: Case) -> None:
    """With a timeout as long as `stopwaitsecs`, the monitor waits until supervisord kills it."""
    backend = case.deaf("patient")
    assert case.stop(backend, 3) is None
    eventually(lambda: case.host.state("patient") == "STOPPED")


def test_process_behind_a_trapping_shell_is_stopped(
    host: Host, make_monitor: Callable[..., Monitor]
) -> None:
    """With a timeout as long as `stopwaitsecs`, the backend is ended too."""
    case = Case(host, make_monitor, stop_timeout_seconds=2)
    shell = case.backend("trapping")
    (backend,) = eventually(lambda: psutil.Process(shell.pid).children())
    case.monitor.shutdown("trapping")
    assert not is_running(backend.pid)
    eventually(lambda: case.host.state("trapping") == "STOPPED")
    assert not is_running(shell.pid)


def test_timeout_shorter_than_stopwaitsecs_is_an_error(case: Case) -> None:
    """The error names both."""
    backend = case.deaf("impatient")
    with pytest.raises(ShutdownFailed) as caught:
        case.stop(backend, 0.5)
    assert "program 'impatient:impatient' has stopwaitsecs=12" in str(caught.value)
    assert "the 0.5 s of stop_timeout_seconds" in str(caught.value)
    os.kill(backend.pid, signal.SIGKILL)
    eventually(lambda: case.host.state("impatient") == "STOPPED")


def test_process_of_no_program_is_left_to_the_monitor(case: Case, spawner: Spawner) -> None:
    """It never belonged to supervisord, or does so no longer."""
    process = spawner.sleeper()
    assert case.stop(Backend("m", process.pid, "127.0.0.1:1", 0)) is None
    assert is_running(process.pid)
    backend = case.backend("removed")
    case.host.control("stop", "removed")
    case.host.control("remove", "removed")
    assert case.stop(backend) is None


def test_closed_monitor_does_not_wait_for_a_stop(case: Case) -> None:
    """supervisord goes on with the stop."""
    backend = case.deaf("left")
    with futures.ThreadPoolExecutor(1) as pool:
        stopping = pool.submit(case.stop, backend)
        eventually(lambda: case.host.state("left") == "STOPPING")
        case.monitor.close()
        error = stopping.exception(30)
    assert "the monitor was closed while supervisord was stopping" in str(error)
    os.kill(backend.pid, signal.SIGKILL)
    eventually(lambda: case.host.state("left") == "STOPPED")


def test_unreachable_supervisord_is_an_error(case: Case) -> None:
    """The error has the URL of the server."""
    backend = case.backend("closing")
    assert case.host.process
    case.host.process.kill()
    case.host.process.wait()
    with pytest.raises(ShutdownFailed, match=f"supervisord at {case.host.url} cannot be asked: "):
        case.stop(backend)
    assert is_running(backend.pid)
