"""Tests of the rules that decide which processes are members of a backend."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor_plugin.processes.members import Members, MemberTable
from monitor_plugin.processes.process_table import (
    TICKS_PER_SECOND,
    ProcessRow,
    ProcessSnapshot,
    read_row,
)

from ..support import Spawner, eventually, is_running, members_of, read_line

pytestmark = pytest.mark.once

MIB = 1024 * 1024


def snapshot_of(taken_at: float, **rows: tuple[int, int, int]) -> ProcessSnapshot:
    """Return a snapshot of processes, given as `pN=(parent, session, group)`."""
    return ProcessSnapshot(
        taken_at,
        {
            int(name[1:]): ProcessRow(parent, session, 1.0, group=group)
            for name, (parent, session, group) in rows.items()
        },
    )


def pids(members: Members) -> list[int]:
    return [pid for pid, _ in members.identities()]


def test_members_are_found_by_session_and_process_group() -> None:
    """Those that any member leads count; those in which a member only is do not."""
    members = Members((10, 1.0))
    members.update(
        snapshot_of(
            1.0,
            p1=(0, 1, 1),
            p2=(1, 2, 2),
            p10=(2, 2, 10),  # leads a process group in the session of its parent
            p11=(1, 2, 10),  # an orphan of the group
            p12=(2, 2, 2),  # a stranger in the session
            p13=(10, 13, 13),  # a child that leads a session
            p14=(1, 13, 14),  # an orphan of that session
            p15=(1, 15, 14),  # impossible: a group spans no sessions
        )
    )
    assert sorted(pids(members)) == [10, 11, 13, 14, 15]


@given(st.dictionaries(st.integers(1, 30), st.integers(0, 30)), st.integers(1, 30))
def test_descendants_are_those_whose_parents_lead_to_the_root(
    parents: dict[int, int], root: int
) -> None:
    """The search ends and finds each process once, also where parents form a circle."""
    rows = {pid: ProcessRow(parent, pid, 0.0, group=pid) for pid, parent in parents.items()}
    snapshot, members = ProcessSnapshot(0.0, rows), Members((root, 0.0))
    members.update(snapshot)
    expected = {root} & rows.keys()
    while more := {pid for pid, parent in parents.items() if parent in expected} - expected:
        expected |= more
    assert sorted(members.pids_in(snapshot)) == sorted(expected)


def test_a_pid_that_led_nothing_is_forgotten() -> None:
    """A later process with the PID of a member may lead a group, and end."""
    members = Members((10, 1.0))
    members.update(snapshot_of(1.0, p10=(1, 1, 1), p11=(10, 1, 1)))
    members.update(snapshot_of(2.0, p10=(1, 1, 1)))
    members.update(snapshot_of(3.0, p10=(1, 1, 1), p12=(1, 11, 11)))
    assert pids(members) == [10]


def test_members_that_were_seen_stay_members() -> None:
    """Neither the end of the parent nor that of the leader of the session removes a member."""
    members = Members((10, 1.0))
    members.update(snapshot_of(1.0, p10=(1, 10, 10), p11=(10, 11, 11), p12=(11, 12, 12)))
    members.update(snapshot_of(2.0, p12=(1, 12, 12), p13=(1, 10, 10), p14=(1, 11, 11)))
    assert sorted(pids(members)) == [12, 13, 14]
    members.update(snapshot_of(3.0, p14=(1, 11, 11), p15=(1, 12, 12), p16=(1, 10, 10)))
    assert sorted(pids(members)) == [14, 15, 16]


def test_a_pid_that_is_used_again_is_no_member() -> None:
    """Neither the new process nor what the new process leads or started belongs to the backend."""
    members = Members((10, 1.0))
    members.update(snapshot_of(1.0, p10=(1, 10, 10), p11=(10, 11, 11)))
    later = snapshot_of(2.0, p10=(1, 10, 10), p11=(1, 11, 11), p12=(10, 10, 10), p13=(11, 11, 11))
    rows = {**later.rows, 10: later.rows[10]._replace(started=2.0)}
    members.update(ProcessSnapshot(2.0, rows))
    assert pids(members) == [11, 13]
    members.update(snapshot_of(3.0, p12=(1, 10, 10)))
    assert pids(members) == []


def test_an_older_snapshot_is_ignored() -> None:
    """Two threads may finish their snapshots in any order."""
    members = Members((10, 1.0))
    members.update(snapshot_of(2.0, p10=(1, 10, 10), p11=(10, 10, 10)))
    members.update(snapshot_of(1.0, p10=(1, 10, 10)))
    assert pids(members) == [10, 11]


def test_a_process_of_another_backend_is_no_member_of_an_ended_one() -> None:
    """That of a registered backend is its own; of two ended ones, that of the first to end."""
    rows = {
        "p10": (1, 10, 10),  # the launcher
        "p11": (10, 10, 10),  # its server
        "p12": (11, 10, 10),  # a worker of the server
        "p13": (10, 13, 13),  # a helper, which is a backend, too
        "p14": (13, 14, 14),
    }
    taken_at = itertools.count(1.0)
    table = MemberTable(lambda: snapshot_of(next(taken_at), **rows))
    launcher, helper, server = (Members((pid, 1.0)) for pid in (10, 13, 11))
    table.track(launcher)
    table.track(helper)
    table.snapshot(0.0)
    assert sorted(pids(launcher)) == [10, 11, 12, 13, 14]
    del rows["p10"], rows["p13"]
    rows.update(p11=(1, 10, 10), p14=(1, 14, 14))
    for each in (launcher, helper):
        table.track_ended(each)
    table.snapshot(0.0)
    assert (sorted(pids(launcher)), pids(helper)) == ([11, 12, 14], [])
    table.track(server)
    table.snapshot(0.0)
    assert (pids(launcher), pids(server)) == ([14], [11, 12])
    rows["p15"] = (12, 10, 10)  # a new worker of the server, in the session of the launcher
    table.rescan(launcher)
    assert (pids(launcher), pids(server)) == ([14], [11, 12, 15])
    table.forget(server)
    table.rescan(launcher)
    assert sorted(pids(launcher)) == [11, 12, 14, 15]


def test_another_backend_in_the_roots_process_group_is_no_member() -> None:
    """Nor are its children. But a backend that the root has started belongs to both."""
    rows = {
        "p10": (1, 1, 10),
        "p11": (1, 1, 10),  # another backend, which the host put into the group
        "p12": (11, 1, 10),
        "p13": (10, 1, 10),  # a child, which is registered, too
    }
    taken_at = itertools.count(1.0)
    table = MemberTable(lambda: snapshot_of(next(taken_at), **rows))
    first, other, child = (Members((pid, 1.0)) for pid in (10, 11, 13))
    table.track(first)
    table.snapshot(0.0)
    assert sorted(pids(first)) == [10, 11, 12, 13]
    table.track(other)
    table.track(child)
    table.snapshot(0.0)
    assert [sorted(pids(each)) for each in (first, other, child)] == [[10, 13], [11, 12], [13]]
    table.rescan(first)
    assert sorted(pids(first)) == [10, 13]


def test_a_registration_that_replaces_another_one_keeps_all_members() -> None:
    """While both are tracked, the two roots belong to one backend."""
    rows = {"p10": (1, 10, 10), "p11": (10, 10, 10)}  # a launcher and its server
    taken_at = itertools.count(1.0)
    table = MemberTable(lambda: snapshot_of(next(taken_at), **rows))
    launcher = Members((10, 1.0))
    table.track(launcher)
    table.snapshot(0.0)
    server = Members((11, 1.0), launcher.identities())
    table.track(server)
    table.snapshot(0.0)
    table.forget(launcher)
    table.snapshot(0.0)
    assert pids(server) == [11, 10]


# Leads a process group but no session. Starts a process that starts another, and prints all PIDs.
WITH_MIDDLE = """
import os, time
os.setpgid(0, 0)
reader, writer = os.pipe()
middle = os.fork()
if not middle:
    last = os.fork()
    if last:
        os.write(writer, b"%d" % last)
    time.sleep(1000)
print(os.getpid(), middle, int(os.read(reader, 100)), flush=True)
time.sleep(1000)
"""


def test_a_process_of_the_roots_group_is_a_member_after_its_parent_was_killed(
    spawner: Spawner,
) -> None:
    """So under a host that makes process groups and no sessions."""
    process = spawner.python(WITH_MIDDLE, start_new_session=False)
    root, middle, last = map(int, read_line(process).split())
    assert os.getsid(root) != root
    os.kill(middle, signal.SIGKILL)
    eventually(lambda: not is_running(middle))
    assert MemberTable().pids(members_of(root)) == [root, middle, last]


@pytest.fixture
def make_group() -> Iterator[Callable[[], Path]]:
    """Make control groups; afterwards remove them."""
    made: list[Path] = []

    def make() -> Path:
        mounts = (line.split() for line in Path("/proc/self/mounts").read_text().splitlines())
        for mount in [Path(each[1]) for each in mounts if each[2] in ("cgroup2", "cgroup")]:
            group = mount / f"monitor-plugin-test-{os.getpid()}-{len(made)}"
            try:
                group.mkdir()
            except OSError:
                continue
            made.append(group)
            return group
        pytest.skip("no control group can be made here")

    yield make
    for group in made:
        for pid in (group / "cgroup.procs").read_text().split():
            os.kill(int(pid), signal.SIGKILL)
        eventually(partial(_remove_empty, group))


def _remove_empty(group: Path) -> bool:
    if (group / "cgroup.procs").read_text():
        return False
    group.rmdir()
    return True


# Moves itself into a control group, and starts a daemon there, whose PID it prints.
WITH_DAEMON = """
import os, sys, time
with open(sys.argv[1] + "/cgroup.procs", "w") as file:
    file.write("0")
reader, writer = os.pipe()
if not os.fork():
    os.setsid()
    if not os.fork():
        os.write(writer, b"%d" % os.getpid())
        time.sleep(1000)
    os._exit(0)
os.wait()
print(int(os.read(reader, 100)), flush=True)
time.sleep(1000)
"""


def test_processes_of_the_backends_own_control_group_are_members(
    spawner: Spawner, make_group: Callable[[], Path]
) -> None:
    """A daemon is in no session of a member, and is no descendant of one."""
    process = spawner.python(WITH_DAEMON, str(make_group()))
    daemon = int(read_line(process))
    table, members = MemberTable(), members_of(process.pid)
    table.track(members)
    table.snapshot()
    assert table.pids(members) == [process.pid, daemon]
    process.kill()
    process.wait()
    table.snapshot(0)
    assert pids(members) == [daemon]


def _wait_for_later_tick(row: ProcessRow) -> None:
    """Wait until a process that starts has a later start time, which the kernel counts in ticks."""
    eventually(lambda: time.clock_gettime(time.CLOCK_BOOTTIME) * TICKS_PER_SECOND > row.started + 1)


@pytest.mark.parametrize("stranger", ["older process", "another backend"])
def test_a_control_group_that_others_share_does_not_count(
    spawner: Spawner, make_group: Callable[[], Path], stranger: str
) -> None:
    """Otherwise a stop would end processes that do not belong to the backend."""
    group = make_group()
    first = spawner.sleeper()
    (group / "cgroup.procs").write_text(str(first.pid))
    row = read_row(first.pid)
    assert row
    _wait_for_later_tick(row)
    process = spawner.python(WITH_DAEMON, str(group))
    daemon = int(read_line(process))
    table, members = MemberTable(), members_of(process.pid)
    table.track(members)
    if stranger == "another backend":
        table.track(Members((first.pid, row.started)))
    table.snapshot()
    assert table.pids(members) == [process.pid]
    os.kill(daemon, signal.SIGKILL)


def test_backend_has_its_control_group_beside_what_the_last_one_left_behind(
    spawner: Spawner, make_group: Callable[[], Path]
) -> None:
    """So in a unit with `KillMode=process`. What is left behind stays the ended backend's."""
    group = make_group()
    old = spawner.python(WITH_DAEMON, str(group))
    left = int(read_line(old))
    table, old_members = MemberTable(), members_of(old.pid)
    table.track(old_members)
    table.snapshot()
    old.kill()
    old.wait()
    table.track_ended(old_members)
    row = read_row(left)
    assert row
    _wait_for_later_tick(row)
    new = spawner.python(WITH_DAEMON, str(group))
    daemon = int(read_line(new))
    new_members = members_of(new.pid)
    table.track(new_members)
    table.snapshot(0.0)
    assert pids(new_members) == [new.pid, daemon]
    assert pids(old_members) == [left]


def test_session_of_a_user_is_no_backends_own(
    spawner: Spawner, make_group: Callable[[], Path]
) -> None:
    """The user may start further processes there."""
    session = make_group() / "session-1.scope"
    session.mkdir()
    process = spawner.python(WITH_DAEMON, str(session))
    daemon = int(read_line(process))
    try:
        table, members = MemberTable(), members_of(process.pid)
        table.track(members)
        table.snapshot()
        assert pids(members) == [process.pid]
    finally:
        os.kill(daemon, signal.SIGKILL)
        process.kill()
        process.wait()
        eventually(partial(_remove_empty, session))


def test_control_groups_do_not_count_where_the_backends_are_not_known(
    spawner: Spawner, make_group: Callable[[], Path]
) -> None:
    """So for a process that a host started and that is not registered: see `ProcessTrees`."""
    process = spawner.python(WITH_DAEMON, str(make_group()))
    daemon = int(read_line(process))
    assert MemberTable().pids(members_of(process.pid)) == [process.pid]
    os.kill(daemon, signal.SIGKILL)


def test_a_control_group_counts_again_once_a_registration_was_replaced(
    spawner: Spawner, make_group: Callable[[], Path]
) -> None:
    """A launcher that takes the place of its server is no other backend."""
    launcher = spawner.python(
        WITH_DAEMON.replace("print(", "child = os.fork()\nif child: print(child, "),
        str(make_group()),
    )
    server, daemon = map(int, read_line(launcher).split())
    table, old, new = MemberTable(), members_of(server), members_of(launcher.pid)
    table.track(old)
    table.track(new)
    table.snapshot(0.0)
    table.forget(old)
    table.snapshot(0.0)
    assert sorted(pids(new)) == sorted([launcher.pid, server, daemon])
    os.kill(daemon, signal.SIGKILL)


def test_a_backend_that_is_registered_late_is_no_member_of_another_one(
    spawner: Spawner, make_group: Callable[[], Path]
) -> None:
    """Until then, a snapshot shows it in a control group that seems to be the first one's alone.

    The group does not count any more then, also when the late backend has left a process there.
    """
    group = make_group()
    first = spawner.process("sleep", "1000")
    (group / "cgroup.procs").write_text(str(first.pid))
    row = read_row(first.pid)
    assert row
    _wait_for_later_tick(row)
    table, members = MemberTable(), members_of(first.pid)
    table.track(members)
    late = spawner.python(WITH_DAEMON, str(group))
    daemon = int(read_line(late))
    table.snapshot(0.0)
    assert late.pid in pids(members)
    late_members = members_of(late.pid)
    table.track(late_members)
    table.snapshot(0.0)
    assert late.pid not in pids(members)
    os.kill(daemon, signal.SIGKILL)
    daemon = _fork_into(spawner, group)
    table.forget(late_members)
    late.kill()
    late.wait()
    table.snapshot(0.0)
    assert daemon not in pids(members)
    os.kill(daemon, signal.SIGKILL)


def _fork_into(spawner: Spawner, group: Path) -> int:
    """Start a process in a control group; return its PID."""
    process = spawner.sleeper()
    (group / "cgroup.procs").write_text(str(process.pid))
    return process.pid


def test_the_monitors_own_control_group_does_not_count(
    spawner: Spawner, make_group: Callable[[], Path]
) -> None:
    """The monitor may be in a group below that of the backend, and be younger than it."""
    group = make_group()
    process = spawner.python(WITH_DAEMON, str(group))
    daemon = int(read_line(process))
    code = (
        "import os, sys\n"
        "from monitor_plugin.processes.members import Members, MemberTable\n"
        "from monitor_plugin.processes.process_table import read_row\n"
        "open(sys.argv[2] + '/cgroup.procs', 'w').write('0')\n"
        "pid = int(sys.argv[1])\n"
        "table, members = MemberTable(), Members((pid, read_row(pid).started))\n"
        "print(*table.pids(members))"
    )
    (group / "below").mkdir()
    try:
        monitor = spawner.python(code, str(process.pid), str(group / "below"))
        assert read_line(monitor) == str(process.pid)
        monitor.wait(60)
    finally:
        eventually(lambda: not (group / "below" / "cgroup.procs").read_text())
        (group / "below").rmdir()
    os.kill(daemon, signal.SIGKILL)


def test_members_are_the_root_and_its_descendants(spawner: Spawner) -> None:
    """The root comes first, then children and their children; no other process is a member."""
    code = (
        "import os, time\n"
        "if not os.fork():\n"
        "    if not os.fork(): print('ready', flush=True)\n"
        "time.sleep(1000)"
    )
    stranger, process = spawner.sleeper(), spawner.python(code)
    assert read_line(process) == "ready"
    members = MemberTable().pids(members_of(process.pid))
    assert members[0] == process.pid
    assert len(members) == 3
    assert set(members) == {p.pid for p in psutil.Process(process.pid).children(recursive=True)} | {
        process.pid
    }
    assert stranger.pid not in members


def test_a_backend_that_started_after_the_snapshot_has_its_root(spawner: Spawner) -> None:
    """A new snapshot is taken for it; a root that does not run is listed all the same."""
    table = MemberTable()
    table.snapshot()
    sleeper = spawner.sleeper()
    assert table.pids(members_of(sleeper.pid)) == [sleeper.pid]
    assert table.pids(members_of(2**22 + 1)) == [2**22 + 1]


def test_a_snapshot_is_used_for_a_second(spawner: Spawner) -> None:
    """A child that started after a snapshot is in the next one."""
    table = MemberTable()
    table.snapshot()
    members = members_of(os.getpid())
    table.track(members)
    table.snapshot(0)
    sleeper = spawner.sleeper()
    assert sleeper.pid not in table.pids(members)
    eventually(lambda: sleeper.pid in table.pids(members))


# Takes so many MiB for each line.
TAKES_PER_LINE = """
import os, sys
kept = []
print("ready", flush=True)
for line in sys.stdin:
    kept.append(bytearray(os.urandom(4096)) * (int(line) * 256))
    print("took", flush=True)
"""


def test_rss_of_members_is_read_now(spawner: Spawner) -> None:
    """Processes that started or took memory after the last snapshot count."""
    table = MemberTable()
    table.snapshot()
    process = spawner.python(TAKES_PER_LINE, stdin=subprocess.PIPE)
    members = members_of(process.pid)
    table.track(members)
    assert process.stdin
    assert read_line(process) == "ready"
    first = table.read_rss(members)
    assert first
    seen = members.rss()
    assert seen
    assert seen[0] == pytest.approx(first, rel=0.3)
    process.stdin.write("50\n")
    process.stdin.flush()
    assert read_line(process) == "took"
    assert (table.read_rss(members) or 0) > first + 49 * MIB
    process.kill()
    process.wait()
    assert table.read_rss(members) is None
    assert table.read_rss(Members((2**22 + 1, 1.0))) is None
