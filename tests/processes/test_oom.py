from __future__ import annotations

import os
from pathlib import Path

import pytest

from monitor_plugin.processes.oom import OomKillCounter
from monitor_plugin.processes.process_table import read_row

pytestmark = pytest.mark.once

PID = 5


class FakeGroups:
    """Files as /proc and /sys/fs/cgroup have them.

    Args:
        folder: the folder for these files.
        root: the group that the mounts begin with.
    """

    def __init__(self, folder: Path, root: str = "/") -> None:
        self.mount, self._proc = folder / "cgroup", folder / "proc"
        (self._proc / str(PID)).mkdir(parents=True)
        (self._proc / "self").mkdir()
        (self._proc / "self" / "mountinfo").write_text(
            f"30 20 0:26 {root} {self.mount} rw,nosuid shared:9 - cgroup2 cgroup2 rw\n"
            f"31 30 0:27 {root} {self.mount}/memory rw - cgroup cgroup rw,cpu,memory\n"
        )
        self.show_process()

    def show_process(self, flags: int = 0, pending: int = 0) -> None:
        process = self._proc / str(PID)
        (process / "stat").write_text(f"{PID} (a) S 1 5 5 0 -1 {flags} 0 0\n")
        (process / "status").write_text(f"Name:\ta\nSigPnd:\t{0:016x}\nShdPnd:\t{pending:016x}\n")

    def show_membership(self, lines: str) -> None:
        (self._proc / str(PID) / "cgroup").write_text(lines)

    def set_count(self, path: str, count: int) -> None:
        file = self.mount / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"oom 9\noom_kill {count}\noom_group_kill 0\n")

    def counter(self) -> OomKillCounter:
        return OomKillCounter(PID, proc=self._proc)


@pytest.fixture
def groups(tmp_path: Path) -> FakeGroups:
    return FakeGroups(tmp_path)


VERSIONS = pytest.mark.parametrize(
    ("membership", "file"),
    [
        ("0::/a\n", "a/memory.events"),
        ("4:cpu,memory:/a\n0::/none\n", "memory/a/memory.oom_control"),
    ],
    ids=["version 2", "version 1"],
)


@VERSIONS
def test_kills_are_counted_in_both_versions(groups: FakeGroups, membership: str, file: str) -> None:
    """Each kill is returned by one update; a count that falls is no kill."""
    groups.show_membership(membership)
    groups.set_count(file, 3)
    counter = groups.counter()
    assert counter.group == str((groups.mount / file).parent)
    assert counter.update() == counter.new_kills() == 0
    groups.set_count(file, 5)
    assert counter.new_kills() == 2
    assert counter.update() == 2
    assert counter.update() == counter.new_kills() == 0
    groups.set_count(file, 0)
    assert counter.update() == 0


def test_kills_of_an_earlier_group_do_not_count(groups: FakeGroups) -> None:
    """A process may be moved to another group, or to one without a count."""
    groups.show_membership("0::/a\n")
    groups.set_count("a/memory.events", 1)
    groups.set_count("b/memory.events", 7)
    counter = groups.counter()
    groups.show_membership("0::/b\n")
    assert counter.update() == 0
    groups.set_count("b/memory.events", 8)
    assert counter.update() == 1
    groups.show_membership("0::/none\n")
    assert counter.update() == 0
    assert (counter.group, counter.new_kills()) == (None, 0)


@pytest.mark.parametrize(
    "state", [{"flags": 0x4}, {"pending": 1 << 8}], ids=["ending", "SIGKILL pending"]
)
def test_a_kill_of_the_process_itself_stays_new_until_its_end(
    groups: FakeGroups, state: dict[str, int]
) -> None:
    """A large process takes seconds to end, and version 1 then shows it in the root group."""
    file = "memory/a/memory.oom_control"
    groups.show_membership("4:memory:/a\n")
    groups.set_count(file, 0)
    groups.set_count("memory/memory.oom_control", 0)
    counter = groups.counter()
    groups.set_count(file, 1)
    groups.show_process(**state)
    assert counter.update() == 0
    groups.show_membership("4:memory:/\n")
    for _ in range(3):
        assert counter.update() == 0
    assert counter.new_kills() == 1


@pytest.mark.parametrize(
    ("line", "file"),
    [("0::", "memory.events"), ("4:memory:", "memory/memory.oom_control")],
    ids=["version 2", "version 1"],
)
def test_a_group_is_found_where_the_mount_begins_at_the_containers(
    tmp_path: Path, line: str, file: str
) -> None:
    """A group of another container is not found: its processes would seem to be in this one."""
    groups = FakeGroups(tmp_path, root="/docker/ID")
    groups.set_count(file, 2)
    groups.show_membership(f"{line}/docker/ID\n")
    counter = groups.counter()
    assert counter.group == str((groups.mount / file).parent)
    groups.set_count(file, 3)
    assert counter.update() == 1
    groups.show_membership(f"{line}/docker/OTHER\n")
    assert groups.counter().group is None


def test_process_without_a_control_group_has_no_kills(groups: FakeGroups) -> None:
    """Neither has a process that has ended, or a group whose count cannot be read."""
    counter = groups.counter()
    assert (counter.group, counter.update(), counter.new_kills()) == (None, 0, 0)
    groups.show_membership("0::/a\n")
    groups.set_count("a/memory.events", 0)
    assert counter.update() == 0
    assert counter.group
    (groups.mount / "a" / "memory.events").write_text("oom_kill none\n")
    assert counter.update() == counter.new_kills() == 0


def test_group_with_older_processes_or_the_monitor_is_shared(groups: FakeGroups) -> None:
    """Members may be older; of a group whose processes cannot be read nothing is known."""
    groups.show_membership("0::/a\n")
    groups.set_count("a/memory.events", 0)
    counter, procs = groups.counter(), groups.mount / "a" / "cgroup.procs"
    parent = read_row(os.getppid())
    assert parent
    root, older = (PID, parent.started + 1), (os.getppid(), parent.started)
    assert counter.is_shared(root, ())
    procs.write_text(f"{os.getppid()}\n")
    assert counter.is_shared(root, ())
    assert not counter.is_shared(root, [older])
    assert not counter.is_shared((PID, parent.started), ())
    procs.write_text(f"{os.getpid()}\n")
    assert counter.is_shared(root, ())
