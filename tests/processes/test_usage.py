"""The figures of process trees."""

from __future__ import annotations

import os
import time

import pytest

from monitor_plugin.processes.process_table import ProcessRow, ProcessSnapshot, ProcessTable
from monitor_plugin.processes.usage import CpuBaseline, UsageReader, UsageSnapshot

from ..support import Spawner, eventually

WITH_BUSY_CHILD = """
import os, time
child = os.fork()
while not child:
    pass
print(child, flush=True)
time.sleep(1000)
"""


def none_known(cpu_seconds: float, now: float) -> None:
    return None


def test_the_cpu_of_a_tree_is_that_of_all_its_members(spawner: Spawner) -> None:
    """A child that works counts, measured between two looks that are at least a second apart."""
    process = spawner.python(WITH_BUSY_CHILD)
    assert process.stdout
    child = int(process.stdout.readline())
    reader = UsageReader(ProcessTable())

    def percent() -> float | None:
        look = reader.look([process.pid])
        assert look.tree(process.pid) == [process.pid, child]
        tree = look.figures_of_tree(look.tree(process.pid), None, None, None)
        return tree.cpu_percent if tree else None

    assert percent() is None  # there is nothing to measure from

    def working() -> float | None:  # a busy machine may have kept it from that at first
        found = percent()
        return found if found and found > 1 else None

    found = eventually(working)
    assert found is not None
    assert found < 150
    look = reader.look([process.pid])
    alone = look.process(process.pid, none_known)
    assert alone
    assert alone.cpu_percent is None
    tree = look.figures_of_tree(look.tree(process.pid), 7, 8, alone)
    assert tree
    assert (tree.processes, tree.pss, tree.vram) == (2, 7, 8)


def test_a_process_that_was_just_started_is_seen(spawner: Spawner) -> None:
    """A pass over /proc from before it is not used for it."""
    reader = UsageReader(ProcessTable())
    reader.look([])
    process = spawner.sleeper()
    assert reader.look([process.pid]).tree(process.pid) == [process.pid]


def test_who_came_since_has_used_its_time_since(spawner: Spawner) -> None:
    """Also where it has the PID of one that ended: a process is a PID and when it started."""
    now = time.monotonic()
    row = ProcessRow(1, 1, 5.0, cpu_seconds=3.0, threads=1, rss=4096, vms=8192)
    look = UsageSnapshot(
        ProcessSnapshot(now, {7: row, 8: row}, {}),
        CpuBaseline(now - 2, {(7, 4.0): 100.0, (8, 5.0): 1.0}),
    )
    for pid, used in ((7, 3.0), (8, 2.0)):
        tree = look.figures_of_tree([pid], None, None, None)
        assert tree
        assert tree.cpu_percent == pytest.approx(100 * used / 2)


def test_what_is_ending_shows_nothing() -> None:
    """A process in its exit is not one of 0 bytes, and descriptors of the gone are not known."""
    ending = ProcessRow(1, 1, 5.0, cpu_seconds=3.0)
    gone = ending._replace(rss=4096, vms=8192, threads=1)
    look = UsageSnapshot(ProcessSnapshot(0.0, {2**22 + 1: ending, 2**22 + 2: gone}, {}), None)
    assert look.process(2**22 + 1, none_known) is None
    assert look.figures_of_tree([2**22 + 1], None, None, None) is None
    figures = look.process(2**22 + 2, none_known)
    assert figures
    assert (figures.rss, figures.open_files) == (4096, None)
    assert look.process(os.getpid(), none_known) is None
