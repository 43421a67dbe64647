"""Processes that run on after their backend has ended: found, reported once, and forgotten."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest

from monitor_plugin import Backend, BackendExit, Monitor, hookimpl
from monitor_plugin.backends import registration
from monitor_plugin.backends.registry import MAX_EXITS

from ..support import Client, Spawner, eventually, is_running, register

# Starts a process in the same session, in another session, or in its own process group only, and
# prints the PID; `orphan` starts it through a middle process that ends first.
LAUNCHER = """
import os, subprocess, sys, time
kind = sys.argv[1]
code = "import os, time; print(os.getpid(), flush=True); time.sleep(1000)"
if kind == "orphan":
    code = f"import os\\nif os.fork(): os._exit(0)\\n{code}"
worker = subprocess.Popen([sys.executable, "-c", code], start_new_session=kind == "session")
if kind == "orphan":
    worker.wait()
time.sleep(1000)
"""


class Listener:
    """A plugin that records exits and what they leave behind."""

    def __init__(self) -> None:
        self.events: list[tuple[str, int, Sequence[int]]] = []

    @hookimpl
    def monitor_backend_gone(self, backend: Backend, exit: BackendExit) -> None:
        self.events.append(("gone", backend.pid, ()))

    @hookimpl
    def monitor_backend_left_behind(self, backend: Backend, pids: Sequence[int]) -> None:
        self.events.append(("left_behind", backend.pid, pids))


@pytest.fixture
def listener() -> Listener:
    return Listener()


@pytest.fixture
def monitor(make_monitor: Callable[..., Monitor], listener: Listener) -> Monitor:
    return make_monitor(plugins=[listener])


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def left_behind(client: Client, pid: int) -> Any:
    """Return the processes that a backend left behind; None: it has not ended, or only now."""
    ended = client.request("GET", "/backends?fresh=false").json["ended"]
    return next((each["left_behind"] for each in ended if each["pid"] == pid), None)


def has_ended(monitor: Monitor, pid: int) -> bool:
    return monitor._services.registry.find(pid) is None


def wait_until_seen(monitor: Monitor, pid: int, members: int) -> None:
    """Wait until the members of a registered backend were found."""
    record = monitor._services.registry.find(pid)
    assert record is not None
    eventually(lambda: len(record.members.identities()) >= members)


def kill_and_reap(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()


def kill_launcher(
    monitor: Monitor, spawner: Spawner, kind: str
) -> tuple[subprocess.Popen[str], int]:
    """Register a launcher, and kill it once its worker was seen; return it and the worker's PID."""
    root = spawner.python(LAUNCHER, kind)
    worker = int(first_line(root))
    register(monitor, root.pid)
    wait_until_seen(monitor, root.pid, 2)
    kill_and_reap(root)
    return root, worker


@pytest.mark.parametrize("kind", ["child", "session", "orphan"])
def test_processes_of_a_killed_backend_are_reported_until_they_end(
    kind: str, monitor: Monitor, client: Client, listener: Listener, spawner: Spawner
) -> None:
    """Once by event, hook and log line; in the list with name and memory, until they have ended."""
    root, worker = kill_launcher(monitor, spawner, kind)
    eventually(lambda: len(listener.events) == 2)
    assert listener.events == [("gone", root.pid, ()), ("left_behind", root.pid, (worker,))]
    (process,) = left_behind(client, root.pid)
    assert process["pid"] == worker
    assert process["name"].startswith("python")
    assert process["bytes"] > 1024 * 1024
    events = client.request("GET", "/events").json["events"]
    (event,) = [each for each in events if each["type"] == "left_behind"]
    assert (event["model"], event["pid"], event["pids"]) == ("m", root.pid, [worker])
    os.kill(worker, signal.SIGKILL)
    eventually(lambda: left_behind(client, root.pid) == [])
    assert len(listener.events) == 2


@pytest.mark.parametrize("kernel", ["lists children", "lists no children"])
def test_children_of_a_new_backend_are_found(
    kernel: str,
    monitor: Monitor,
    listener: Listener,
    spawner: Spawner,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At the registration, or else soon after it: the shell leads neither session nor group."""
    if kernel == "lists no children":
        monkeypatch.setattr(registration, "find_descendants", lambda pid: [])
    root = spawner.process("sh", "-c", "sleep 300 & echo $!; wait", start_new_session=False)
    worker = int(first_line(root))
    try:
        register(monitor, root.pid)
        if kernel == "lists no children":
            wait_until_seen(monitor, root.pid, 2)
        kill_and_reap(root)
        eventually(lambda: ("left_behind", root.pid, (worker,)) in listener.events)
    finally:
        os.kill(worker, signal.SIGKILL)


def test_processes_that_end_with_their_backend_are_not_reported(
    monitor: Monitor, client: Client, listener: Listener, spawner: Spawner
) -> None:
    """A worker that ends as soon as its pipe is closed had its second; a zombie has ended, too."""
    code = "import os, sys\nif not os.fork(): print(os.getpid(), flush=True), sys.stdin.read()\n"
    root = spawner.python(code + "else: os.wait()", stdin=subprocess.PIPE)
    worker = int(first_line(root))
    register(monitor, root.pid)
    wait_until_seen(monitor, root.pid, 2)
    kill_and_reap(root)
    assert root.stdin
    root.stdin.close()
    eventually(lambda: left_behind(client, root.pid) == [])
    assert not is_running(worker)
    assert eventually(lambda: listener.events) == [("gone", root.pid, ())]


def test_a_stopped_backend_leaves_nothing_behind(
    make_monitor: Callable[..., Monitor], listener: Listener, spawner: Spawner
) -> None:
    """Its members may outlive the root by the grace of the stop, which is no reason to report."""
    monitor = make_monitor(plugins=[listener], stop_timeout_seconds=4)
    worker = (
        "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "print(flush=True)\ntime.sleep(1000)"
    )
    script = f'{sys.executable} -c "$1" & exec sleep 1000'
    root = spawner.process("sh", "-c", script, "sh", worker)
    first_line(root)
    threading.Thread(target=root.wait, daemon=True).start()
    register(monitor, root.pid)
    monitor.shutdown("m")
    eventually(lambda: left_behind(Client(monitor.url), root.pid) == [])
    assert [kind for kind, _, _ in listener.events] == ["gone"]


def test_a_process_that_is_registered_itself_is_not_left_behind(
    monitor: Monitor, client: Client, listener: Listener, spawner: Spawner
) -> None:
    """The host that registers the server of a killed launcher has taken the server over."""
    root, server = kill_launcher(monitor, spawner, "child")
    eventually(lambda: left_behind(client, root.pid))
    register(monitor, server, address="127.0.0.1:2")
    eventually(lambda: left_behind(client, root.pid) == [])
    assert is_running(server)


def test_exits_with_processes_are_kept_in_the_list(
    monitor: Monitor, client: Client, spawner: Spawner
) -> None:
    """Also when a hundred other backends have ended since; then they leave the list."""
    root, worker = kill_launcher(monitor, spawner, "child")
    eventually(lambda: left_behind(client, root.pid))
    for number in range(MAX_EXITS):
        process = spawner.sleeper()
        register(monitor, process.pid, address=f"unix:/{number}")
        process.kill()
        eventually(partial(has_ended, monitor, process.pid))
    ended = client.request("GET", "/backends?fresh=false").json["ended"]
    assert (len(ended), ended[-1]["pid"]) == (MAX_EXITS, root.pid)
    os.kill(worker, signal.SIGKILL)
    eventually(lambda: left_behind(client, root.pid) == [])


def test_thread_ends_with_the_monitor(
    make_monitor: Callable[..., Monitor], spawner: Spawner
) -> None:
    """Also while processes are left behind."""
    monitor = make_monitor()
    kill_launcher(monitor, spawner, "child")
    eventually(lambda: monitor._services.left_behind.records("m"))
    monitor.close()
    assert "monitor-left-behind" not in [each.name for each in threading.enumerate()]
