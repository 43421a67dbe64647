"""Shutdowns of models whose backend has ended and left processes behind."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from monitor_plugin import (
    Backend,
    ModelNotLoaded,
    Monitor,
    PidNotHeld,
    ShutdownFailed,
    ShutdownRefused,
    hookimpl,
)
from monitor_plugin.domain.models import LeftBehindProcess
from monitor_plugin.processes.address_probe import accepts_connection
from monitor_plugin.shutdown.stop import Stop, Stopper
from monitor_plugin.testing import RunningBackend, backend_command

from ..support import Client, Spawner, eventually, is_running, register

pytestmark = pytest.mark.once

# The child ignores SIGTERM, and prints a line when it does.
STUBBORN = """
import os, signal, time
if os.fork(): os.wait()
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print(flush=True)
time.sleep(1000)
"""


class Hooks:
    """A plugin that records calls, and refuses shutdowns on request."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.stopped_by_host: list[int] = []
        self.outcomes: list[tuple[int, str]] = []
        self.refusal: str | None = None
        self.may_go_on = threading.Event()
        self.may_go_on.set()

    @hookimpl
    def monitor_before_shutdown(self, backend: Backend) -> str | None:
        self.asked.append(backend.pid)
        self.may_go_on.wait(60)
        return self.refusal

    @hookimpl
    def monitor_stop_backend(self, backend: Backend) -> None:
        self.stopped_by_host.append(backend.pid)

    @hookimpl
    def monitor_shutdown_finished(self, backend: Backend, outcome: str) -> None:
        self.outcomes.append((backend.pid, outcome))


@pytest.fixture
def hooks() -> Hooks:
    return Hooks()


@pytest.fixture
def monitor(make_monitor: Callable[..., Monitor], hooks: Hooks) -> Monitor:
    return make_monitor(plugins=[hooks])


def leave_behind(
    monitor: Monitor, spawner: Spawner, model: str = "m", address: str = "127.0.0.1:1"
) -> tuple[int, int]:
    """Register a shell, kill it while its child runs, and return the PIDs of both."""
    root = spawner.process("sh", "-c", "sleep 300 & echo $!; wait")
    assert root.stdout
    child = int(root.stdout.readline())
    register(monitor, root.pid, model, address)
    kill(monitor, root)
    return root.pid, child


def kill(monitor: Monitor, root: subprocess.Popen[str]) -> None:
    root.kill()
    root.wait()
    eventually(lambda: monitor._services.registry.find(root.pid) is None)


def left_behind(monitor: Monitor, pid: int) -> Sequence[LeftBehindProcess] | None:
    exits = monitor._services.registry.last_exits()
    return next(each.left_behind for each in exits if each.backend.pid == pid)


@pytest.mark.parametrize("by_pid", [False, True], ids=["model", "PID"])
@pytest.mark.parametrize("when", ["at once", "reported"])
def test_processes_left_behind_are_stopped(
    when: str, by_pid: bool, monitor: Monitor, client: Client, hooks: Hooks, spawner: Spawner
) -> None:
    """No host is asked for them, and they are gone from the list when the client has its answer."""
    root, child = leave_behind(monitor, spawner)
    if when == "reported":
        eventually(lambda: left_behind(monitor, root))
    answer = client.shutdown("m", **({"pid": root} if by_pid else {}))
    assert (answer.status, answer.body) == (200, b'{"message":"model stopped"}')
    assert not is_running(child)
    assert left_behind(monitor, root) == ()
    assert hooks.outcomes == [(root, "stopped")]
    assert (hooks.asked, hooks.stopped_by_host) == ([root], [])
    again = client.shutdown("m")
    assert (again.status, json.loads(again.body)["error"]["type"]) == (500, "model_not_loaded")
    assert len(hooks.outcomes) == 1


def test_nothing_is_asked_to_free_the_model_of_an_ended_backend(
    monitor: Monitor, spawner: Spawner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host may have started the model again at its address."""
    asked: list[Backend] = []
    monkeypatch.setattr(monitor._services.status_client, "free", asked.append)
    leave_behind(monitor, spawner)
    monitor.shutdown("m")
    assert asked == []


def test_a_backend_that_ends_as_the_shutdown_begins_leaves_nothing_behind(
    monitor: Monitor, hooks: Hooks, spawner: Spawner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ran when the shutdown listed the backends, and has ended when its members are opened."""
    root = spawner.process("sh", "-c", "sleep 300 & echo $!; wait")
    assert root.stdout
    child = int(root.stdout.readline())
    register(monitor, root.pid)
    open_members = Stopper.open

    def end_and_open(stopper: Stopper, stop: Stop) -> None:
        root.kill()
        root.wait()
        open_members(stopper, stop)

    monkeypatch.setattr(Stopper, "open", end_and_open)
    monitor.shutdown("m")
    assert not is_running(child)
    assert hooks.stopped_by_host == []


def test_a_backend_that_has_left_nothing_behind_is_not_listed_as_stopping(
    monitor: Monitor, hooks: Hooks, spawner: Spawner
) -> None:
    """Also if its members have not been searched for yet when the shutdown begins."""
    monitor._services.left_behind.close()  # so that only the shutdown searches
    ended, current = spawner.sleeper(), spawner.sleeper()
    register(monitor, ended.pid)
    kill(monitor, ended)
    register(monitor, current.pid)
    hooks.may_go_on.clear()
    with ThreadPoolExecutor() as pool:
        shutdown = pool.submit(monitor.shutdown, "m")
        eventually(lambda: hooks.asked)
        stopping = monitor.stopping()
        hooks.may_go_on.set()
        shutdown.result(60)
    assert [each.pid for each in stopping] == [current.pid]
    assert hooks.outcomes == [(current.pid, "stopped")]


def test_processes_that_ignore_sigterm_are_killed(
    make_monitor: Callable[..., Monitor], spawner: Spawner
) -> None:
    """Within the same time as the processes of a registered backend."""
    monitor = make_monitor(stop_timeout_seconds=0.5)
    root = spawner.python(STUBBORN)
    assert root.stdout
    root.stdout.readline()
    register(monitor, root.pid)
    kill(monitor, root)
    eventually(lambda: left_behind(monitor, root.pid))
    monitor.shutdown("m")
    assert left_behind(monitor, root.pid) == ()


def test_loaded_replicas_are_stopped_too(monitor: Monitor, hooks: Hooks, spawner: Spawner) -> None:
    """Those in the usual way; a PID selects one of them, whether it has ended or not."""
    first, first_child = leave_behind(monitor, spawner)
    second, second_child = leave_behind(monitor, spawner)
    loaded, other = spawner.sleeper(), spawner.sleeper()
    register(monitor, loaded.pid)
    register(monitor, other.pid, "other", "127.0.0.1:2")
    monitor.shutdown("m", pid=first)
    assert not is_running(first_child)
    assert is_running(second_child)
    assert is_running(loaded.pid)
    monitor.shutdown("m")
    assert not is_running(second_child)
    assert not is_running(loaded.pid)
    assert is_running(other.pid)
    assert hooks.stopped_by_host == [loaded.pid]
    assert sorted(hooks.outcomes) == sorted((pid, "stopped") for pid in (first, second, loaded.pid))
    with pytest.raises(ModelNotLoaded):
        monitor.shutdown("m", pid=first)


def test_pid_of_an_ended_backend_without_processes_is_not_held(
    monitor: Monitor, spawner: Spawner
) -> None:
    """Only what a backend has left behind can still be stopped by its PID."""
    ended, loaded = spawner.sleeper(), spawner.sleeper()
    register(monitor, ended.pid)
    kill(monitor, ended)
    register(monitor, loaded.pid)
    with pytest.raises(PidNotHeld):
        monitor.shutdown("m", pid=ended.pid)
    assert is_running(loaded.pid)


def test_restart_by_the_host_is_no_failure(
    make_monitor: Callable[..., Monitor], spawner: Spawner
) -> None:
    """The host restarts the model by itself, and that backend is not touched."""
    restarted = spawner.sleeper()

    class Host:
        @hookimpl
        def monitor_before_shutdown(self, backend: Backend) -> None:
            register(own_monitor, restarted.pid)

    own_monitor = make_monitor(plugins=[Host()])
    _, child = leave_behind(own_monitor, spawner)
    own_monitor.shutdown("m")
    assert not is_running(child)
    assert is_running(restarted.pid)
    assert [each.pid for each in own_monitor.backends()] == [restarted.pid]


@pytest.mark.parametrize("is_restarted", [False, True])
def test_server_of_a_killed_launcher_is_stopped(
    is_restarted: bool, monitor: Monitor, client: Client, spawner: Spawner
) -> None:
    """Also if the host has started another one beside it, as gRPC servers share ports."""
    launcher = RunningBackend(
        spawner.process("sh", "-c", '"$@" & wait', "sh", *backend_command(addr="127.0.0.1:0"))
    )
    register(monitor, launcher.pid, address=launcher.address)
    kill(monitor, launcher.process)
    if is_restarted:
        restarted = spawner.backend(addr=launcher.address)
        threading.Thread(target=restarted.process.wait, daemon=True).start()
        register(monitor, restarted.pid, address=launcher.address)
    assert accepts_connection(launcher.address)
    assert client.shutdown("m").status == 200
    assert not accepts_connection(launcher.address)


@pytest.mark.parametrize("says", [True, False])
def test_processes_that_the_host_did_not_stop_are_left_behind(
    says: bool, make_monitor: Callable[..., Monitor], spawner: Spawner
) -> None:
    """The host ends its own process alone; the next shutdown ends the others."""
    root = spawner.process("sh", "-c", "sleep 300 & echo $!; wait")
    assert root.stdout
    child = int(root.stdout.readline())

    class Host:
        @hookimpl
        def monitor_stop_backend(self, backend: Backend) -> bool:
            root.kill()
            root.wait()
            return says

    monitor = make_monitor(plugins=[Host()], stop_timeout_seconds=0.5)
    register(monitor, root.pid)
    with pytest.raises(ShutdownFailed, match=f"still running: PID {child}"):
        monitor.shutdown("m")
    processes = eventually(lambda: left_behind(monitor, root.pid))
    assert [each.pid for each in processes or ()] == [child]
    monitor.shutdown("m")
    assert not is_running(child)
    assert left_behind(monitor, root.pid) == ()


def test_hook_may_refuse(monitor: Monitor, hooks: Hooks, spawner: Spawner) -> None:
    """Then nothing is stopped."""
    root, child = leave_behind(monitor, spawner)
    hooks.refusal = "they are being debugged"
    with pytest.raises(ShutdownRefused, match="debugged"):
        monitor.shutdown("m")
    assert is_running(child)
    assert hooks.outcomes == [(root, "refused")]
    eventually(lambda: left_behind(monitor, root))


def test_simultaneous_shutdowns_are_one(monitor: Monitor, hooks: Hooks, spawner: Spawner) -> None:
    """The second caller waits for the result of the first one."""
    root, child = leave_behind(monitor, spawner)
    hooks.may_go_on.clear()
    under_way = monitor._services.shutdown_coordinator._shutdowns
    with ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(monitor.shutdown, "m") for _ in range(2)]
        eventually(lambda: hooks.asked)
        eventually(lambda: under_way["m"].result._condition._waiters)  # type: ignore[attr-defined]
        hooks.may_go_on.set()
        assert [call.result(60) for call in calls] == [None, None]
    assert not is_running(child)
    assert hooks.asked == [root]
    assert hooks.outcomes == [(root, "stopped")]
