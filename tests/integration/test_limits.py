"""Limits of real control groups, of whichever version has the controllers here."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from monitor_plugin import Monitor
from monitor_plugin.processes.control_group_files import read_mounts

from ..support import Client, Spawner, eventually, register

pytestmark = pytest.mark.once

MIB = 1 << 20
HELD_PERCENT = pytest.approx(50, abs=8)  # of the interpreter some 10 MiB are resident

# Moves itself to the control groups, takes 256 MiB, and says so.
HOLDER = """
import sys, time
for group in sys.argv[1:]:
    with open(group + "/cgroup.procs", "w") as file:
        file.write("0")
held = bytearray(256 << 20)
held[::4096] = b"x" * len(held[::4096])
print("holds", flush=True)
time.sleep(1000)
"""

# The monitor of one backend, in the control groups; prints the list of backends at each line.
LONE_MONITOR = """
import sys
from monitor_plugin import Monitor, Settings
from monitor_plugin.client import Client

pid, *groups = sys.argv[1:]
for group in groups:
    with open(group + "/cgroup.procs", "w") as file:
        file.write("0")
with Monitor(Settings(listen="127.0.0.1:0", sweep_interval_seconds=0)) as monitor:
    monitor.hook.monitor_backend_spawned(model="m", pid=int(pid), address="127.0.0.1:1")
    print(monitor.url, flush=True)
    sys.stdin.readline()
"""


class Group:
    """A control group for one controller.

    Args:
        controller: `memory`, `cpu` or `cpuset`.
        folder: its folder.
        is_first: whether it is of version 1.
    """

    def __init__(self, controller: str, folder: Path, is_first: bool) -> None:
        self.controller = controller
        self.folder = folder
        self.is_first = is_first

    def below(self, name: str) -> Group:
        """Make a group below it."""
        return Group(self.controller, _make(self.folder / name), self.is_first)

    def limit_memory(self, amount: int) -> None:
        name = "memory.limit_in_bytes" if self.is_first else "memory.max"
        (self.folder / name).write_text(str(amount))

    def limit_cpu(self, microseconds: int) -> None:
        """Set the quota for each 100 ms."""
        if self.is_first:
            (self.folder / "cpu.cfs_quota_us").write_text(str(microseconds))
        else:
            (self.folder / "cpu.max").write_text(f"{microseconds} 100000")

    def limit_cores(self, cores: str) -> None:
        (self.folder / "cpuset.cpus").write_text(cores)
        if self.is_first:  # else no process may be added
            (self.folder / "cpuset.mems").write_text("0")

    def add(self, pid: int) -> None:
        (self.folder / "cgroup.procs").write_text(str(pid))

    def remove(self) -> None:
        """Remove the group and those below it, once their processes have ended."""
        for folder in sorted(self.folder.rglob("*/"), reverse=True):
            _remove(folder)
        _remove(self.folder)


def _make(folder: Path) -> Path:
    folder.mkdir()
    controllers = folder.parent / "cgroup.controllers"
    if controllers.exists():
        for controller in {"memory", "cpu", "cpuset"} & set(controllers.read_text().split()):
            (folder.parent / "cgroup.subtree_control").write_text(f"+{controller}")
    return folder


def _remove(folder: Path) -> None:
    def try_to_remove() -> bool:
        for pid in (folder / "cgroup.procs").read_text().split():
            os.kill(int(pid), signal.SIGKILL)
        try:
            folder.rmdir()
        except OSError:
            return False
        return True

    if folder.is_dir():
        eventually(try_to_remove)


MakeGroup = Callable[[str], Group]


@pytest.fixture
def make_group() -> Iterator[MakeGroup]:
    """Makes control groups for a controller, and removes them when their processes have ended."""
    made: list[Group] = []

    def make(controller: str) -> Group:
        mounts = read_mounts()
        first = [Path(each.folder) for each in mounts if controller in each.controllers]
        second = [
            folder
            for each in mounts
            if not each.controllers
            for folder in [Path(each.folder)]
            if controller in (folder / "cgroup.controllers").read_text().split()
        ]
        name = f"monitor-plugin-limits-{os.getpid()}-{len(made)}"
        for folder in [*first, *second]:
            group = Group(controller, folder / name, folder in first)
            try:
                _make(group.folder)
            except OSError as error:
                group.remove()
                pytest.skip(f"no control group for {controller} can be made here: {error}")
            made.append(group)
            return group
        pytest.skip(f"no control groups for {controller} are mounted here")

    yield make
    for group in made:
        group.remove()


def holder(spawner: Spawner, *groups: Group) -> subprocess.Popen[str]:
    process = spawner.python(HOLDER, *(str(group.folder) for group in groups))
    assert process.stdout
    assert process.stdout.readline() == "holds\n"
    return process


def listed(client: Client) -> Any:
    """Return the only backend of the list, and the machine."""
    answer = client.request("GET", "/backends").json
    (item,) = answer["backends"]
    return item, answer["machine"]


def metric(client: Client, name: str) -> float:
    """Return the only value of a metric."""
    text = client.request("GET", "/metrics").body.decode()
    (line,) = [line for line in text.splitlines() if line.startswith(name)]
    return float(line.split()[-1])


def lone_monitor(spawner: Spawner, *command: str) -> Client:
    process = spawner.process(*command, stdin=subprocess.PIPE)
    assert process.stdout
    return Client(process.stdout.readline().strip())


def python_command(pid: int, *groups: Group) -> list[str]:
    return [sys.executable, "-c", LONE_MONITOR, str(pid), *(str(each.folder) for each in groups)]


@pytest.mark.parametrize("is_parents", [False, True], ids=["its own", "the parent's"])
def test_memory_percent_is_percent_of_the_backends_limit(
    make_group: MakeGroup,
    make_monitor: Callable[..., Monitor],
    spawner: Spawner,
    is_parents: bool,
) -> None:
    """The limit may be that of any level. The monitor, outside of the group, has none."""
    group = make_group("memory")
    group.limit_memory(512 * MIB)
    process = holder(spawner, group.below("a").below("b") if is_parents else group)
    monitor = make_monitor()
    register(monitor, process.pid)
    client = Client(monitor.url)
    item, machine = listed(client)
    assert item["limits"]["memory_limit"] == 512 * MIB
    assert 150 * MIB < item["limits"]["memory_available"] <= 256 * MIB
    assert item["process"]["memory_percent"] == HELD_PERCENT
    assert item["process"]["tree"]["memory_percent"] == HELD_PERCENT
    assert client.monitor("m").json["memory_percent"] == HELD_PERCENT
    assert machine["memory_limit"] != 512 * MIB
    assert machine["memory_available"] > 256 * MIB
    assert metric(client, "monitor_backend_memory_limit_bytes") == 512 * MIB


def test_memory_percent_is_percent_of_the_monitors_limit(
    make_group: MakeGroup, spawner: Spawner
) -> None:
    """A backend in the monitor's group has no limits of its own."""
    group = make_group("memory")
    group.limit_memory(512 * MIB)
    process = holder(spawner, group)
    client = lone_monitor(spawner, *python_command(process.pid, group))
    item, machine = listed(client)
    assert item["limits"] is None
    assert item["process"]["memory_percent"] == HELD_PERCENT
    assert client.monitor("m").json["memory_percent"] == HELD_PERCENT
    assert machine["memory_limit"] == 512 * MIB
    assert 0 < machine["memory_available"] < 256 * MIB
    assert machine["memory_total"] == psutil.virtual_memory().total
    assert metric(client, "monitor_machine_memory_limit_bytes") == 512 * MIB


def test_pages_of_files_are_available(
    make_group: MakeGroup, make_monitor: Callable[..., Monitor], spawner: Spawner, tmp_path: Path
) -> None:
    """The kernel drops them when the group reaches its limit."""
    group = make_group("memory")
    group.limit_memory(512 * MIB)
    script = 'echo 0 >"$0/cgroup.procs"; head -c 200M /dev/zero >"$1"; sync "$1"; echo; sleep 1000'
    process = spawner.process("sh", "-c", script, str(group.folder), str(tmp_path / "model"))
    assert process.stdout
    process.stdout.readline()
    monitor = make_monitor()
    register(monitor, process.pid)
    used = group.folder / ("memory.usage_in_bytes" if group.is_first else "memory.current")
    if int(used.read_text()) < 150 * MIB:
        pytest.skip("the pages of files in the temporary folder are not charged to the group")
    item, _ = listed(Client(monitor.url))
    assert item["limits"]["memory_available"] > 450 * MIB


def test_cpu_limit_is_the_quota(
    make_group: MakeGroup, make_monitor: Callable[..., Monitor], spawner: Spawner
) -> None:
    """A quota of 150 % is 1.5, unless the process may run on fewer cores."""
    group = make_group("cpu")
    group.limit_cpu(150_000)
    process = spawner.sleeper()
    group.below("a").add(process.pid)
    monitor = make_monitor()
    register(monitor, process.pid)
    item, machine = listed(Client(monitor.url))
    cores = float(len(os.sched_getaffinity(0)))
    assert item["limits"]["cpu_limit"] == min(1.5, cores)
    assert (machine["cpu_limit"], machine["cpus"]) == (cores, psutil.cpu_count())


def test_cpu_limit_is_the_number_of_cores_of_the_cpuset(
    make_group: MakeGroup, make_monitor: Callable[..., Monitor], spawner: Spawner
) -> None:
    group = make_group("cpuset")
    group.limit_cores("0")
    process = spawner.sleeper()
    group.add(process.pid)
    monitor = make_monitor()
    register(monitor, process.pid)
    item, _ = listed(Client(monitor.url))
    assert item["limits"]["cpu_limit"] == 1.0


def test_cpu_limit_is_the_number_of_cores_of_the_affinity(spawner: Spawner) -> None:
    """If the monitor may run on one core only, `cpus` of the machine still counts all."""
    process = spawner.process("taskset", "-c", "0", "sleep", "1000")
    client = lone_monitor(spawner, "taskset", "-c", "0", *python_command(process.pid))
    item, machine = listed(client)
    assert (machine["cpu_limit"], machine["cpus"]) == (1.0, psutil.cpu_count())
    assert item["limits"] is None


def test_limits_follow_a_process_that_moves(
    make_group: MakeGroup, make_monitor: Callable[..., Monitor], spawner: Spawner
) -> None:
    """They follow the process to another group, and change with the limit of the group."""
    small, large = make_group("memory"), make_group("memory")
    small.limit_memory(100 * MIB)
    large.limit_memory(200 * MIB)
    process = spawner.sleeper()
    monitor = make_monitor()
    register(monitor, process.pid)

    def limit() -> int | None:
        limits = monitor.sweep()[0].limits
        return limits.memory_limit if limits else None

    before = limit()
    small.add(process.pid)
    eventually(lambda: limit() == 100 * MIB)
    large.add(process.pid)
    small.remove()
    eventually(lambda: limit() == 200 * MIB)
    large.limit_memory(150 * MIB)
    eventually(lambda: limit() == 150 * MIB)
    Group("memory", large.folder.parent, large.is_first).add(process.pid)
    large.remove()
    eventually(lambda: limit() == before)


def test_limits_are_found_in_a_control_group_namespace(
    make_group: MakeGroup, spawner: Spawner
) -> None:
    """The paths of groups outside of the namespace begin with `/..`."""
    group = make_group("memory")
    group.limit_memory(512 * MIB)
    own, other = group.below("a").below("b"), group.below("other")
    other.limit_memory(400 * MIB)
    process = spawner.sleeper()
    other.add(process.pid)
    script = 'echo 0 >"$0/cgroup.procs"; exec unshare --cgroup "$@"'
    command = ["sh", "-c", script, str(own.folder), *python_command(process.pid)]
    item, machine = listed(lone_monitor(spawner, *command))
    assert machine["memory_limit"] == 512 * MIB
    assert item["limits"]["memory_limit"] == 400 * MIB


def test_limits_are_found_where_the_mount_begins_at_the_containers_group(
    make_group: MakeGroup, spawner: Spawner
) -> None:
    """A container of version 1 is like this: the mount hides the limits of the groups above it."""
    group = make_group("memory")
    if not group.is_first:
        pytest.skip("version 2 does not tell the limits of groups above the mount")
    group.limit_memory(512 * MIB)
    inner = group.below("container")
    process = holder(spawner, inner)
    mount = group.folder.parent
    script = f'mount --bind "{inner.folder}" "{mount}" && exec "$@"'
    command = ["unshare", "--mount", "sh", "-c", script, "sh", *python_command(process.pid)]
    item, _ = listed(lone_monitor(spawner, *command))
    assert item["limits"]["memory_limit"] == 512 * MIB
    assert item["process"]["memory_percent"] == HELD_PERCENT
