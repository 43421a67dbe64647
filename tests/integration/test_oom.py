"""A real kill for want of memory, in control groups of the test's own."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from monitor_plugin import Backend, BackendExit, ModelNotLoaded, Monitor, hookimpl

from ..support import Spawner, eventually, register

_LIMIT_BYTES = 64 * 1024 * 1024

# Waits for a line, and then takes more memory than its group may have.
GREEDY = "import sys; sys.stdin.readline(); b = bytearray(256 << 20); b[::4096] = b[::4096]"


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
    group.add(process.pid)
    return process


def let_go(process: subprocess.Popen[str]) -> None:
    assert process.stdin
    process.stdin.write("go\n")
    process.stdin.flush()
    assert process.wait(60) == -signal.SIGKILL


def test_oom_kill_is_reported_as_the_cause(
    make_group: Callable[[], Group],
    make_monitor: Callable[..., Monitor],
    spawner: Spawner,
    gone: Gone,
) -> None:
    """A manual SIGKILL in a group without an OOM kill is not."""
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
    assert (killed_exit.cause, killed_exit.signal, killed_exit.oom) == ("killed", 9, None)
    with pytest.raises(ModelNotLoaded, match="by the kernel for want of memory"):
        monitor.read("hungry")
    killed.wait()


def test_oom_kill_in_a_shared_control_group_has_no_known_victim(
    make_group: Callable[[], Group],
    make_monitor: Callable[..., Monitor],
    spawner: Spawner,
    gone: Gone,
) -> None:
    """The kernel may have killed the other backend of the group."""
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
    assert (exit.cause, exit.signal, exit.oom) == ("killed", 9, None)
    other.kill()
    other.wait()
