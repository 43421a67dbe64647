"""Limits from recorded files; `tests/integration/test_limits.py` has real control groups."""

from __future__ import annotations

import os
import subprocess
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest

from monitor_plugin.domain.models import Limits
from monitor_plugin.processes import kernel_files
from monitor_plugin.processes import limits as module
from monitor_plugin.processes.control_groups import ControlGroups
from monitor_plugin.processes.limits import LimitsReader, has_same_limits

from ..support import Spawner, eventually

pytestmark = pytest.mark.once

MIB = 1 << 20
PHYSICAL = psutil.virtual_memory().total
CORES = float(len(os.sched_getaffinity(0)))
NONE_1 = str(2**63 - 4096)  # as version 1 writes "no limit"

STAT_1 = f"""cache 0
rss 0
active_file 1
inactive_file 2
hierarchical_memory_limit {NONE_1}
total_cache {40 * MIB}
total_inactive_file {30 * MIB}
total_active_file {10 * MIB}
"""
STAT_2 = f"""anon 1
file {99 * MIB}
inactive_file {30 * MIB}
active_file {10 * MIB}
slab_reclaimable {5 * MIB}
"""

Files = Mapping[str, object]


class Recorded:
    """Files as /proc and the mounts of control groups have them, for this process.

    Args:
        folder: the folder for these files.
    """

    def __init__(self, folder: Path) -> None:
        self.proc, self.mounts = folder / "proc", folder / "cgroup"
        self._lines: list[str] = []
        (self.proc / "pressure").mkdir(parents=True)
        self.join("")

    def mount(self, kind: str, name: str, options: str, root: str = "/") -> None:
        self._lines.append(f"30 20 0:26 {root} {self.mounts}/{name} rw - {kind} {kind} {options}\n")
        (self.proc / "self").mkdir(exist_ok=True)
        (self.proc / "self" / "mountinfo").write_text("".join(self._lines))

    def join(self, lines: str, pid: int = os.getpid()) -> None:
        folder = self.proc / str(pid)
        folder.mkdir(exist_ok=True)
        (folder / "cgroup").write_text(lines)

    def write(self, group: str, files: Files) -> None:
        folder = self.mounts / group
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (folder / name).write_text(f"{content}\n")

    def reader(self) -> LimitsReader:
        return LimitsReader(ControlGroups(self.proc), self.proc)

    def limits(self) -> Limits:
        return self.reader().read(os.getpid(), 0.0)


@pytest.fixture
def recorded(tmp_path: Path) -> Recorded:
    return Recorded(tmp_path)


def v2(**files: object) -> dict[str, object]:
    """Return the files of a group of version 2 that has only the given limits."""
    return {
        "memory.max": "max",
        "memory.high": "max",
        "memory.current": 100 * MIB,
        "memory.stat": STAT_2,
        "cpu.max": "max 100000",
        **{name.replace("_", "."): value for name, value in files.items()},
    }


def v1(limit: object = NONE_1, **more: object) -> dict[str, object]:
    return {
        "memory.limit_in_bytes": limit,
        "memory.usage_in_bytes": 100 * MIB,
        "memory.stat": STAT_1,
        **more,
    }


@pytest.mark.parametrize(
    ("own", "parent", "limit"),
    [
        pytest.param({"memory_max": 512 * MIB}, {}, 512 * MIB, id="max"),
        pytest.param({"memory_high": 256 * MIB, "memory_max": 512 * MIB}, {}, 256 * MIB, id="high"),
        pytest.param({"memory_high": 512 * MIB, "memory_max": 256 * MIB}, {}, 256 * MIB, id="both"),
        pytest.param({}, {"memory_max": 300 * MIB}, 300 * MIB, id="parent's"),
        pytest.param(
            {"memory_max": 512 * MIB}, {"memory_high": 300 * MIB}, 300 * MIB, id="parent's high"
        ),
        pytest.param({"memory_max": PHYSICAL}, {}, None, id="as much as there is"),
        pytest.param({"memory_max": 2 * PHYSICAL}, {}, None, id="more than there is"),
        pytest.param({"memory_max": 0}, {}, 0, id="0"),
        pytest.param({}, {}, None, id="none"),
    ],
)
def test_memory_limit_of_version_2_is_the_lowest_of_all_levels(
    recorded: Recorded, own: dict[str, object], parent: dict[str, object], limit: int | None
) -> None:
    """The used memory without the 45 MiB that the kernel can drop is not available."""
    recorded.mount("cgroup2", "", "rw")
    recorded.join("0::/a/b/c\n")
    for group, files in (("a/b/c", own), ("a/b", {}), ("a", parent)):
        recorded.write(group, v2(**files))
    recorded.write("", {"memory.stat": STAT_2})  # the root has no limits
    found = recorded.limits()
    assert found.memory_limit == limit
    if limit is None:
        assert found.memory_available
        assert 512 * MIB < found.memory_available < PHYSICAL
    else:
        assert found.memory_available == max(0, limit - 55 * MIB)


def test_memory_is_available_up_to_the_nearest_limit(recorded: Recorded) -> None:
    """The lowest limit need not be the one that is reached first."""
    recorded.mount("cgroup2", "", "rw")
    recorded.join("0::/a/b\n")
    recorded.write("a/b", v2(memory_max=500 * MIB))
    recorded.write("a", v2(memory_max=900 * MIB, memory_current=895 * MIB))
    found = recorded.limits()
    assert (found.memory_limit, found.memory_available) == (500 * MIB, 50 * MIB)


@pytest.mark.parametrize(
    ("group", "parent", "limit"),
    [
        pytest.param(v1(512 * MIB), v1(), 512 * MIB, id="own"),
        pytest.param(v1(), v1(300 * MIB), 300 * MIB, id="parent's"),
        pytest.param(v1(), v1(), None, id="none"),
        pytest.param(v1(2 * PHYSICAL), v1(), None, id="more than there is"),
        pytest.param(v1(0), v1(), 0, id="0"),
    ],
)
def test_memory_limit_of_version_1_is_the_lowest_of_all_levels(
    recorded: Recorded, group: Files, parent: Files, limit: int | None
) -> None:
    """It counts beside version 2 without a memory controller."""
    recorded.mount("cgroup", "memory", "rw,memory")
    recorded.mount("cgroup2", "unified", "rw")
    recorded.join("4:memory:/a/b\n0::/x\n")
    recorded.write("memory/a/b", group)
    recorded.write("memory/a", parent)
    recorded.write("memory", v1(release_agent=""))
    recorded.write("unified/x", {"cgroup.type": "domain"})
    found = recorded.limits()
    assert found.memory_limit == limit
    if limit is not None:
        assert found.memory_available == max(0, limit - 60 * MIB)


@pytest.mark.parametrize("path", ["/docker/ID", "/docker/ID/a"])
def test_limits_above_a_container_of_version_1_count(recorded: Recorded, path: str) -> None:
    """The topmost group that the mount shows says the lowest limit of those above it."""
    recorded.mount("cgroup", "memory", "rw,memory", root="/docker/ID")
    recorded.join(f"4:memory:{path}\n")
    recorded.write("memory/a", v1(800 * MIB))
    hidden = STAT_1.replace(NONE_1, str(200 * MIB))
    recorded.write("memory", v1(900 * MIB, **{"memory.stat": hidden}))
    found = recorded.limits()
    assert (found.memory_limit, found.memory_available) == (200 * MIB, 140 * MIB)


@pytest.mark.parametrize("root", ["/", "/system.slice/docker-ID.scope"])
def test_limits_of_a_container_of_version_2_count(recorded: Recorded, root: str) -> None:
    """The container has its own control group namespace, or the machine's."""
    recorded.mount("cgroup2", "", "rw", root)
    recorded.join(f"0::{root}\n")
    recorded.write("", v2(memory_max=512 * MIB, cpu_max="50000 100000"))
    found = recorded.limits()
    assert (found.memory_limit, found.cpu_limit) == (512 * MIB, 0.5)
    recorded.join("0::/../other\n")  # the process of another container
    found = recorded.limits()
    assert (found.memory_limit, found.cpu_limit) == (None, CORES)


@pytest.mark.parametrize(
    ("own", "parent", "quota"),
    [
        ("50000 100000", "max 100000", 0.5),
        ("max 100000", "20000 80000", 0.25),
        ("75000 100000", "50000 100000", 0.5),
        ("9999900000 100000", "max 100000", None),
        ("50000", "max", None),
    ],
)
def test_cpu_limit_is_the_lowest_quota_or_the_number_of_cores(
    recorded: Recorded, own: str, parent: str, quota: float | None
) -> None:
    recorded.mount("cgroup2", "", "rw")
    recorded.join("0::/a/b\n")
    recorded.write("a/b", v2(cpu_max=own))
    recorded.write("a", v2(cpu_max=parent))
    found = recorded.limits().cpu_limit
    assert isinstance(found, float)
    assert found == (CORES if quota is None else quota)


@pytest.mark.parametrize(
    ("own", "parent", "quota"), [(50000, -1, 0.5), (-1, 25000, 0.25), (-1, -1, None)]
)
def test_cpu_limit_of_version_1(
    recorded: Recorded, own: int, parent: int, quota: float | None
) -> None:
    recorded.mount("cgroup", "cpu,cpuacct", "rw,cpu,cpuacct")
    recorded.join("4:cpu,cpuacct:/a/b\n")
    for group, amount in (("a/b", own), ("a", parent), ("", -1)):
        files = {"cpu.cfs_quota_us": amount, "cpu.cfs_period_us": 100000}
        recorded.write(f"cpu,cpuacct/{group}", files)
    assert recorded.limits().cpu_limit == (CORES if quota is None else quota)


def test_cores_of_all_threads_count(spawner: Spawner) -> None:
    """Programs pin their threads to one core each."""
    code = """
import os, threading
cores = sorted(os.sched_getaffinity(0))
def work():
    os.sched_setaffinity(0, cores[1:])
    print(flush=True)
    input()
threading.Thread(target=work).start()
os.sched_setaffinity(0, cores[:1])
"""
    process = spawner.python(code, stdin=subprocess.PIPE)
    assert process.stdout
    process.stdout.readline()
    eventually(lambda: len(os.sched_getaffinity(process.pid)) == 1)
    assert LimitsReader(ControlGroups()).read(process.pid, 0.0).cpu_limit == CORES


def test_cores_of_a_process_that_has_ended_are_not_known(recorded: Recorded) -> None:
    assert recorded.reader().read(2**22 + 1, 0.0).cpu_limit is None


@pytest.mark.parametrize(
    "lines", ["", "0::/gone (deleted)\n", "0::/a\n", "4:memory:/a\n", "0::/odd\n"]
)
def test_unreadable_files_are_no_limits(recorded: Recorded, lines: str) -> None:
    """Neither are files with other content, nor deleted groups."""
    recorded.mount("cgroup2", "", "rw")
    recorded.join(lines)
    recorded.write("odd", {"memory.max": "much", "cpu.max": "1 0", "cgroup.type": "domain"})
    recorded.write("odd", {"memory.pressure": "none", "cpu.pressure": "full avg10=1.00 "})
    (recorded.mounts / "a" / "memory.max").mkdir(parents=True)  # cannot be read, not even by root
    found = recorded.limits()
    assert (found.memory_limit, found.cpu_limit, found.memory_pressure) == (None, CORES, None)
    assert found.memory_available


def test_the_limit_of_the_group_above_a_deleted_one_counts(recorded: Recorded) -> None:
    recorded.mount("cgroup2", "", "rw")
    recorded.join("0::/a/gone (deleted)\n")
    recorded.write("a", v2(memory_max=64 * MIB))
    assert recorded.limits().memory_limit == 64 * MIB


def test_lines_without_a_number_are_ignored(recorded: Recorded) -> None:
    recorded.mount("cgroup2", "", "rw")
    recorded.join("0::/a\n")
    recorded.write("a", v2(memory_max=256 * MIB, memory_stat=f"a\nb c d\n{STAT_2}\nactive_file x"))
    assert recorded.limits().memory_available == 201 * MIB


def test_a_limit_without_a_readable_usage_has_no_amount_available(recorded: Recorded) -> None:
    recorded.mount("cgroup2", "", "rw")
    recorded.join("0::/a\n")
    recorded.write("a", {"memory.max": 64 * MIB})
    found = recorded.limits()
    assert found.memory_limit == 64 * MIB
    assert found.memory_available is None


def test_pressure_is_read_from_the_group_or_the_machine(recorded: Recorded) -> None:
    """The monitor's own figure is the machine's pressure. The root group has no own figure."""
    some = "some avg10={} avg60=0.00 avg300=0.00 total=5\nfull avg10=9.00 avg60=0.00"
    recorded.mount("cgroup2", "", "rw")
    recorded.join("0::/a\n")
    group = {"memory.pressure": some.format("1.50"), "cpu.pressure": some.format("20.00")}
    recorded.write("", group)
    recorded.write("a", group | {"cgroup.type": "domain"})
    (recorded.proc / "pressure" / "memory").write_text(some.format("0.25"))
    reader = recorded.reader()
    found, own = reader.read(os.getpid(), 0.0), reader.own()
    assert (found.memory_pressure, found.cpu_pressure) == (1.5, 20.0)
    assert (own.memory_pressure, own.cpu_pressure) == (0.25, None)
    recorded.join("0::/\n")
    found = recorded.limits()
    assert (found.memory_pressure, found.cpu_pressure) == (None, None)


def test_limits_are_compared_without_usage_and_pressure() -> None:
    first = Limits(memory_limit=5, cpu_limit=1.0, memory_available=3, cpu_pressure=1.0)
    assert has_same_limits(first, Limits(memory_limit=5, cpu_limit=1.0))
    assert not has_same_limits(first, Limits(memory_limit=5, cpu_limit=2.0))
    assert not has_same_limits(first, Limits(cpu_limit=1.0))


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts how often each file of control groups is read."""
    counter: Counter[str] = Counter()
    read_text = kernel_files.read_text

    def read_and_count(path: str) -> str:
        counter[path] += 1
        return read_text(path)

    for each in (module, kernel_files):
        monkeypatch.setattr(each, "read_text", read_and_count)
    return counter


def test_files_of_a_group_are_read_once_for_all_its_processes(
    recorded: Recorded, reads: Counter[str]
) -> None:
    """The same holds for groups above them, shared by processes of different groups."""
    recorded.mount("cgroup2", "", "rw")
    for group in ("", "a", "a/b", "a/c"):
        recorded.write(group, v2(memory_max=64 * MIB))
    for pid in range(100):
        recorded.join(f"0::/a/{'bc'[pid % 2]}\n", pid)
    reader = recorded.reader()
    for pid in range(100):
        assert reader.read(pid, 0.0).memory_limit == 64 * MIB
    assert set(reads.values()) == {1}
    assert len(reads) == 20  # five of each group


def test_figures_are_read_again_after_a_second(
    recorded: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded.mount("cgroup2", "", "rw")
    recorded.join("0::/a\n")
    recorded.write("a", v2(memory_max=64 * MIB))
    reader = recorded.reader()
    pid = os.getpid()
    assert reader.read(pid, 0.0).memory_limit == 64 * MIB
    recorded.write("a", v2(memory_max=32 * MIB))
    later = time.monotonic() + 1.1
    monkeypatch.setattr(time, "monotonic", lambda: later)
    assert reader.read(pid, 0.0).memory_limit == 32 * MIB


def test_groups_of_an_old_process_are_read_again_after_five_seconds(
    recorded: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host may move a process to another group at any time, also one that has run for days."""
    recorded.mount("cgroup2", "", "rw")
    for group, limit in (("a", 64), ("b", 32)):
        recorded.write(group, v2(memory_max=limit * MIB))
    recorded.join("0::/a\n")
    reader = recorded.reader()
    pid = os.getpid()
    assert reader.read(pid, 0.0).memory_limit == 64 * MIB
    recorded.join("0::/b\n")
    later = time.clock_gettime(time.CLOCK_BOOTTIME) + 5.1
    monkeypatch.setattr(time, "clock_gettime", lambda _: later)
    assert reader.read(pid, 0.0).memory_limit == 32 * MIB


def test_limits_are_known_while_no_descriptor_is_free(
    recorded: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are the machine's limits. The available memory is unknown."""
    reader = recorded.reader()

    def refuse(*_: object) -> Any:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(psutil, "virtual_memory", refuse)
    for each in (module, kernel_files):
        monkeypatch.setattr(each, "read_text", refuse)
    found = reader.own()
    assert found == Limits(cpu_limit=CORES)
    assert reader.usable_bytes(found) == PHYSICAL
