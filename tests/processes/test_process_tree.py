from __future__ import annotations

import errno
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

import pytest

from monitor_plugin.processes import process_tree
from monitor_plugin.processes.members import MemberTable
from monitor_plugin.processes.process import Process
from monitor_plugin.processes.process_table import ProcessSnapshot, read_row, take_snapshot
from monitor_plugin.processes.process_tree import ProcessTree

from ..support import Spawner, eventually, is_running, members_of, read_line, send_line, suspend

pytestmark = pytest.mark.once

# Starts a child, which starts one too, and prints both PIDs.
NESTED = """
import os, time
if os.fork() == 0:
    grandchild = os.fork()
    if grandchild:
        os.write(1, b"%d %d\\n" % (os.getpid(), grandchild))
time.sleep(1000)
"""

# Starts a child in a session of its own, and prints its PID; ends after a line on standard input.
WITH_SESSION = """
import os, sys, time
child = os.fork()
if child == 0:
    os.setsid()
    os.write(1, b"%d\\n" % os.getpid())
    time.sleep(1000)
sys.stdin.readline()
"""

# Leaves an orphan in its session, and prints its PID; ends after a line on standard input.
WITH_ORPHAN = """
import os, sys, time
reader, writer = os.pipe()
if os.fork() == 0:
    if os.fork() == 0:
        os.write(writer, b"%d\\n" % os.getpid())
        time.sleep(1000)
    os._exit(0)
os.wait()  # so that the parent of the orphan has ended
os.write(1, os.read(reader, 100))
sys.stdin.readline()
"""

IGNORES_SIGTERM = """
import signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready", flush=True)
time.sleep(1000)
"""

# Exits with 5 at SIGTERM.
HANDLES_SIGTERM = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(5))
print("ready", flush=True)
while True:
    time.sleep(0.1)
"""

# Ignores SIGTERM. For a line on standard input it starts a child and prints its PID.
FORKS_ON_REQUEST = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready", flush=True)
while sys.stdin.readline():
    child = os.fork()
    if not child:
        break
    print(child, flush=True)
time.sleep(1000)
"""

# Ignores SIGTERM, as its 40 children do. Each of them starts a process in another session when its
# parent has ended, which prints its PID.
FORKS_WHEN_ORPHANED = """
import ctypes, os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
parent = os.getpid()

def escape(*_):
    if os.fork() == 0:
        os.setsid()
        os.write(1, b"%d\\n" % os.getpid())
        time.sleep(1000)

for _ in range(40):
    if os.fork() == 0:
        signal.signal(signal.SIGUSR1, escape)
        ctypes.CDLL(None).prctl(1, signal.SIGUSR1)  # PR_SET_PDEATHSIG
        while True:
            time.sleep(0.1)
os.write(1, b"ready\\n")
time.sleep(1000)
"""

# Ignores SIGTERM, and starts a child that goes on like this every 2 ms, before it ends.
FORKS_AND_ENDS = """
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
os.write(1, b"ready\\n")
while True:
    if os.fork():
        os._exit(0)
    time.sleep(0.002)
"""

# `serve` prints the PID of its process, waits for SIGTERM, calls `at_sigterm`, and ends. `start`
# forks a process that serves.
SERVE = """
import os, signal
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
def serve(at_sigterm, at_start):
    at_start()
    os.write(1, b"%d\\n" % os.getpid())
    signal.sigwait({signal.SIGTERM})
    at_sigterm()
    os._exit(0)
def start(at_sigterm=lambda: None, at_start=lambda: None):
    if os.fork() == 0:
        serve(at_sigterm, at_start)
def start_and_wait(**options):
    start(**options)
    os.wait()
"""

# Prints the PID of the process, and waits, deaf to SIGTERM.
LINGER = (
    'signal.signal(signal.SIGTERM, signal.SIG_IGN); os.write(1, b"%d\\n" % os.getpid()); '
    "time.sleep(1000)"
)

NEVER = threading.Event()
KILLS = (signal.SIGSTOP, signal.SIGKILL)


def pids(tree: ProcessTree) -> list[int]:
    return [member.pid for member in tree.alive()]


@pytest.fixture
def open_tree() -> Iterator[Open]:
    """Opens trees, and closes them after the test."""
    with ExitStack() as opened:
        yield lambda pid, take=take_snapshot: opened.enter_context(
            ProcessTree(members_of(pid), MemberTable(take))
        )


class Open(Protocol):
    """Opens the tree of a process, with a function that takes the snapshots."""

    def __call__(
        self, pid: int, take: Callable[[], ProcessSnapshot] = take_snapshot
    ) -> ProcessTree: ...


def test_descendants_are_members(spawner: Spawner, open_tree: Open) -> None:
    """The root comes first, then its children and theirs; no other process is a member."""
    spawner.sleeper()
    root = spawner.python(NESTED)
    descendants = [int(pid) for pid in read_line(root).split()]
    assert pids(open_tree(root.pid)) == [root.pid, *descendants]


def test_processes_of_the_roots_session_are_members(spawner: Spawner, open_tree: Open) -> None:
    """Orphans in the session that the root leads are members, also once the root has ended."""
    root = spawner.python(WITH_ORPHAN, stdin=subprocess.PIPE)
    orphan = int(read_line(root))
    tree = open_tree(root.pid)
    assert sorted(pids(tree)) == sorted([root.pid, orphan])
    send_line(root)
    root.wait(60)
    assert pids(tree) == [orphan]


def test_a_session_that_the_root_does_not_lead_is_no_part_of_the_tree(
    spawner: Spawner, open_tree: Open
) -> None:
    """A root in the session of its parent has no members but itself and its descendants."""
    root = spawner.process("sleep", "1000", start_new_session=False)
    sibling = spawner.process("sleep", "1000", start_new_session=False)
    assert os.getsid(root.pid) == os.getsid(sibling.pid) == os.getsid(0)
    assert pids(open_tree(root.pid)) == [root.pid]


def test_a_member_whose_parent_has_ended_stays_a_member(spawner: Spawner, open_tree: Open) -> None:
    """A child that left the session is no descendant any more, and is stopped all the same."""
    root = spawner.python(WITH_SESSION, stdin=subprocess.PIPE)
    child = int(read_line(root))
    tree = open_tree(root.pid)
    send_line(root)
    root.wait(60)
    assert (row := read_row(child))
    assert row.parent != root.pid
    assert tree.rescan() == []
    assert pids(tree) == [child]
    assert tree.stop(60, NEVER) == [signal.SIGTERM]
    assert not is_running(child)


def test_a_rescan_lists_the_members_that_it_adds(spawner: Spawner, open_tree: Open) -> None:
    """A child that started after the last snapshot is added once."""
    root = spawner.python(FORKS_ON_REQUEST, stdin=subprocess.PIPE)
    assert read_line(root) == "ready"
    tree = open_tree(root.pid)
    assert tree.rescan() == []
    send_line(root)
    child = int(read_line(root))
    assert [member.pid for member in tree.rescan()] == [child]
    assert tree.rescan() == []


def test_the_tree_of_a_process_that_has_ended_has_no_members(
    spawner: Spawner, open_tree: Open
) -> None:
    """Nothing is signalled; no process is left to wait for."""
    process = spawner.sleeper()
    members = members_of(process.pid)
    process.kill()
    eventually(lambda: not is_running(process.pid))
    with ProcessTree(members, MemberTable()) as tree:
        assert tree.alive() == []
        assert tree.stop(60, NEVER) == []


def test_a_pid_that_is_used_again_is_neither_a_member_nor_signalled(
    spawner: Spawner, open_tree: Open
) -> None:
    """Where a later process has a PID of the snapshot, it is not added. See also test_pid_reuse."""
    root = spawner.python(NESTED)
    child, grandchild = (int(pid) for pid in read_line(root).split())

    def take_older_snapshot() -> ProcessSnapshot:
        """Take a snapshot in which the grandchild's PID is that of an earlier process."""
        snapshot = take_snapshot()
        row = snapshot.rows[grandchild]
        rows = {**snapshot.rows, grandchild: row._replace(started=row.started - 1)}
        return ProcessSnapshot(snapshot.taken_at, rows)

    tree = open_tree(root.pid, take_older_snapshot)
    assert pids(tree) == [root.pid, child]


# Joins a process group, or leads one if it is 0.
IN_GROUP = """
import os, sys, time
os.setpgid(0, int(sys.argv[1]))
print("ready", flush=True)
time.sleep(1000)
"""


def _start_in_group(spawner: Spawner, leader: int) -> int:
    process = spawner.python(IN_GROUP, str(leader), start_new_session=False)
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    return process.pid


def test_another_backend_in_the_process_group_is_spared(spawner: Spawner) -> None:
    """Also if it is registered only after the tree was opened."""
    first = _start_in_group(spawner, 0)
    late = _start_in_group(spawner, first)
    table = MemberTable()
    members = members_of(first)
    table.track(members)
    with ProcessTree(members, table) as tree:
        assert {each.pid for each in tree.alive()} == {first, late}
        table.track(members_of(late))
        tree.stop(5, threading.Event())
        assert tree.alive() == []
    assert not is_running(first)
    assert is_running(late)


def test_sigterm_ends_all_members(spawner: Spawner, open_tree: Open) -> None:
    """Where SIGTERM is enough, no SIGKILL is sent, and the grace is not waited for."""
    root = spawner.python(NESTED)
    descendants = [int(pid) for pid in read_line(root).split()]
    tree = open_tree(root.pid)
    began = time.monotonic()
    assert tree.stop(600, NEVER) == [signal.SIGTERM]
    assert time.monotonic() - began < 300
    assert tree.alive() == []
    assert not any(map(is_running, descendants))
    assert root.wait(60) == -signal.SIGTERM


def test_a_member_that_ignores_sigterm_is_killed_after_the_grace(
    spawner: Spawner, open_tree: Open
) -> None:
    """SIGKILL follows once the grace is over."""
    root = spawner.python(IGNORES_SIGTERM)
    assert read_line(root) == "ready"
    tree = open_tree(root.pid)
    began = time.monotonic()
    assert tree.stop(0.5, NEVER) == [signal.SIGTERM, signal.SIGKILL]
    assert time.monotonic() - began >= 0.5
    assert tree.alive() == []
    assert root.wait(60) == -signal.SIGKILL


def test_a_member_that_is_suspended_handles_sigterm(spawner: Spawner, open_tree: Open) -> None:
    """A process under SIGSTOP is continued, so that its own handler ends it."""
    root = spawner.python(HANDLES_SIGTERM)
    assert read_line(root) == "ready"
    suspend(root.pid)
    tree = open_tree(root.pid)
    assert tree.stop(60, NEVER) == [signal.SIGTERM]
    assert root.wait(60) == 5


@pytest.mark.parametrize(
    ("at_sigterm", "count"),
    [
        pytest.param("start", 2, id="child"),
        pytest.param("lambda: start(at_start=start)", 3, id="child and grandchild"),
        pytest.param("lambda: start(at_start=os.setpgrp)", 2, id="child in own group"),
        pytest.param("lambda: start_and_wait(at_start=os.setsid)", 2, id="child in own session"),
        pytest.param("lambda: start(lambda: start(start))", 4, id="chain of forks"),
        pytest.param("lambda: [start_and_wait() for _ in range(3)]", 4, id="child after child"),
    ],
)
def test_each_member_that_is_forked_during_the_stop_gets_one_sigterm(
    spawner: Spawner,
    open_tree: Open,
    monkeypatch: pytest.MonkeyPatch,
    at_sigterm: str,
    count: int,
) -> None:
    """SIGTERM ends the members that SIGTERM handlers fork, so no SIGKILL is sent.

    All members get it at once, as some of these roots wait for their children.
    """
    root = spawner.python(f"{SERVE}serve({at_sigterm}, lambda: None)")
    assert int(read_line(root)) == root.pid
    tree = open_tree(root.pid)
    sent = record_signals(monkeypatch)
    assert tree.stop(60, NEVER, root_first=False) == [signal.SIGTERM]
    assert root.stdout
    served = [root.pid, *map(int, root.stdout.read().split())]
    assert len(served) == count
    assert sorted(sent) == sorted((pid, signal.SIGTERM) for pid in served)


def record_signals(
    monkeypatch: pytest.MonkeyPatch, clock: Callable[[], float] = time.monotonic
) -> dict[tuple[int, int], float]:
    """Return when each signal is sent, by PID and signal; a second one to a process fails."""
    send = process_tree._send
    sent: dict[tuple[int, int], float] = {}

    def record(member: Process, number: int) -> bool:
        assert (member.pid, number) not in sent
        sent[member.pid, number] = clock()
        return send(member, number)

    monkeypatch.setattr(process_tree, "_send", record)
    return sent


class SimulatedTime(threading.Event):
    """A clock that each wait advances. At given times it calls a function.

    It takes the place of the event that interrupts a stop, and of the module `time`.
    """

    def __init__(self, at: Sequence[float], call: Callable[[], None]) -> None:
        super().__init__()
        self.now = 0.0
        self._at, self._call = at, call

    def monotonic(self) -> float:
        return self.now

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout
        if any(self.now < each <= self.now + timeout for each in self._at):
            self._call()
        self.now += timeout
        return False


@pytest.mark.parametrize("forked_at", [[0.5], [1.85], [1.99], [1.5, 1.85, 2.4]])
def test_a_member_that_is_found_late_has_at_least_half_of_the_grace(
    spawner: Spawner, open_tree: Open, monkeypatch: pytest.MonkeyPatch, forked_at: list[float]
) -> None:
    """SIGKILL follows its SIGTERM after half of the grace, and the first SIGTERM after the grace.

    As the root goes on, its children get no SIGTERM before half of the grace.
    This also applies to a member that is forked just before the end of the grace. If members are
    forked again and again, SIGKILL follows the first SIGTERM after 1.5 times the grace.
    """
    root = spawner.python(FORKS_ON_REQUEST, stdin=subprocess.PIPE)
    assert read_line(root) == "ready"
    tree = open_tree(root.pid)
    children: list[int] = []

    def fork() -> None:
        send_line(root)
        children.append(int(read_line(root)))

    clock = SimulatedTime(forked_at, fork)
    monkeypatch.setattr(process_tree, "time", clock)
    sent = record_signals(monkeypatch, clock.monotonic)
    assert tree.stop(2, clock) == [signal.SIGTERM, signal.SIGKILL]
    found_at = [sent[child, signal.SIGTERM] for child in children]
    assert found_at == pytest.approx([max(1, at) + 0.06 for at in forked_at], abs=0.06)
    expected = min(3, max(2, found_at[-1] + 1))
    killed_at = [sent[pid, signal.SIGKILL] for pid in (root.pid, *children)]
    assert killed_at == pytest.approx([expected] * len(killed_at), abs=0.05)


# On SIGTERM it waits until its worker has finished a request: a line on standard input. Then it
# ends, and leaves the worker behind. SIGTERM ends the worker at once.
DRAINS_WORKER = """
import os, signal, sys
reader, writer = os.pipe()
if os.fork() == 0:
    sys.stdin.readline()
    os.write(1, b"answered\\n")
    os.write(writer, b"done")
    signal.pause()
os.close(writer)
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
os.write(1, b"ready\\n")
signal.sigwait({signal.SIGTERM})
os.write(1, b"draining\\n")
os.read(reader, 10)
os._exit(3)
"""


def test_a_root_can_let_its_workers_finish(spawner: Spawner, open_tree: Open) -> None:
    """The workers get SIGTERM when the root has ended, and no signal before."""
    root = spawner.python(DRAINS_WORKER, stdin=subprocess.PIPE)
    assert read_line(root) == "ready"
    tree = open_tree(root.pid)
    assert len(tree.alive()) == 2
    with ThreadPoolExecutor(1) as pool:
        stopping = pool.submit(tree.stop, 600, NEVER)
        assert read_line(root) == "draining"
        send_line(root)
        assert read_line(root) == "answered"
        assert stopping.result(60) == [signal.SIGTERM]
    assert root.wait(60) == 3
    assert tree.alive() == []


@pytest.mark.parametrize(
    ("root_signal", "root_first", "expected", "at"),
    [
        (signal.SIGTERM, True, [signal.SIGTERM, signal.SIGKILL], 1),
        (signal.SIGTERM, False, [signal.SIGTERM, signal.SIGKILL], 0),
        (signal.SIGINT, True, [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], 1),
        (signal.SIGRTMIN, False, [signal.SIGRTMIN, signal.SIGTERM, signal.SIGKILL], 0),
    ],
)
def test_the_root_gets_its_signal_first(
    spawner: Spawner,
    open_tree: Open,
    monkeypatch: pytest.MonkeyPatch,
    root_signal: int,
    root_first: bool,
    expected: list[int],
    at: float,
) -> None:
    """The others get SIGTERM at half of the grace if the root goes on, or with it if so asked."""
    ignore = f"import signal\nfor each in {[*map(int, expected[:-1])]}: signal.signal(each, 1)\n"
    root = spawner.python(ignore + NESTED)
    others = [int(pid) for pid in read_line(root).split()]
    tree = open_tree(root.pid)
    clock = SimulatedTime([], lambda: None)
    monkeypatch.setattr(process_tree, "time", clock)
    sent = record_signals(monkeypatch, clock.monotonic)
    assert tree.stop(2, clock, root_signal, root_first=root_first) == expected
    asked = {each: when for each, when in sent.items() if each[1] not in KILLS}
    assert asked.pop((root.pid, root_signal)) == 0
    assert asked.keys() == {(pid, signal.SIGTERM) for pid in others}
    assert list(asked.values()) == pytest.approx([at] * 2, abs=0.05)


def test_a_tree_whose_root_has_ended_gets_sigterm_at_once(
    spawner: Spawner, open_tree: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is no root to wait for."""
    root = spawner.python(f"import os, signal, time\nif os.fork() == 0:\n    {LINGER}")
    child = int(read_line(root))
    root.wait(60)
    tree = open_tree(root.pid)
    clock = SimulatedTime([], lambda: None)
    monkeypatch.setattr(process_tree, "time", clock)
    sent = record_signals(monkeypatch, clock.monotonic)
    assert tree.stop(2, clock, signal.SIGINT) == [signal.SIGTERM, signal.SIGKILL]
    assert sent[child, signal.SIGTERM] == 0
    assert not is_running(child)


# Creates shared memory, forks a worker that uses it too, prints its name, and ignores SIGTERM.
SHARES_MEMORY = """
import os, signal, time
from multiprocessing.shared_memory import SharedMemory
memory = SharedMemory(create=True, size=1)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.fork():
    os.write(1, memory.name.encode() + b"\\n")
time.sleep(1000)
"""


@pytest.mark.parametrize("leads", ["session", "group", "nothing"])
def test_no_shared_memory_stays_after_sigkill(
    spawner: Spawner, open_tree: Open, leads: str
) -> None:
    """Python's resource tracker removes it, also if it is in the root's session or group."""
    lead = "import os; os.setpgrp()\n" if leads == "group" else ""
    root = spawner.python(lead + SHARES_MEMORY, start_new_session=leads == "session")
    segment = Path("/dev/shm") / read_line(root)
    tree = open_tree(root.pid)
    assert len(tree.alive()) == 3
    assert segment.exists()
    assert tree.stop(0.2, NEVER) == [signal.SIGTERM, signal.SIGKILL]
    assert tree.alive() == []
    assert not segment.exists()


def test_children_are_killed_before_their_parents(
    spawner: Spawner, open_tree: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel may send SIGHUP to a group whose leader ends while a child is under SIGSTOP."""
    root = spawner.python(f"import signal\nsignal.signal(15, signal.SIG_IGN)\n{NESTED}")
    child, grandchild = map(int, read_line(root).split())
    tree = open_tree(root.pid)
    sent = record_signals(monkeypatch)
    tree.stop(0.2, NEVER)
    killed = [pid for pid, number in sent if number == signal.SIGKILL]
    assert killed == [grandchild, child, root.pid]


# The command line of Python's resource tracker. The pipe by which it learns that no process is left
# is standard input.
TRACKER = "from multiprocessing.resource_tracker import main; main(0)"


@pytest.mark.parametrize("root_ignores", [True, False])
def test_a_tracker_that_goes_on_is_killed_last(
    spawner: Spawner, open_tree: Open, monkeypatch: pytest.MonkeyPatch, root_ignores: bool
) -> None:
    """It gets SIGKILL alone, a second after all others have ended, however they have ended."""
    handler = "signal.SIG_IGN" if root_ignores else "signal.SIG_DFL"
    root = spawner.python(
        "import signal, subprocess, sys, time\n"
        f"tracker = subprocess.Popen([sys.executable, '-c', {TRACKER!r}])\n"
        f"signal.signal(signal.SIGTERM, {handler})\n"
        "print(tracker.pid, flush=True)\ntime.sleep(1000)",
        stdin=subprocess.PIPE,
    )
    tracker = int(read_line(root))
    tree = open_tree(root.pid)
    sent = record_signals(monkeypatch)
    ended: list[float] = []
    kill_group = Process.kill_group

    def record_and_kill(process: Process) -> None:
        assert (tracker, signal.SIGKILL) in sent
        kill_group(process)

    monkeypatch.setattr(Process, "kill_group", record_and_kill)
    threading.Thread(target=lambda: ended.append(root.wait() and time.monotonic())).start()
    assert tree.stop(1, NEVER) == [signal.SIGTERM, signal.SIGKILL]
    assert [number for pid, number in sent if pid == tracker] == [signal.SIGKILL]
    eventually(lambda: ended)
    # The thread may learn later of the end than the stop: the wait began with the last signal.
    last = max(when for (pid, _), when in sent.items() if pid != tracker)
    assert sent[tracker, signal.SIGKILL] - last >= 1
    assert not is_running(tracker)


def test_a_child_whose_parent_ends_as_the_stop_begins_gets_sigterm(
    spawner: Spawner, open_tree: Open
) -> None:
    """The last known member may fork and end between the last rescan and SIGTERM."""
    root = spawner.python(
        f"{SERVE}import sys\nprint('ready', flush=True)\nsys.stdin.readline()\nstart()",
        stdin=subprocess.PIPE,
    )
    assert read_line(root) == "ready"
    children: list[int] = []
    stopping = threading.Event()

    def fork_after_snapshot() -> ProcessSnapshot:
        snapshot = take_snapshot()
        if stopping.is_set() and not children:
            send_line(root)
            children.append(int(read_line(root)))
            root.wait(60)
        return snapshot

    tree = open_tree(root.pid, fork_after_snapshot)
    stopping.set()
    assert tree.stop(60, NEVER) == [signal.SIGTERM]
    assert not is_running(children[0])


def test_a_child_of_a_member_that_has_just_ended_is_found(
    spawner: Spawner, open_tree: Open
) -> None:
    """A snapshot names the child's parent, also if the parent ends after the snapshot."""
    # The root leads no session, by which the child could be found as well.
    root = spawner.python(WITH_SESSION, stdin=subprocess.PIPE, start_new_session=False)
    child = int(read_line(root))

    def kill_root_after_snapshot() -> ProcessSnapshot:
        snapshot = take_snapshot()
        root.kill()
        root.wait()
        return snapshot

    try:
        assert pids(open_tree(root.pid, kill_root_after_snapshot)) == [child]
    finally:
        os.kill(child, signal.SIGKILL)  # it is in no session or group that the spawner ends


def test_a_child_that_is_forked_before_its_parent_is_stopped_is_stopped_too(
    spawner: Spawner, open_tree: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A child may start between the list of members and their SIGSTOP: SIGKILL follows later."""
    root = spawner.python(FORKS_ON_REQUEST, stdin=subprocess.PIPE)
    assert read_line(root) == "ready"
    send = process_tree._send
    children: list[int] = []
    sent: list[tuple[int, int]] = []

    def fork_and_send(member: Process, number: int) -> bool:
        if number == signal.SIGSTOP and member.pid == root.pid:
            send_line(root)
            children.append(int(read_line(root)))
        sent.append((member.pid, number))
        return send(member, number)

    monkeypatch.setattr(process_tree, "_send", fork_and_send)
    open_tree(root.pid).stop(0.2, NEVER)
    (child,) = children
    assert sent.index((child, signal.SIGSTOP)) < sent.index((child, signal.SIGKILL))
    eventually(lambda: not is_running(child))


def test_no_member_forks_while_the_tree_is_killed(spawner: Spawner, open_tree: Open) -> None:
    """Children that would start a process in another session at their parent's end cannot do so."""
    root = spawner.python(FORKS_WHEN_ORPHANED)
    assert read_line(root) == "ready"
    open_tree(root.pid).stop(3, NEVER)
    assert root.stdout
    escaped = []
    if select.select([root.stdout], [], [], 0)[0]:
        escaped = os.read(root.stdout.fileno(), 4096).split()
    for pid in escaped:
        os.kill(int(pid), signal.SIGKILL)
    assert escaped == []


def test_a_chain_of_short_lived_processes_is_killed(spawner: Spawner, open_tree: Open) -> None:
    """Each of them lives for 2 ms, so that some end between two rescans."""
    root = spawner.python(f"import os, time\nif os.fork():\n    time.sleep(1000)\n{FORKS_AND_ENDS}")
    assert read_line(root) == "ready"
    open_tree(root.pid).stop(3, NEVER)
    assert root.stdout
    # Each process that still runs keeps the pipe open.
    assert select.select([root.stdout], [], [], 60)[0]
    assert root.stdout.read() == ""


def test_suspended_members_are_killed_if_the_last_rescan_fails(
    spawner: Spawner, open_tree: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No member stays under SIGSTOP, although no descriptor is free for the rescan."""
    ignore = "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    root = spawner.python(ignore + NESTED)
    members = [root.pid, *(int(pid) for pid in read_line(root).split())]
    send = process_tree._send
    sent: list[int] = []

    def record_and_send(member: Process, number: int) -> bool:
        sent.append(number)
        return send(member, number)

    def fail_or_take() -> ProcessSnapshot:
        if signal.SIGSTOP in sent:
            raise OSError(errno.EMFILE, "Too many open files")
        return take_snapshot()

    monkeypatch.setattr(process_tree, "_send", record_and_send)
    tree = open_tree(root.pid, fail_or_take)
    with pytest.raises(OSError, match="Too many open files"):
        tree.stop(0.2, NEVER)
    eventually(lambda: not any(map(is_running, members)))


def test_an_interrupted_stop_sends_no_sigkill(spawner: Spawner, open_tree: Open) -> None:
    """Once `interrupted` is set, the members that are left go on running."""
    root = spawner.python(IGNORES_SIGTERM)
    assert read_line(root) == "ready"
    tree, interrupted = open_tree(root.pid), threading.Event()
    interrupted.set()
    assert tree.stop(600, interrupted) == [signal.SIGTERM]
    assert pids(tree) == [root.pid]
    assert is_running(root.pid)


def test_waiting_ends_with_the_last_member_or_with_its_time(
    spawner: Spawner, open_tree: Open
) -> None:
    """Waiting sends no signal by itself."""
    root = spawner.sleeper()
    tree = open_tree(root.pid)
    tree.wait_ended(0.2, NEVER)
    assert pids(tree) == [root.pid]
    timer = threading.Timer(0.2, root.kill)
    timer.start()
    began = time.monotonic()
    tree.wait_ended(600, NEVER)
    timer.join()
    assert tree.alive() == []
    assert time.monotonic() - began < 300


@pytest.mark.skipif(os.geteuid() != 0, reason="takes another user's identity")
def test_a_member_that_may_not_be_signalled_is_left_and_logged(spawner: Spawner) -> None:
    """Other members are stopped all the same."""
    other = spawner.sleeper()
    code = f"""
import logging, os, sys, threading
logging.basicConfig(format="%(message)s", stream=sys.stdout)
from monitor_plugin.processes.members import Members, MemberTable
from monitor_plugin.processes.process_table import read_row
from monitor_plugin.processes.process_tree import ProcessTree
os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
members = Members(({other.pid}, read_row({other.pid}).started))
with ProcessTree(members, MemberTable()) as tree:
    print(tree.stop(0.1, threading.Event()), [member.pid for member in tree.alive()])
"""
    # What psutil and the package load is loaded before the identity changes.
    process = spawner.process(sys.executable, "-c", code)
    *warnings, result = process.communicate(timeout=60)[0].splitlines()
    assert result == f"[] [{other.pid}]"
    assert warnings
    assert all(each.startswith(f"process {other.pid} may not be signalled: ") for each in warnings)
    assert is_running(other.pid)
