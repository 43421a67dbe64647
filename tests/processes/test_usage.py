"""The usage of processes and of process trees."""

from __future__ import annotations

import os
import time

import pytest

from monitor_plugin.processes.process_table import ProcessRow, ProcessSnapshot, ProcessTable
from monitor_plugin.processes.sampler import Sampler
from monitor_plugin.processes.usage import UsageReader, UsageSnapshot

from ..support import Spawner, eventually

WITH_BUSY_CHILD = """
import os, time
child = os.fork()
while not child:
    pass
print(child, flush=True)
time.sleep(1000)
"""


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
    reader = UsageReader(ProcessTable())

    def percent() -> float | None:
        usage = reader.read([process.pid])
        assert usage.tree(process.pid) == [process.pid, child]
        tree = usage.tree_usage(usage.tree(process.pid), None, None, None)
        return tree.cpu_percent if tree else None

    assert percent() is None  # there is no baseline yet

    def working() -> float | None:  # on a busy machine the child may not have run yet
        found = percent()
        return found if found and found > 1 else None

    found = eventually(working)
    assert found is not None
    assert found < 150
    usage = reader.read([process.pid])
    alone = usage.process_usage(process.pid, NoBaseline())
    assert alone
    assert alone.cpu_percent is None
    tree = usage.tree_usage(usage.tree(process.pid), 7, 8, alone)
    assert tree
    assert (tree.processes, tree.pss, tree.vram) == (2, 7, 8)


def test_a_process_that_was_just_started_is_seen(spawner: Spawner) -> None:
    """An earlier snapshot is not used for it."""
    reader = UsageReader(ProcessTable())
    reader.read([])
    process = spawner.sleeper()
    assert reader.read([process.pid]).tree(process.pid) == [process.pid]


class SimulatedTable(ProcessTable):
    """A table with process 7, which uses half a core since 0; the test sets the time."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def snapshot(self, max_age_seconds: float = 0) -> ProcessSnapshot:
        row = ProcessRow(1, 1, 5.0, cpu_seconds=self.now / 2, threads=1, rss=4096, vms=8192)
        return ProcessSnapshot(self.now, {7: row})


def test_cpu_is_measured_from_one_to_ten_seconds_before() -> None:
    """It is known at any time once the first snapshot is a second old, however often it is read."""
    table = SimulatedTable()
    reader = UsageReader(table)

    def percent() -> float | None:
        tree = reader.read([7]).tree_usage([7], None, None, None)
        assert tree
        return tree.cpu_percent

    for start in (0, 60):  # the second time all baselines are too old
        for tenth in range(start * 10, start * 10 + 50):
            table.now = tenth / 10
            assert percent() == (None if tenth < start * 10 + 10 else pytest.approx(50))


def test_all_cpu_time_of_a_process_newer_than_the_baseline_counts(
    spawner: Spawner,
) -> None:
    """Also where it has the PID of a process that has ended."""
    now = time.monotonic()
    row = ProcessRow(1, 1, 5.0, cpu_seconds=3.0, threads=1, rss=4096, vms=8192)
    usage = UsageSnapshot(
        ProcessSnapshot(now, {7: row, 8: row}),
        ProcessSnapshot(
            now - 2,
            {
                7: row._replace(started=4.0, cpu_seconds=100.0),
                8: row._replace(cpu_seconds=1.0),
            },
        ),
    )
    for pid, used in ((7, 3.0), (8, 2.0)):
        tree = usage.tree_usage([pid], None, None, None)
        assert tree
        assert tree.cpu_percent == pytest.approx(100 * used / 2)


def test_a_process_that_is_exiting_has_no_usage() -> None:
    """It has None, not 0 bytes; the open files of a process that is gone are unknown."""
    ending = ProcessRow(1, 1, 5.0, cpu_seconds=3.0)
    gone = ending._replace(rss=4096, vms=8192, threads=1)
    usage = UsageSnapshot(ProcessSnapshot(0.0, {2**22 + 1: ending, 2**22 + 2: gone}), None)
    assert usage.process_usage(2**22 + 1, NoBaseline()) is None
    assert usage.tree_usage([2**22 + 1], None, None, None) is None
    figures = usage.process_usage(2**22 + 2, NoBaseline())
    assert figures
    assert (figures.rss, figures.open_files) == (4096, None)
    assert usage.process_usage(os.getpid(), NoBaseline()) is None
