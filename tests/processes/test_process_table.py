from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor_plugin.processes.process_table import (
    ProcessRow,
    ProcessSnapshot,
    ProcessTable,
    read_row,
    take_snapshot,
)

from ..support import Spawner, eventually

MIB = 1024 * 1024

# Allocates memory, forks children that share it, and prints all PIDs.
FORKED = """
import os, sys, time
mib, children = int(sys.argv[1]), int(sys.argv[2])
block = bytearray(os.urandom(4096)) * (mib * 256)
pids = [os.getpid()]
for _ in range(children):
    pid = os.fork()
    if not pid:
        time.sleep(1000)
    pids.append(pid)
print(*pids, flush=True)
time.sleep(1000)
"""


def _read_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def _pids(process: subprocess.Popen[str]) -> list[int]:
    return [int(pid) for pid in _read_line(process).split()]


def test_a_row_has_parent_session_and_start_time(spawner: Spawner) -> None:
    """The start time of a process is the same each time it is read."""
    sleeper = spawner.sleeper()
    row = read_row(sleeper.pid)
    assert row is not None
    assert (row.parent, row.session) == (os.getpid(), sleeper.pid)
    again = read_row(sleeper.pid)
    assert again is not None
    assert again[:3] == row[:3]
    own = read_row(os.getpid())
    assert own is not None
    assert (own.parent, own.session) == (os.getppid(), os.getsid(0))
    assert own.started <= row.started


@pytest.mark.parametrize(
    "name", ["a b", "(x)", ") R 1 1 (", "x) Z 7 7 7 (", "a\nb", "((", "))", "é", "\\"]
)
def test_stat_parser_accepts_any_process_name(spawner: Spawner, tmp_path: Path, name: str) -> None:
    """A program's name may hold spaces, parentheses and line breaks."""
    program = tmp_path / name
    program.symlink_to("/bin/sleep")
    sleeper = spawner.process(str(program), "1000")
    comm = name.encode()[:15]
    eventually(lambda: Path(f"/proc/{sleeper.pid}/comm").read_bytes() == comm + b"\n")
    row = read_row(sleeper.pid)
    assert row is not None
    assert (row.parent, row.session) == (os.getpid(), sleeper.pid)


def test_stat_parser_accepts_a_name_that_is_not_utf8(spawner: Spawner) -> None:
    """A process may give itself a name that is not UTF-8."""
    process = spawner.python(
        "import ctypes, time\n"
        "ctypes.CDLL(None).prctl(15, b'\\xff) \\xfe(', 0, 0, 0)\n"
        "print('named', flush=True); time.sleep(1000)"
    )
    assert _read_line(process) == "named"
    row = read_row(process.pid)
    assert row is not None
    assert (row.parent, row.session) == (os.getpid(), process.pid)


def test_a_process_that_does_not_exist_has_no_row(spawner: Spawner) -> None:
    """A process that was reaped, and a number that is no PID, have no row."""
    ended = spawner.process("true")
    ended.wait()
    for pid in (ended.pid, 2**22 + 1):
        assert read_row(pid) is None


def test_a_snapshot_holds_every_process(spawner: Spawner) -> None:
    """A snapshot holds all processes, also zombies."""
    sleeper, ended = spawner.sleeper(), spawner.process("true")
    eventually(lambda: psutil.Process(ended.pid).status() == psutil.STATUS_ZOMBIE)
    rows = take_snapshot().rows
    for pid in (sleeper.pid, ended.pid, os.getpid(), os.getppid()):
        row = read_row(pid)
        assert row is not None
        assert rows[pid][:3] == row[:3]


def test_descendants_come_after_the_roots() -> None:
    """Roots come first, in their order and once each; then children, and children's children."""
    parents = [(6, 5), (5, 2), (2, 1), (3, 1), (1, 0)]
    snapshot = ProcessSnapshot(0.0, {pid: ProcessRow(parent, 1, 0.0) for pid, parent in parents})
    assert snapshot.tree(1) == [1, 2, 3, 5, 6]
    assert snapshot.tree(3, 5, 3) == [3, 5, 6]
    assert snapshot.tree(6, 2) == [6, 2, 5]
    assert snapshot.tree(7) == []
    assert snapshot.tree() == []


@given(
    st.dictionaries(st.integers(1, 30), st.integers(0, 30)),
    st.lists(st.integers(0, 30), max_size=4),
)
def test_descendants_are_those_whose_parents_lead_to_a_root(
    parents: dict[int, int], roots: list[int]
) -> None:
    """The walk ends and finds each process once, also where parents form a circle."""
    rows = {pid: ProcessRow(parent, 0, 0.0) for pid, parent in parents.items()}
    found = ProcessSnapshot(0.0, rows).tree(*roots)
    expected = {root for root in roots if root in rows}
    while more := {pid for pid, parent in parents.items() if parent in expected} - expected:
        expected |= more
    assert sorted(found) == sorted(expected)


def test_a_tree_is_a_process_and_its_descendants(spawner: Spawner) -> None:
    """A tree has its root first, then children and their children, and no other process."""
    code = (
        "import os, time\n"
        "if not os.fork():\n"
        "    if not os.fork(): print('ready', flush=True)\n"
        "time.sleep(1000)"
    )
    stranger, process = spawner.sleeper(), spawner.python(code)
    assert _read_line(process) == "ready"
    tree = ProcessTable().tree(process.pid)
    assert tree[0] == process.pid
    assert len(tree) == 3
    assert set(tree) == {p.pid for p in psutil.Process(process.pid).children(recursive=True)} | {
        process.pid
    }
    assert stranger.pid not in tree


def test_a_tree_is_at_least_its_root(spawner: Spawner) -> None:
    """A process that started after the snapshot is a tree of its own."""
    table = ProcessTable()
    table.tree(os.getpid())
    sleeper = spawner.sleeper()
    assert table.tree(sleeper.pid) == [sleeper.pid]
    assert table.tree(2**22 + 1) == [2**22 + 1]


def test_a_snapshot_is_used_for_a_second(spawner: Spawner) -> None:
    """A child that started after a snapshot is in the next one."""
    table = ProcessTable()
    table.tree(os.getpid())
    sleeper = spawner.sleeper()
    eventually(lambda: sleeper.pid in table.tree(os.getpid()))


def test_shared_memory_counts_once(spawner: Spawner) -> None:
    """200 MiB that four processes share by fork are 200 MiB of PSS, not four times as much."""
    process = spawner.python(FORKED, "200", "3")
    pids = _pids(process)
    total, source = ProcessTable().tree_memory(process.pid) or (0, "")
    assert source == "pss"
    assert 200 * MIB <= total <= 260 * MIB
    assert sum(psutil.Process(pid).memory_info().rss for pid in pids) > 790 * MIB


def test_memory_of_a_process_that_started_after_the_snapshot(spawner: Spawner) -> None:
    """Its memory is measured at once."""
    table = ProcessTable()
    table.tree(os.getpid())
    process = spawner.python(FORKED, "50", "0")
    assert _pids(process) == [process.pid]
    total, source = table.tree_memory(process.pid) or (0, "")
    assert source == "pss"
    assert total >= 50 * MIB


def test_processes_that_have_ended_count_0(spawner: Spawner) -> None:
    """A zombie in the tree does not prevent the sum."""
    process = spawner.python(FORKED, "50", "2")
    root, *children = _pids(process)
    psutil.Process(children[0]).kill()
    eventually(lambda: psutil.Process(children[0]).status() == psutil.STATUS_ZOMBIE)
    total, source = ProcessTable().tree_memory(root) or (0, "")
    assert source == "pss"
    assert 50 * MIB <= total <= 110 * MIB


def test_a_process_that_has_ended_has_no_memory_figure(spawner: Spawner) -> None:
    """A zombie, a reaped process, and a number that is no PID have None, not 0."""
    sleeper = spawner.sleeper()
    sleeper.kill()
    eventually(lambda: psutil.Process(sleeper.pid).status() == psutil.STATUS_ZOMBIE)
    table = ProcessTable()
    assert table.tree_memory(sleeper.pid) is None
    sleeper.wait()
    assert table.tree_memory(sleeper.pid) is None
    assert ProcessTable().tree_memory(sleeper.pid) is None
    assert ProcessTable().tree_memory(2**22 + 1) is None


# Starts two children as root, and becomes another user, who may read this process but not them.
MIXED = """
import ctypes, os, subprocess, time
children = [subprocess.Popen(["sleep", "1000"]) for _ in range(2)]
os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE: readable, as after an exec
print(os.getpid(), *[child.pid for child in children], flush=True)
time.sleep(1000)
"""

# Root's interpreter may lie where no other user can start it, so the identity changes after it.
READER = """
import os, sys
from monitor_plugin.processes.process_table import ProcessTable
ProcessTable().tree_memory(os.getpid())  # while what it loads on first use can be read
os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
print(*ProcessTable().tree_memory(int(sys.argv[1])))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="takes another user's identity")
def test_rss_is_summed_if_the_pss_of_one_process_may_not_be_read(spawner: Spawner) -> None:
    """The source then is `rss`."""
    root, *children = _pids(spawner.python(MIXED))

    def read() -> tuple[int, str]:
        total, source = _read_line(spawner.python(READER, str(root))).split()
        return int(total), source

    total, source = read()
    assert source == "rss"
    rss = sum(psutil.Process(pid).memory_info().rss for pid in (root, *children))
    assert total == pytest.approx(rss, abs=MIB)
    for child in children:
        os.kill(child, 9)
    total, source = read()
    assert source == "pss"
    assert 0 < total < rss


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a /proc that hides other users' processes")
def test_memory_is_unknown_if_neither_pss_nor_rss_may_be_read(spawner: Spawner) -> None:
    """The figure then is None, not 0."""
    sleeper = spawner.sleeper()
    code = (
        "import os, subprocess, sys\n"
        "from monitor_plugin.processes.process_table import ProcessTable\n"
        "table = ProcessTable(); table.tree_memory(os.getpid())\n"
        "assert int(sys.argv[1]) in table.tree(int(sys.argv[1]))\n"
        "subprocess.run(['mount', '-t', 'proc', '-o', 'hidepid=1', 'proc', '/proc'], check=True)\n"
        "os.setgroups([]); os.setresgid(*[65534] * 3); os.setresuid(*[65534] * 3)\n"
        "print(table.tree_memory(int(sys.argv[1])), ProcessTable().tree_memory(int(sys.argv[1])))"
    )
    reader = spawner.process("unshare", "--mount", sys.executable, "-c", code, str(sleeper.pid))
    output = _read_line(reader)
    if not output:
        pytest.skip("mount namespaces are not allowed here")
    assert output == "None None"


def test_reading_a_row_without_a_free_descriptor_is_an_error(spawner: Spawner) -> None:
    """Without a free descriptor it is unknown whether the process exists."""
    code = """
import os, resource
from monitor_plugin.processes.process_table import ProcessTable, read_row
assert read_row(os.getpid()) and read_row(2**22) is None
resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
try:
    print(read_row(os.getpid()))
except OSError as error:
    print(error.strerror)
print(ProcessTable().tree_memory(os.getpid()), ProcessTable().tree(os.getpid()) == [os.getpid()])
"""
    process = spawner.python(code)
    assert process.stdout
    assert process.stdout.read().splitlines() == ["Too many open files", "None True"]
