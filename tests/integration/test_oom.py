"""A real kill for want of memory, in control groups of the test's own."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from shlex import quote
from typing import Any

import pytest

from monitor_plugin import Backend, BackendExit, ModelNotLoaded, Monitor, hookimpl

from ..support import Client, Spawner, eventually, logged, register

_LIMIT_BYTES = 64 * 1024 * 1024

# Waits for a line, and then takes more memory than its group may have.
GREEDY = "import sys; sys.stdin.readline(); b = bytearray(256 << 20); b[::4096] = b[::4096]"

# Waits for a line, then starts a worker, which takes too much memory at once, and reaps it.
WITH_WORKER = """
import subprocess, sys, time
sys.stdin.readline()
subprocess.run([sys.executable, "-c", sys.argv[1]], stdin=subprocess.DEVNULL)
time.sleep(1000)
"""

# A monitor of one backend, which prints how the backend ended.
LONE_MONITOR = """
import sys, time
from monitor_plugin import Monitor, Settings, hookimpl

class Plugin:
    @hookimpl
    def monitor_backend_gone(self, backend, exit):
        print(exit.cause, exit.oom, exit.oom_certain, flush=True)

with Monitor(Settings(listen=None), [Plugin()]) as monitor:
    monitor.hook.monitor_backend_spawned(
        model="m", pid=int(sys.argv[1]), address="127.0.0.1:1"
    )
    print("registered", flush=True)
    sys.stdin.readline()
"""


class Group:
    """A control group with a limit, of whichever version has the memory controller here."""

    def __init__(self, name: str) -> None:
        root = Path("/sys/fs/cgroup")
        first = root / "memory"
        self.path = (first if first.is_dir() else root) / name
        self._limit = "memory.limit_in_bytes" if first.is_dir() else "memory.max"

    def make(self) -> None:
        self.path.mkdir()
        (self.path / self._limit).write_text(str(_LIMIT_BYTES))
        swap = self.path / "memory.swap.max"
        if swap.exists():
            swap.write_text("0")

    def add(self, pid: int) -> None:
        (self.path / "cgroup.procs").write_text(str(pid))

    def remove(self) -> None:
        if self.path.is_dir():
            self.path.rmdir()


@pytest.fixture
def make_group() -> Iterator[Callable[[], Group]]:
    """Makes control groups, and removes them when the processes of the test have ended."""
    groups: list[Group] = []

    def make() -> Group:
        group = Group(f"monitor-plugin-test-{os.getpid()}-{len(groups)}")
        try:
            group.make()
        except OSError as error:
            group.remove()
            pytest.skip(f"no control group with a memory limit can be made here: {error}")
        groups.append(group)
        return group

    yield make
    for group in groups:
        group.remove()


class Gone:
    """A plugin that notes how backends ended."""

    def __init__(self) -> None:
        self.exits: dict[str, BackendExit] = {}

    @hookimpl
    def monitor_backend_gone(self, backend: Backend, exit: BackendExit) -> None:
        self.exits[backend.model] = exit


@pytest.fixture
def gone() -> Gone:
    return Gone()


def greedy(spawner: Spawner, group: Group) -> subprocess.Popen[str]:
    process = spawner.python(GREEDY, stdin=subprocess.PIPE)
    Path(f"/proc/{process.pid}/oom_score_adj").write_text(
        "1000"
    )  # none else of its group is killed
    group.add(process.pid)
    return process


def tell(process: subprocess.Popen[str]) -> None:
    assert process.stdin
    process.stdin.write("go\n")
    process.stdin.flush()


def let_go(process: subprocess.Popen[str]) -> None:
    tell(process)
    assert process.wait(60) == -signal.SIGKILL


def events(monitor: Monitor, kind: str) -> list[dict[str, Any]]:
    """List the events of a type, without what all events have."""
    found = Client(monitor.url).request("GET", "/events").json["events"]
    common = ("id", "at", "type")
    return [
        {name: value for name, value in each.items() if name not in common}
        for each in found
        if each["type"] == kind
    ]


def ended(monitor: Monitor, model: str) -> dict[str, Any]:
    (found,) = Client(monitor.url).request("GET", f"/backends?model={model}").json["ended"]
    assert isinstance(found, dict)
    return found


def test_oom_kill_is_reported_as_the_cause(
    make_group: Callable[[], Group],
    make_monitor: Callable[..., Monitor],
    spawner: Spawner,
    gone: Gone,
) -> None:
    """It is an event too. A manual SIGKILL in a group without an OOM kill is neither."""
    monitor = make_monitor([gone])
    killed = spawner.sleeper()
    make_group().add(killed.pid)
    hungry = greedy(spawner, make_group())
    for port, (model, process) in enumerate({"killed": killed, "hungry": hungry}.items(), 1):
        register(monitor, process.pid, model, f"127.0.0.1:{port}")
    let_go(hungry)
    killed.kill()
    eventually(lambda: len(gone.exits) == 2)
    hungry_exit, killed_exit = gone.exits["hungry"], gone.exits["killed"]
    assert (hungry_exit.cause, hungry_exit.signal, hungry_exit.oom) == ("oom", 9, True)
    assert hungry_exit.oom_certain is True
    assert (killed_exit.cause, killed_exit.signal, killed_exit.oom) == ("killed", 9, None)
    assert killed_exit.oom_certain is None
    with pytest.raises(ModelNotLoaded, match="was killed by the kernel for want of memory"):
        monitor.read("hungry")
    kill = {"model": "hungry", "pid": hungry.pid, "kills": 1, "oom_certain": True}
    assert events(monitor, "oom_kill") == [kill]
    assert [each["oom_certain"] for each in events(monitor, "ended")].count(True) == 1
    assert (ended(monitor, "hungry")["oom_certain"], ended(monitor, "killed")["oom_certain"]) == (
        True,
        None,
    )
    killed.wait()


def test_oom_kill_of_a_worker_is_an_event(
    make_group: Callable[[], Group],
    make_monitor: Callable[..., Monitor],
    spawner: Spawner,
    gone: Gone,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The root lives on. What ends it later is no OOM kill."""
    caplog.set_level(logging.INFO, "monitor_plugin.logs")
    monitor = make_monitor([gone])
    group = make_group()
    root = spawner.python(WITH_WORKER, GREEDY, stdin=subprocess.PIPE)
    group.add(root.pid)
    register(monitor, root.pid)
    tell(root)
    kill = {"model": "m", "pid": root.pid, "kills": 1, "oom_certain": True}
    assert eventually(lambda: events(monitor, "oom_kill")) == [kill]
    line = f"model 'm' (process {root.pid}) lost 1 of its processes, killed by the kernel for want"
    eventually(lambda: [each for each in logged(caplog) if each.startswith(line)])
    assert monitor.backends()
    root.kill()
    eventually(lambda: gone.exits)
    assert (gone.exits["m"].cause, gone.exits["m"].oom_certain) == ("killed", None)
    assert len(events(monitor, "oom_kill")) == 1


def test_oom_kill_in_a_shared_control_group_is_no_certain_cause(
    make_group: Callable[[], Group],
    make_monitor: Callable[..., Monitor],
    spawner: Spawner,
    gone: Gone,
) -> None:
    """The kernel may have killed the other backend. What ends that one later is no OOM kill."""
    monitor = make_monitor([gone])
    group = make_group()
    other = spawner.sleeper()
    group.add(other.pid)
    hungry = greedy(spawner, group)
    for port, (model, process) in enumerate({"other": other, "hungry": hungry}.items(), 1):
        register(monitor, process.pid, model, f"127.0.0.1:{port}")
    let_go(hungry)
    eventually(lambda: "hungry" in gone.exits)
    exit = gone.exits["hungry"]
    assert (exit.cause, exit.signal, exit.oom, exit.oom_certain) == ("oom", 9, True, False)
    item = ended(monitor, "hungry")
    assert (item["cause"], item["oom"], item["oom_certain"]) == ("oom", True, False)
    words = "was killed by SIGKILL, probably by the kernel for want of memory"
    assert item["description"] == words
    kill = {"model": "hungry", "pid": hungry.pid, "kills": 1, "oom_certain": False}
    assert events(monitor, "oom_kill") == [kill]
    (event,) = events(monitor, "ended")
    assert (event["oom_certain"], event["description"]) == (False, words)
    record = monitor._services.registry.find(other.pid)
    assert record
    since = record.oom.updated_at
    eventually(lambda: record.oom.updated_at > since)
    other.terminate()
    other.wait()
    eventually(lambda: "other" in gone.exits)
    assert gone.exits["other"].cause == "killed"
    assert events(monitor, "oom_kill") == [kill]


@pytest.mark.parametrize("is_monitor_in_group", [True, False])
def test_oom_kill_in_a_group_of_processes_that_are_no_members_is_no_certain_cause(
    make_group: Callable[[], Group], spawner: Spawner, is_monitor_in_group: bool
) -> None:
    """The group may have the monitor, or an older process that is not a backend."""
    group = make_group()
    older = spawner.sleeper()
    born = time.monotonic()
    eventually(lambda: time.monotonic() - born > 0.05)  # start times have a resolution of 0.01 s
    hungry = greedy(spawner, group)
    child = spawner.python(LONE_MONITOR, str(hungry.pid), stdin=subprocess.PIPE)
    assert child.stdout
    assert child.stdout.readline() == "registered\n"
    group.add(child.pid if is_monitor_in_group else older.pid)
    let_go(hungry)
    assert child.stdout.readline() == "oom True False\n"


def test_oom_kill_is_found_where_the_mount_begins_at_the_containers_group(
    make_group: Callable[[], Group], spawner: Spawner
) -> None:
    """As in a container of version 1: /proc shows paths of the machine, the mount has others."""
    group = make_group()
    hungry = greedy(spawner, group)
    mount = group.path.parent
    command = (
        f"mount --bind {group.path} {mount} && exec {sys.executable} -c {quote(LONE_MONITOR)} "
        f"{hungry.pid}"
    )
    child = spawner.process("unshare", "--mount", "sh", "-c", command, stdin=subprocess.PIPE)
    assert child.stdout
    assert child.stdout.readline() == "registered\n"
    let_go(hungry)
    assert child.stdout.readline() == "oom True True\n"
