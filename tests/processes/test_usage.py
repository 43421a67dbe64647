"""The usage of processes and of process trees."""

from __future__ import annotations

import os
import subprocess
import time

import pytest

from monitor_plugin.processes.members import Members, MemberTable
from monitor_plugin.processes.process_table import ProcessRow, ProcessSnapshot
from monitor_plugin.processes.sampler import (
    BASELINE_INTERVAL_SECONDS,
    MIN_MEASURED_SECONDS,
    Sampler,
)
from monitor_plugin.processes.tree_memory import TreeMemory
from monitor_plugin.processes.usage import UsageReader, UsageSnapshot

from ..support import Spawner, eventually, members_of

USABLE_BYTES = 8192
ROW = ProcessRow(1, 1, 5.0, cpu_seconds=3.0, threads=1, rss=4096, vms=8192)

WITH_BUSY_CHILD = """
import os, time
child = os.fork()
while not child:
    pass
print(child, flush=True)
time.sleep(1000)
"""


# For each line of input, a child uses 0.2 s of CPU time and ends. Then it prints `done`. With the
# argument `ignore` it ignores SIGCHLD, so the kernel reaps its children, and no CPU time is added
# to its own.
FORKS_PER_REQUEST = """
import os, signal, sys, time
if sys.argv[1] == "ignore":
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
for line in sys.stdin:
    child = os.fork()
    if not child:
        while time.process_time() < 0.2:
            pass
        os._exit(0)
    try:
        os.waitpid(child, 0)
    except ChildProcessError:
        pass
    print("done", flush=True)
"""


def request(process: subprocess.Popen[str]) -> None:
    """Let a process that forks per request serve a request."""
    assert process.stdin
    assert process.stdout
    process.stdin.write("\n")
    process.stdin.flush()
    assert process.stdout.readline() == "done\n"


class NoBaseline(Sampler):
    """A sampler that knows no CPU time."""

    def __init__(self) -> None:
        pass

    def cpu_percent(self, cpu_seconds: float, now: float) -> None:
        return None


def test_the_cpu_of_a_tree_is_that_of_all_its_members(spawner: Spawner) -> None:
    """A busy child counts, between two snapshots at least a second apart."""
    process = spawner.python(WITH_BUSY_CHILD)
    assert process.stdout
    child = int(process.stdout.readline())
    table, members = MemberTable(), members_of(process.pid)
    table.track(members)
    reader = UsageReader(table)

    def percent() -> float | None:
        usage = reader.read([members])
        assert usage.pids(members) == [process.pid, child]
        tree = usage.tree_usage(usage.pids(members), None, None, None, USABLE_BYTES)
        return tree.cpu_percent if tree else None

    assert percent() is None  # there is no baseline yet

    def working() -> float | None:  # on a busy machine the child may not have run yet
        found = percent()
        return found if found and found > 1 else None

    found = eventually(working)
    assert found is not None
    assert found < 150
    usage = reader.read([members])
    alone = usage.process_usage(process.pid, NoBaseline(), USABLE_BYTES)
    assert alone
    assert alone.cpu_percent is None
    memory = TreeMemory(time.monotonic() - 3, 9, 7, 1, 2, 4, 0, peak_rss=2**50)
    tree = usage.tree_usage(
        usage.pids(members), memory, 8, alone, USABLE_BYTES, peak_rss=memory.peak_rss
    )
    assert tree
    assert (tree.processes, tree.pss, tree.vram, tree.peak_rss) == (2, 7, 8, 2**50)
    assert (tree.anonymous, tree.file, tree.shared, tree.swap) == (1, 2, 4, 0)
    assert tree.memory_age_seconds is not None
    assert tree.memory_age_seconds >= 3
    memory = memory._replace(pss=None)
    unread = usage.tree_usage(usage.pids(members), memory, 8, alone, USABLE_BYTES, peak_rss=1)
    assert unread
    assert (unread.pss, unread.memory_age_seconds) == (None, None)
    assert unread.peak_rss == unread.rss  # a higher RSS that was seen raises the peak


def measure_requests(
    process: subprocess.Popen[str], count: int
) -> tuple[UsageSnapshot, Members, ProcessSnapshot]:
    """Send requests after a first one; return the usage, the members and the baseline."""
    table, members = MemberTable(), members_of(process.pid)
    table.track(members)
    request(process)
    before = table.snapshot(0)
    for _ in range(count):
        request(process)
    time.sleep(MIN_MEASURED_SECONDS)
    return UsageSnapshot(table.snapshot(0), before), members, before


def test_cpu_of_children_that_came_and_went_counts(spawner: Spawner) -> None:
    """It is part of the tree's figures, and not of those of the registered process."""
    process = spawner.python(FORKS_PER_REQUEST, "wait", stdin=subprocess.PIPE)
    usage, members, before = measure_requests(process, 3)
    alone = usage.process_usage(process.pid, NoBaseline(), USABLE_BYTES)
    tree = usage.tree_usage(usage.pids(members), None, None, alone, USABLE_BYTES)
    assert alone
    assert tree
    assert alone.cpu_seconds is not None
    assert tree.cpu_seconds is not None
    assert tree.cpu_percent is not None
    assert tree.cpu_seconds == pytest.approx(alone.cpu_seconds + 0.8, abs=0.1)
    seconds = usage._snapshot.taken_at - before.taken_at
    assert tree.cpu_percent * seconds / 100 == pytest.approx(0.6, abs=0.1)


def test_cpu_of_children_is_lost_if_their_parent_ignores_sigchld(spawner: Spawner) -> None:
    """The kernel adds it to no process; the figure is that of the processes that run."""
    process = spawner.python(FORKS_PER_REQUEST, "ignore", stdin=subprocess.PIPE)
    usage, members, _ = measure_requests(process, 1)
    tree = usage.tree_usage(usage.pids(members), None, None, None, USABLE_BYTES)
    assert tree
    assert tree.cpu_seconds == usage._rows[process.pid].cpu_seconds
    assert tree.cpu_percent is not None
    assert 0 <= tree.cpu_percent < 100


def test_cpu_of_a_zombie_counts_once(spawner: Spawner) -> None:
    """It is the zombie's own until the zombie is waited for, and then its parent's."""
    code = (
        "import os, time\n"
        "child = os.fork()\n"
        "if not child:\n"
        "    while time.process_time() < 0.3: pass\n"
        "    os._exit(0)\n"
        "os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)\n"
        "print('zombie', flush=True)\n"
        "input()\n"
        "os.wait()\n"
        "print('reaped', flush=True)\n"
        "time.sleep(1000)"
    )
    process = spawner.python(code, stdin=subprocess.PIPE)
    assert process.stdin
    assert process.stdout
    table, members = MemberTable(), members_of(process.pid)
    table.track(members)
    snapshots: list[ProcessSnapshot] = []
    trees = []
    for line in ("zombie\n", "reaped\n"):
        assert process.stdout.readline() == line
        usage = UsageSnapshot(table.snapshot(0), snapshots[0] if snapshots else None)
        snapshots.append(usage._snapshot)
        trees.append(usage.tree_usage(usage.pids(members), None, None, None, USABLE_BYTES))
        process.stdin.write("\n")
        process.stdin.flush()
        time.sleep(MIN_MEASURED_SECONDS)
    zombie, reaped = trees
    assert zombie
    assert zombie.cpu_seconds is not None
    assert reaped
    assert zombie.processes == reaped.processes == 1
    assert zombie.cpu_seconds == pytest.approx(reaped.cpu_seconds, abs=0.1)
    assert zombie.cpu_seconds > 0.25
    assert reaped.cpu_percent is not None
    seconds = snapshots[1].taken_at - snapshots[0].taken_at
    assert reaped.cpu_percent * seconds / 100 < 0.2


def test_a_process_that_was_just_started_is_seen(spawner: Spawner) -> None:
    """An earlier snapshot is not used for it."""
    table = MemberTable()
    reader = UsageReader(table)
    reader.read([])
    members = members_of(spawner.sleeper().pid)
    table.track(members)
    assert reader.read([members]).pids(members) == [members.root[0]]


class SimulatedTable(MemberTable):
    """A table with process 7, which uses half a core since 0; the test sets the time.

    Attributes:
        now: the time at which the next pass over /proc begins.
        pass_seconds: the time from there to the reading of the process.
        passes: the number of passes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.pass_seconds = 0.0
        self.passes = 0
        self._last: ProcessSnapshot | None = None

    def snapshot(self, max_age_seconds: float = 0) -> ProcessSnapshot:
        if self._last is None or self.now - self._last.taken_at > max_age_seconds:
            read_at = self.now + self.pass_seconds
            row = ROW._replace(cpu_seconds=read_at / 2, read_at=read_at)
            self._last = ProcessSnapshot(self.now, {7: row})
            self.passes += 1
        return self._last


def tree_percent(usage: UsageSnapshot, *pids: int) -> float | None:
    tree = usage.tree_usage(pids, None, None, None, USABLE_BYTES)
    assert tree
    return tree.cpu_percent


def test_cpu_of_a_tree_is_known_once_the_first_snapshot_is_a_second_old() -> None:
    """It is known at any time then, however often it is read."""
    table = SimulatedTable()
    reader = UsageReader(table)
    for tenth in (*range(50), *range(36_000, 36_050)):
        table.now = tenth / 10
        percent = tree_percent(reader.read([]), 7)
        assert percent == (None if tenth < 10 else pytest.approx(50))


@pytest.mark.parametrize("interval", [0.001, 0.3, 5, 10, 11, 60, 3600, 86400])
def test_cpu_of_a_tree_is_known_at_any_interval_of_sweeps(interval: float) -> None:
    """Between sweeps, a baseline is recorded every 2 s, so the figure covers the last seconds."""
    table = SimulatedTable()
    reader = UsageReader(table)
    ticks = 0
    for number in range(1, 6):
        sweep_at = number * interval + 1
        # The baselines of the last minutes alone matter.
        ticks = max(ticks, int((sweep_at - 100) / BASELINE_INTERVAL_SECONDS))
        while ticks * BASELINE_INTERVAL_SECONDS < sweep_at:
            table.now = ticks * BASELINE_INTERVAL_SECONDS
            reader.record_baseline()
            ticks += 1
        table.now = sweep_at
        usage = reader.read([])
        assert tree_percent(usage, 7) == pytest.approx(50)
        assert usage._baseline
        assert 1 <= sweep_at - usage._baseline.taken_at <= 7


def test_no_baseline_costs_a_snapshot_while_sweeps_take_some() -> None:
    """A snapshot of a sweep is at most 5 s old, and serves as the baseline."""
    table = SimulatedTable()
    reader = UsageReader(table)
    for second in range(100):
        table.now = float(second)
        if second % 5 == 0:
            reader.read([])
        if second % BASELINE_INTERVAL_SECONDS == 1:
            reader.record_baseline()
    assert table.passes == 20


def test_cpu_is_measured_between_the_times_at_which_a_process_was_read() -> None:
    """The duration of a pass over /proc, with many processes, does not change the figure."""
    table = SimulatedTable()
    reader = UsageReader(table)
    for table.now, table.pass_seconds in ((0.0, 0.0), (2.0, 0.5), (4.0, 0.1), (6.0, 1.5)):
        usage = reader.read([])
        sampler = ReadTimes()
        assert usage.process_usage(7, sampler, USABLE_BYTES)
        assert sampler.times == [table.now + table.pass_seconds]
        assert tree_percent(usage, 7) == (pytest.approx(50) if table.now else None)


class ReadTimes(Sampler):
    """A sampler that records the times at which the CPU time was read."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def cpu_percent(self, cpu_seconds: float, now: float) -> None:
        self.times.append(now)


@pytest.mark.parametrize(
    ("used", "seconds", "percent"),
    [
        pytest.param(-1.0, 2.0, 0.0, id="CPU time falls"),
        pytest.param(0.05, 0.05, None, id="hardly any time between the rows"),
        pytest.param(0.0, -1.0, None, id="time falls"),
    ],
)
def test_cpu_percent_is_never_negative(used: float, seconds: float, percent: float | None) -> None:
    """It is None if too little time has passed."""
    before, now = ROW._replace(cpu_seconds=9.0, read_at=9.0), ROW
    now = now._replace(cpu_seconds=9.0 + used, read_at=9.0 + seconds)
    usage = UsageSnapshot(ProcessSnapshot(9.5, {7: now}), ProcessSnapshot(8.0, {7: before}))
    assert tree_percent(usage, 7) == percent


def test_cpu_of_members_that_were_born_or_have_ended_since_the_baseline() -> None:
    """All CPU time of a new process counts, also if it has the PID of a process that has ended.

    The baseline of a new process is the beginning of the pass that has not found it. A member that
    has ended counts only if its parent has waited for it.
    """
    before = ROW._replace(cpu_seconds=1.0, read_at=10.5)
    row = ROW._replace(cpu_seconds=3.0, read_at=12.5)
    baseline = {7: before, 8: before._replace(started=4.0, cpu_seconds=100.0), 9: before}
    usage = UsageSnapshot(
        ProcessSnapshot(12.0, {7: row, 8: row, 10: row}), ProcessSnapshot(10.0, baseline)
    )
    assert tree_percent(usage, 7) == pytest.approx(100)
    assert tree_percent(usage, 8) == tree_percent(usage, 10) == pytest.approx(120)
    assert tree_percent(usage, 7, 8, 10) == pytest.approx(340)


def tree_seconds(
    before: dict[int, ProcessRow], after: dict[int, ProcessRow], *pids: int
) -> float | None:
    """Return the CPU seconds of a tree between two snapshots that are 10 s apart."""
    late = {pid: row._replace(read_at=10.0) for pid, row in after.items()}
    usage = UsageSnapshot(ProcessSnapshot(10.0, late), ProcessSnapshot(0.0, before))
    percent = tree_percent(usage, *pids)
    return None if percent is None else percent / 10


def row_of(parent: int, own: float, children: float = 0.0) -> ProcessRow:
    return ROW._replace(parent=parent, cpu_seconds=own, children_cpu_seconds=children)


def test_cpu_of_a_member_that_was_waited_for_counts_once() -> None:
    """Its parent gets all its CPU time, of which the part before the baseline has counted."""
    before = {7: row_of(1, 1.0), 8: row_of(7, 2.0, 0.5), 9: row_of(8, 3.0)}
    # Process 9 ended, and used 1 s more; then process 8 ended, and used 0.25 s more.
    assert tree_seconds(before, {7: row_of(1, 1.0, 6.75)}, 7) == pytest.approx(1.25)
    # Process 8 waited for process 9, and still runs.
    after = {7: row_of(1, 1.0), 8: row_of(7, 2.0, 4.5)}
    assert tree_seconds(before, after, 7, 8) == pytest.approx(1.0)
    # The PID of process 9 was used again.
    after[9] = row_of(1, 100.0)._replace(started=6.0)
    assert tree_seconds(before, after, 7, 8) == pytest.approx(1.0)


def test_cpu_is_at_least_that_of_the_members_that_run() -> None:
    """A member whose CPU time went to no member does not lessen the figure."""
    before = {7: row_of(1, 1.0, 4.0), 8: row_of(7, 100.0), 9: row_of(1, 50.0)}
    after = {7: row_of(1, 1.5, 4.0)}
    assert tree_seconds(before, after, 7) == pytest.approx(0.5)
    after = {7: row_of(1, 1.5, 4.2)}  # process 8 was lost, another child was waited for
    assert tree_seconds(before, after, 7) == pytest.approx(0.5)


def test_children_use_at_most_all_cores() -> None:
    """A child that ended while a baseline was taken may be in none of its rows."""
    before, after = {7: row_of(1, 1.0)}, {7: row_of(1, 1.0, 10_000.0)}
    assert tree_seconds(before, after, 7) == pytest.approx(10 * (os.cpu_count() or 1))


def test_a_process_that_is_exiting_has_no_usage() -> None:
    """It has None, not 0 bytes; the open files of a process that is gone are unknown."""
    ending, gone = ROW._replace(rss=0, vms=0), ROW
    usage = UsageSnapshot(ProcessSnapshot(0.0, {2**22 + 1: ending, 2**22 + 2: gone}), None)
    assert usage.process_usage(2**22 + 1, NoBaseline(), USABLE_BYTES) is None
    assert usage.tree_usage([2**22 + 1], None, None, None, USABLE_BYTES) is None
    figures = usage.process_usage(2**22 + 2, NoBaseline(), USABLE_BYTES)
    assert figures
    assert (figures.rss, figures.memory_percent, figures.open_files) == (4096, 50, None)
    assert usage.process_usage(os.getpid(), NoBaseline(), USABLE_BYTES) is None
