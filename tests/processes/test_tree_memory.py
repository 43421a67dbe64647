"""The memory of process trees: by kind, with shared pages counted once, and at its peak."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from monitor_plugin.processes import tree_memory
from monitor_plugin.processes.members import MemberTable
from monitor_plugin.processes.process_table import read_row
from monitor_plugin.processes.tree_memory import (
    TreeMemory,
    TreeTotal,
    read_tree_memory,
    tree_total,
)

from ..support import Spawner, eventually, members_of, read_line

pytestmark = pytest.mark.once

MIB = 1024 * 1024

# Takes MiB of each kind of memory, forks children that share it, and prints all PIDs.
HOLDER = """
import mmap, os, sys, time
anonymous, shared, file, children = map(int, sys.argv[1:5])
MIB = 1024 * 1024
kept = [bytearray(os.urandom(4096)) * (anonymous * 256)]
if shared:
    kept.append(mmap.mmap(-1, shared * MIB))
    kept[-1].write(b"x" * shared * MIB)
if file:
    with open(sys.argv[5], "rb") as opened:
        kept.append(mmap.mmap(opened.fileno(), file * MIB, prot=mmap.PROT_READ))
    total = sum(kept[-1][at] for at in range(0, file * MIB, 4096))
pids = [os.getpid()]
for _ in range(children):
    pid = os.fork()
    if not pid:
        time.sleep(1000)
    pids.append(pid)
print(*pids, flush=True)
time.sleep(1000)
"""


def start_with_memory(
    spawner: Spawner,
    anonymous: int = 0,
    *,
    shared: int = 0,
    file: int = 0,
    children: int = 0,
    path: Path | None = None,
) -> list[int]:
    """Start processes that have so many MiB of each kind; return their PIDs, the root first."""
    process = spawner.python(HOLDER, *map(str, (anonymous, shared, file, children, path)))
    return [int(pid) for pid in read_line(process).split()]


def measure(pid: int) -> TreeMemory:
    members = members_of(pid)
    MemberTable().rescan(members)
    memory = read_tree_memory(members.identities(), members.root)
    assert memory
    return memory


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of 100 MiB whose pages are in the page cache."""
    path = tmp_path_factory.mktemp("model") / "model.gguf"
    with path.open("wb") as file:
        for _ in range(100):
            file.write(os.urandom(MIB))
    if subprocess.check_output(["stat", "-f", "-c", "%T", path]) == b"tmpfs\n":
        pytest.skip("files of a tmpfs are shared memory")
    return path


def test_memory_is_split_into_its_kinds(spawner: Spawner, model_file: Path) -> None:
    """Files that are mapped, shared memory, and the rest. The kinds add up to PSS."""
    (pid,) = start_with_memory(spawner, 40, shared=70, file=100, path=model_file)
    memory = measure(pid)
    assert memory.pss is not None
    assert memory.anonymous is not None
    assert memory.file is not None
    assert memory.shared is not None
    assert 40 * MIB <= memory.anonymous < 60 * MIB
    assert 70 * MIB <= memory.shared < 71 * MIB
    assert 100 * MIB <= memory.file < 115 * MIB  # with its program and libraries
    assert memory.anonymous + memory.file + memory.shared == memory.pss
    assert memory.swap == 0 or psutil.swap_memory().total
    assert memory.rss >= memory.pss
    assert time.monotonic() - memory.taken_at >= 0


def test_replicas_share_the_file_that_both_map(spawner: Spawner, model_file: Path) -> None:
    """Each replica has half of the file. llama.cpp's servers of one model share it this way."""
    for pid in [start_with_memory(spawner, file=100, path=model_file)[0] for _ in range(2)]:
        memory = measure(pid)
        assert memory.file is not None
        assert 50 * MIB <= memory.file < 65 * MIB
        assert memory.rss > 100 * MIB


def test_memory_that_members_share_counts_once(spawner: Spawner) -> None:
    """200 MiB that four processes share by fork are 200 MiB of PSS, not four times as much."""
    pids = start_with_memory(spawner, 200, children=3)
    memory = measure(pids[0])
    assert memory.pss is not None
    assert 200 * MIB <= memory.pss <= 260 * MIB
    assert memory.rss == pytest.approx(
        sum(psutil.Process(pid).memory_info().rss for pid in pids),
        abs=len(pids) * MIB,  # the processes may grow between the two readings
    )
    assert memory.rss > 790 * MIB


def test_processes_that_have_ended_count_0(spawner: Spawner) -> None:
    """A zombie in the tree does not prevent the sum."""
    root, *children = start_with_memory(spawner, 50, children=2)
    psutil.Process(children[0]).kill()
    eventually(lambda: psutil.Process(children[0]).status() == psutil.STATUS_ZOMBIE)
    memory = measure(root)
    assert memory.pss is not None
    assert 50 * MIB <= memory.pss <= 110 * MIB


def test_tree_that_has_ended_has_no_memory_figure(spawner: Spawner) -> None:
    """A zombie, a reaped process, and a number that is no PID have None, not 0."""
    sleeper = spawner.sleeper()
    root = members_of(sleeper.pid).root
    assert read_tree_memory([root], root)
    sleeper.kill()
    eventually(lambda: psutil.Process(sleeper.pid).status() == psutil.STATUS_ZOMBIE)
    assert read_tree_memory([root], root) is None
    sleeper.wait()
    assert read_tree_memory([root], root) is None
    assert read_tree_memory([(2**22 + 1, 1.0)], root) is None
    assert read_tree_memory([], root) is None


def test_memory_is_read_of_a_process_with_any_name(spawner: Spawner) -> None:
    """The name stands in /proc/PID/status, and may look like a size there."""
    process = spawner.python(
        "import ctypes, time\n"
        "ctypes.CDLL(None).prctl(15, b'x kB', 0, 0, 0)\n"
        "print('named', flush=True); time.sleep(1000)"
    )
    assert read_line(process) == "named"
    memory = measure(process.pid)
    assert memory.peak_rss is not None
    assert memory.peak_rss >= memory.rss > 0


def test_later_process_with_a_members_pid_does_not_count(spawner: Spawner) -> None:
    """The PID of a member may be used again, also during the reading."""
    sleeper = spawner.sleeper()
    pid, started = members_of(sleeper.pid).root
    own = os.getpid(), members_of(os.getpid()).root[1]
    memory = read_tree_memory([own, (pid, started - 1)], own)
    assert memory
    assert memory.rss < psutil.Process().memory_info().rss + MIB
    assert read_tree_memory([(pid, started - 1)], own) is None


def test_peak_is_the_sum_of_what_each_member_ever_had(spawner: Spawner) -> None:
    """Memory that a process has freed since counts as well."""
    code = """
import os, sys, time
block = bytearray(os.urandom(4096)) * (80 * 256)
del block
print(os.getpid(), flush=True)
time.sleep(1000)
"""
    one, two = (int(read_line(spawner.python(code))) for _ in range(2))
    identities = [members_of(pid).root for pid in (one, two)]
    memory = read_tree_memory(identities, identities[0])
    assert memory
    assert memory.rss < 80 * MIB
    assert memory.root_peak_rss is not None
    assert memory.peak_rss is not None
    assert 80 * MIB < memory.root_peak_rss < 120 * MIB
    assert 160 * MIB < memory.peak_rss < 240 * MIB


def test_peak_of_a_tree_does_not_sink() -> None:
    """The members that held the memory may have ended since."""
    low, high = TreeMemory(2.0, 50, peak_rss=60), TreeMemory(1.0, 900, peak_rss=1000)
    assert low.with_earlier_peak(high) == low._replace(peak_rss=1000)
    assert high.with_earlier_peak(low) == high
    assert low.with_earlier_peak(None) == low
    assert low.with_earlier_peak(TreeMemory(1.0, 900)) == low
    assert TreeMemory(2.0, 50).with_earlier_peak(high).peak_rss == 1000


ROLLUP = """\
5581-7fff ---p 00000000 00:00 0                          [rollup]
Rss:                 900 kB
Pss:                 700 kB
Pss_Anon:            333 kB
Pss_File:            300 kB
Pss_Shmem:            66 kB
SwapPss:               8 kB
"""
STATUS = "Name:\ta 5 kB\nUmask:\t0022\nVmHWM:\t    1000 kB\nVmRSS:\t     900 kB\nThreads:\t1\n"


@pytest.mark.parametrize(
    ("rollup", "kinds"),
    [
        (ROLLUP, (700, 334, 300, 66, 8)),  # what rounding loses belongs to the anonymous part
        (ROLLUP.replace("Pss_", "Other_"), (700, None, None, None, 8)),  # before Linux 5.3
        (ROLLUP.replace("SwapPss", "Swap"), (700, 334, 300, 66, None)),
        (None, (None, None, None, None, None)),
    ],
)
def test_kinds_that_a_kernel_does_not_know_are_unknown(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    rollup: str | None,
    kinds: tuple[int | None, ...],
) -> None:
    """The peak is known nevertheless: any process may read it."""
    (tmp_path / "status").write_text(STATUS)
    if rollup is not None:
        (tmp_path / "smaps_rollup").write_text(rollup)
    read = tree_memory._read_sizes
    monkeypatch.setattr(
        tree_memory, "_read_sizes", lambda path: read(str(tmp_path / path.rpartition("/")[2]))
    )
    row = read_row(os.getpid())
    assert row
    monkeypatch.setattr(tree_memory, "read_row", lambda pid: row._replace(rss=900 * 1024))
    identity = os.getpid(), row.started
    memory = read_tree_memory([identity], identity)
    assert memory
    expected = [None if each is None else each * 1024 for each in kinds]
    found = [memory.pss, memory.anonymous, memory.file, memory.shared, memory.swap]
    assert found == expected
    assert (memory.rss, memory.peak_rss, memory.root_peak_rss) == (900 * 1024, *[1000 * 1024] * 2)


def test_sums_are_unknown_if_one_process_may_not_be_read(spawner: Spawner) -> None:
    """RSS and the peak are those of all processes nevertheless."""
    if os.geteuid() != 0:
        pytest.skip("takes another user's identity")
    root, *children = map(int, read_line(spawner.python(MIXED)).split())

    def read() -> list[str]:
        return read_line(spawner.python(READER, *map(str, (root, *children)))).split()

    pss, rss, peak_rss = read()
    assert pss == "None"
    expected = sum(psutil.Process(pid).memory_info().rss for pid in (root, *children))
    assert int(rss) == pytest.approx(expected, abs=MIB)
    assert int(peak_rss) >= int(rss)
    for child in children:
        os.kill(child, 9)
    pss, rss, _ = read()
    assert 0 < int(pss) < int(rss) < expected


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
from monitor_plugin.processes.process_table import read_row
from monitor_plugin.processes.tree_memory import read_tree_memory
def read(*pids):
    members = [(pid, row.started) for pid in pids if (row := read_row(pid))]
    memory = read_tree_memory(members, members[0])
    return memory.pss, memory.rss, memory.peak_rss
read(os.getpid())  # while what it loads on first use can be read
os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
print(*read(*map(int, sys.argv[1:])))
"""


def test_smaps_is_not_read_where_there_is_no_smaps_rollup(spawner: Spawner) -> None:
    """The kernel of gVisor, and older ones, have smaps, which may have thousands of entries."""
    sleeper = spawner.sleeper()
    code = """
import pathlib, subprocess, sys
from monitor_plugin.processes.process_table import read_row
from monitor_plugin.processes.tree_memory import read_tree_memory
pid, folder = int(sys.argv[1]), pathlib.Path("/proc", sys.argv[1])
root = pid, read_row(pid).started
files = {name: (folder / name).read_text() for name in ("stat", "status", "smaps")}
print(read_tree_memory([root], root).pss)
subprocess.run(["mount", "-t", "tmpfs", "none", folder], check=True)
for name, text in files.items():
    (folder / name).write_text(text)
memory = read_tree_memory([root], root)
print(memory.pss, memory.rss)
"""
    reader = spawner.process("unshare", "--mount", sys.executable, "-c", code, str(sleeper.pid))
    pss = read_line(reader)
    if not pss:
        pytest.skip("mount namespaces are not allowed here")
    source, rss = read_line(reader).split()
    assert source == "None"
    assert int(rss) > int(pss) > 0


def test_hidden_processes_have_no_memory_figure(spawner: Spawner) -> None:
    """The figure then is None, not 0."""
    if os.geteuid() != 0:
        pytest.skip("mounts a /proc that hides other users' processes")
    sleeper = spawner.sleeper()
    code = (
        "import os, subprocess, sys\n"
        "from monitor_plugin.processes.process_table import read_row\n"
        "from monitor_plugin.processes.tree_memory import read_tree_memory\n"
        "pid = int(sys.argv[1])\n"
        "root = pid, read_row(pid).started\n"
        "assert read_tree_memory([root], root)\n"
        "subprocess.run(['mount', '-t', 'proc', '-o', 'hidepid=1', 'proc', '/proc'], check=True)\n"
        "os.setgroups([]); os.setresgid(*[65534] * 3); os.setresuid(*[65534] * 3)\n"
        "print(read_tree_memory([root], root))"
    )
    reader = spawner.process("unshare", "--mount", sys.executable, "-c", code, str(sleeper.pid))
    output = read_line(reader)
    if not output:
        pytest.skip("mount namespaces are not allowed here")
    assert output == "None"


def test_reading_without_a_free_descriptor_is_an_error(spawner: Spawner) -> None:
    """Then it is not known which processes run, so that the last reading stays."""
    code = """
import os, resource
from monitor_plugin.processes.process_table import read_row
from monitor_plugin.processes.tree_memory import read_tree_memory
root = os.getpid(), read_row(os.getpid()).started
resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
try:
    print(read_tree_memory([root], root))
except OSError as error:
    print(error.strerror)
"""
    assert read_line(spawner.python(code)) == "Too many open files"


NOW = TreeMemory(taken_at=time.monotonic(), rss=800, pss=500)


@pytest.mark.parametrize(
    ("memory", "rss", "later", "expected"),
    [
        (NOW, 800, 1, (500, "pss")),
        (NOW, 900, 1, (500, "pss")),
        (NOW, 700, 1, (500, "pss")),
        (NOW, 901, 1, (901, "rss")),  # it has grown by over an eighth
        (NOW, 699, 1, (699, "rss")),
        (NOW, 90_000, -1, (500, "pss")),  # an RSS from before the reading
        (NOW, None, 1, (500, "pss")),
        (NOW._replace(pss=None), 800, 1, (800, "rss")),
        (None, 800, 1, (800, "rss")),
        (None, None, 0, None),
        (None, 0, 1, None),
    ],
)
def test_total_is_pss_until_rss_has_changed(
    memory: TreeMemory | None,
    rss: int | None,
    later: float,
    expected: tuple[int, str] | None,
) -> None:
    """An old PSS of another magnitude would be a lie; an RSS is one that counts pages twice."""
    total = tree_total(memory, rss, NOW.taken_at + later)
    assert (total and total[:2]) == expected
    if isinstance(total, TreeTotal) and total.source == "pss":
        assert total.age_seconds is not None
        assert 0 <= total.age_seconds <= time.monotonic() - NOW.taken_at
    elif total:
        assert total.age_seconds is None
        is_readable = memory is None or memory.pss is not None
        assert isinstance(total, TreeTotal)
        assert total.awaits_pss == is_readable
