"""Pidfds of members."""

from __future__ import annotations

import os

import pytest

from monitor_plugin.processes import member_pidfds
from monitor_plugin.processes.member_pidfds import MemberPidfds
from monitor_plugin.processes.members import Members, MemberTable
from monitor_plugin.processes.process import keeps_exit_codes
from monitor_plugin.processes.process_table import ProcessIdentity, read_row

from ..support import Spawner, descriptors, eventually, members_of

pytestmark = pytest.mark.skipif(not keeps_exit_codes(), reason="needs Linux 6.15")


def count_pidfds() -> int:
    return sum("pidfd" in target for _, target in descriptors())


def sleeper(spawner: Spawner) -> ProcessIdentity:
    return members_of(spawner.sleeper().pid).root


def test_few_pidfds_are_held(spawner: Spawner, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pidfd that is released makes room for another one."""
    monkeypatch.setattr(member_pidfds, "max_member_pidfds", lambda: 2)
    before, pidfds = count_pidfds(), MemberPidfds()
    first, second, third = (sleeper(spawner) for _ in range(3))
    for each in (first, second, second, third):
        pidfds.hold(each)
    assert pidfds.held() == [first, second]
    assert count_pidfds() == before + 2
    assert pidfds.release(first) is None  # it runs
    pidfds.hold(third)
    assert pidfds.held() == [second, third]
    pidfds.close()
    pidfds.hold(first)
    assert pidfds.held() == []
    assert count_pidfds() == before


def test_no_pidfd_of_another_process_is_held(spawner: Spawner) -> None:
    """The PID may have been reused since the snapshot, or may be free."""
    pidfds = MemberPidfds()
    pid, started = sleeper(spawner)
    pidfds.hold((pid, started - 1))
    pidfds.hold((2**22 + 1, 1.0))
    assert pidfds.held() == []


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
    table, members = MemberTable(), members_of(process.pid)
    table.rescan(members)
    assert table._pidfds.held() == []
    members = Members(members.root, [(child, row.started)])  # known before the first snapshot
    for release in (table.forget, table.track_ended):
        table.track(members)
        table.snapshot(0)
        assert table._pidfds.held() == [(child, row.started)]
        release(members)
        assert table._pidfds.held() == []
        members = members_of(process.pid)
    table._pidfds.hold((child, row.started))  # as an update at the same time as `forget` may do
    os.kill(child, 9)
    process.wait()
    eventually(lambda: read_row(child) is None)
    table.snapshot(0)
    assert table._pidfds.held() == []
