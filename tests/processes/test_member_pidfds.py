"""Pidfds of members."""

from __future__ import annotations

import subprocess

import psutil
import pytest

from monitor_plugin.processes import member_pidfds
from monitor_plugin.processes.member_pidfds import MemberPidfds
from monitor_plugin.processes.members import Members, MemberTable
from monitor_plugin.processes.process import keeps_exit_codes
from monitor_plugin.processes.process_table import ProcessIdentity, read_row, take_snapshot

from ..support import Spawner, count_pidfds, eventually, members_of

pytestmark = pytest.mark.skipif(not keeps_exit_codes(), reason="needs Linux 6.15")


def held(pidfds: MemberPidfds) -> list[ProcessIdentity]:
    return list(pidfds._pidfds)


def sleeper(spawner: Spawner) -> ProcessIdentity:
    return members_of(spawner.sleeper().pid).root


def test_few_pidfds_are_held(spawner: Spawner, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pidfd that is released makes room for another one."""
    monkeypatch.setattr(member_pidfds, "max_member_pidfds", lambda: 2)
    before, pidfds = count_pidfds(), MemberPidfds()
    first, second, third = (sleeper(spawner) for _ in range(3))
    for each in (first, second, second, third):
        pidfds.hold(each)
    assert held(pidfds) == [first, second]
    assert count_pidfds() == before + 2
    assert pidfds.release(first) is None  # it runs
    pidfds.hold(third)
    assert held(pidfds) == [second, third]
    pidfds.close()
    pidfds.hold(first)
    assert held(pidfds) == []
    assert count_pidfds() == before


def test_no_pidfd_of_another_process_is_held(spawner: Spawner) -> None:
    """The PID may have been reused since the snapshot, or may be free."""
    pidfds = MemberPidfds()
    pid, started = sleeper(spawner)
    pidfds.hold((pid, started - 1))
    pidfds.hold((2**22 + 1, 1.0))
    assert held(pidfds) == []


def test_exit_code_is_known_after_the_process_was_waited_for(spawner: Spawner) -> None:
    """A process that was killed has the negative number of the signal."""
    pidfds = MemberPidfds()
    process = spawner.sleeper()
    identity = members_of(process.pid).root
    pidfds.hold(identity)
    process.kill()
    process.wait()
    assert pidfds.release(identity) == -9
    assert pidfds.release(identity) is None


def test_table_holds_the_pidfds_of_registered_backends_alone(spawner: Spawner) -> None:
    """It releases them with the backend; those of roots are held elsewhere."""
    process = spawner.process("sh", "-c", "sleep 1000 & echo $!; wait")
    assert process.stdout
    child = int(process.stdout.readline())
    row = read_row(child)
    assert row
    pidfds = MemberPidfds()
    table, members = MemberTable(pidfds=pidfds), members_of(process.pid)
    table.rescan(members)
    assert held(pidfds) == []
    members = Members(members.root, [(child, row.started)])  # known before the first snapshot
    for release in (table.forget, table.track_ended):
        table.track(members)
        table.snapshot(0)
        assert held(pidfds) == [(child, row.started)]
        release(members)
        assert held(pidfds) == []
        members = members_of(process.pid)


def test_no_pidfd_is_held_of_a_backend_that_is_forgotten_during_the_snapshot(
    spawner: Spawner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be held until the monitor is closed."""
    process = spawner.process("sh", "-c", "sleep 1000 & echo $!; wait")
    assert process.stdout
    assert process.stdout.readline()
    pidfds = MemberPidfds()
    table, members = MemberTable(pidfds=pidfds), members_of(process.pid)
    table.track(members)
    hold = pidfds.hold

    def forget_and_hold(identity: ProcessIdentity) -> None:
        table.forget(members)
        hold(identity)

    monkeypatch.setattr(pidfds, "hold", forget_and_hold)
    table.snapshot(0)
    assert held(pidfds) == []


def test_an_older_snapshot_releases_no_pidfd(spawner: Spawner) -> None:
    """It may lack a process that a newer one has shown to another thread."""
    process = spawner.python(
        "import os, time; input(); os.fork(); time.sleep(1000)", stdin=subprocess.PIPE
    )
    older = take_snapshot()
    snapshots = [older]
    pidfds = MemberPidfds()
    table = MemberTable(lambda: snapshots[-1], pidfds)
    members = members_of(process.pid)
    table.track(members)
    assert process.stdin
    process.stdin.write("\n")
    process.stdin.flush()
    eventually(lambda: psutil.Process(process.pid).children())
    snapshots.append(take_snapshot())
    table.rescan(members)
    assert len(held(pidfds)) == 1
    snapshots.append(older)
    table.snapshot(0)
    assert len(held(pidfds)) == 1
    pidfds.close()
