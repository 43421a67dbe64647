"""Members that end while the root of their backend runs."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from monitor_plugin.domain.exits import make_member_end
from monitor_plugin.domain.models import MemberEnd
from monitor_plugin.processes import member_ends
from monitor_plugin.processes.member_ends import MemberEndFinder
from monitor_plugin.processes.member_pidfds import MemberPidfds
from monitor_plugin.processes.members import Members, MemberTable
from monitor_plugin.processes.process import keeps_exit_codes
from monitor_plugin.processes.process_table import (
    TICKS_PER_SECOND,
    ProcessRow,
    ProcessSnapshot,
    read_row,
)

from ..support import Spawner, eventually, members_of

pytestmark = pytest.mark.once

# Starts a child for each line of input, which is the text of a shell script, and prints its PID.
# The line `reap` waits for all children that have ended.
PARENT = """
import os, subprocess, sys
children = []  # otherwise `Popen` waits for them
for line in sys.stdin:
    if line == "reap\\n":
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            pass
        print("reaped", flush=True)
    else:
        children.append(subprocess.Popen(["sh", "-c", line]))
        print(children[-1].pid, flush=True)
"""


class Family:
    """A parent whose children a test starts, ends and reaps, and what is found of their ends."""

    def __init__(self, spawner: Spawner) -> None:
        self.parent = spawner.python(PARENT, stdin=subprocess.PIPE)
        self.members = members_of(self.parent.pid)
        self.finder = MemberEndFinder()
        self.pidfds = MemberPidfds()
        self.table = MemberTable(pidfds=self.pidfds)
        self.table.track(self.members)

    def send(self, line: str) -> str:
        assert self.parent.stdin
        assert self.parent.stdout
        self.parent.stdin.write(line + "\n")
        self.parent.stdin.flush()
        return self.parent.stdout.readline().strip()

    def start(self, script: str) -> int:
        return int(self.send(script))

    def start_sleeper(self) -> int:
        pid = self.start("exec sleep 1000")
        eventually(lambda: (row := read_row(pid)) and row.name == "sleep")
        return pid

    def kill(self, pid: int, number: int = signal.SIGKILL) -> None:
        os.kill(pid, number)
        self.wait_ended(pid)

    def wait_ended(self, pid: int) -> None:
        eventually(lambda: (row := read_row(pid)) and row.is_zombie)

    def reap(self) -> None:
        assert self.send("reap") == "reaped"

    def find(self, is_stopping: bool = False) -> list[MemberEnd]:
        self.table.rescan(self.members)
        return self.finder.find(self.members, is_stopping)


@pytest.fixture
def family(spawner: Spawner) -> Iterator[Family]:
    family = Family(spawner)
    yield family
    family.pidfds.close()


def test_a_killed_member_is_found_once(family: Family) -> None:
    """While its parent does not wait for it, and also if its parent does so later."""
    first, second = family.start_sleeper(), family.start_sleeper()
    assert family.find() == []
    family.kill(first)
    assert family.find() == [make_member_end(first, "sleep", -9, is_zombie=True)]
    assert family.find() == []
    family.kill(second, signal.SIGSEGV)
    (end,) = family.find()
    assert (end.pid, end.signal, end.exit_code) == (second, signal.SIGSEGV, None)
    family.reap()
    assert family.find() == []


@pytest.mark.skipif(not keeps_exit_codes(), reason="needs Linux 6.15")
def test_the_cause_is_known_if_the_pidfd_was_held(family: Family, tmp_path: Path) -> None:
    """Also where the parent has waited for the member; a member that exited with 0 is left out."""
    os.mkfifo(tmp_path / "go")
    killed = family.start_sleeper()
    scripts = [f"read x < {tmp_path}/go; exit {code}" for code in (3, 0)]
    for script in scripts:
        child = family.start(script)
        assert family.find() == []
        time.sleep(member_ends._LEAST_AGE_SECONDS)
        assert family.find() == []
        (tmp_path / "go").write_text("\n")
        family.wait_ended(child)
        family.reap()
        ends = [(end.pid, end.exit_code, end.is_zombie) for end in family.find()]
        assert ends == ([(child, 3, False)] if script is scripts[0] else [])
    family.kill(killed)
    family.reap()
    assert family.find() == [make_member_end(killed, "sleep", -9, is_zombie=False)]
    assert family.find() == []


def test_a_short_task_that_fails_is_left_out(family: Family, tmp_path: Path) -> None:
    """Its parent has waited for it, such as a script that tries a command again and again."""
    os.mkfifo(tmp_path / "go")
    child = family.start(f"read x < {tmp_path}/go; exit 3")
    row = read_row(child)
    assert row
    family.table.rescan(family.members)
    age = member_ends._age(family.members.rows()[child, row.started] or row)
    (tmp_path / "go").write_text("\n")
    family.wait_ended(child)
    family.reap()
    ends = family.find()
    assert bool(ends) == (age >= member_ends._LEAST_AGE_SECONDS)  # the latter on a busy machine


def test_a_zombie_is_found_if_it_stays_one(family: Family) -> None:
    """A zombie that its parent waits for soon is none."""
    child, other = family.start("exit 0"), family.start("exit 4")
    family.wait_ended(child)
    family.wait_ended(other)
    assert family.find() == []
    time.sleep(member_ends._ZOMBIE_SECONDS)
    ends = family.find()
    assert {(end.pid, end.exit_code, end.is_zombie) for end in ends} == {
        (child, 0, True),
        (other, 4, True),
    }
    third = family.start("exit 0")
    family.wait_ended(third)
    assert family.find() == []
    family.reap()
    assert family.find() == []
    assert family.find() == []


def test_members_that_end_during_a_shutdown_are_not_found(family: Family) -> None:
    """Nor later, if the shutdown fails."""
    zombie, reaped, late = family.start_sleeper(), family.start_sleeper(), family.start_sleeper()
    assert family.find() == []
    family.kill(reaped)
    family.reap()
    family.kill(zombie)
    assert family.find(is_stopping=True) == []
    family.kill(late)
    assert family.find() == []
    family.reap()
    assert family.find() == []
    last = family.start_sleeper()
    family.kill(last)
    (end,) = family.find()
    assert end.pid == last


# Above the greatest PID, so that no process has it.
ROOT = 2**22 + 1


class Simulated:
    """A backend whose members are given by their ages in seconds, and whose causes are unknown."""

    def __init__(self) -> None:
        now = time.clock_gettime(time.CLOCK_BOOTTIME)
        self._root = ProcessRow(1, ROOT, started=(now - 5000) * TICKS_PER_SECOND)
        self.members = Members((ROOT, self._root.started))
        self._rows: dict[int, ProcessRow] = {}
        self._table = MemberTable(lambda: ProcessSnapshot(time.monotonic(), self._rows))
        self._finder = MemberEndFinder()

    def find(self, **ages: float) -> list[int]:
        now, since_boot = time.monotonic(), time.clock_gettime(time.CLOCK_BOOTTIME)
        self._rows = {ROOT: self._root}
        for name, age in ages.items():
            started = round((since_boot - age) * TICKS_PER_SECOND)
            row = ProcessRow(ROOT, ROOT, started, read_at=now, name="sh")
            self._rows[ROOT + int(name[1:])] = row
        self._table.rescan(self.members)
        return [end.pid - ROOT for end in self._finder.find(self.members, is_stopping=False)]


def test_a_member_that_is_gone_for_an_unknown_cause_is_found_if_it_was_no_short_task() -> None:
    """It is listed by the next call, as the root may end as well."""
    backend = Simulated()
    assert backend.find(p1=0.5, p2=2.0) == []
    assert backend.find() == []
    assert backend.find() == [2]
    assert backend.find() == []


def test_repeated_ends_are_found_only_at_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """A script that starts a program every minute does not fill the log of events."""
    backend = Simulated()
    found = []
    for number in range(1, 30):
        found += backend.find(**{f"p{number}": 60.0})
    found += [*backend.find(), *backend.find()]
    assert found == [1, 2, 3]
    monkeypatch.setattr(member_ends, "_QUIET_SECONDS", 0.0)
    assert [*backend.find(p40=60.0), *backend.find(), *backend.find()] == [40]


def test_the_last_end_before_a_pause_says_so(family: Family) -> None:
    """Another signal is another kind of end."""
    children = [family.start_sleeper() for _ in range(12)]
    assert family.find() == []
    for child in children:
        family.kill(child)
    ends = family.find()
    assert [end.pauses for end in ends] == [False] * 9 + [True]
    other = family.start_sleeper()
    family.kill(other, signal.SIGTERM)
    assert [end.signal for end in family.find()] == [signal.SIGTERM]


def test_the_end_of_the_root_is_not_found(family: Family) -> None:
    """It is the exit of the backend."""
    assert family.find() == []
    family.parent.kill()
    os.waitid(os.P_PID, family.parent.pid, os.WEXITED | os.WNOWAIT)
    assert family.find() == []
