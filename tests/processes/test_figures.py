"""One process, told apart by PID and creation time, by pidfd and without; and its figures."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from monitor_plugin import BackendUnreadable, Monitor
from monitor_plugin.processes.oom import OomKillCounter
from monitor_plugin.processes.process import Process, ProcessGone
from monitor_plugin.processes.process_table import ProcessTable, read_row
from monitor_plugin.processes.sampler import Sampler

from ..support import Spawner, eventually

MIB = 1 << 20

ON_ANOTHERS = """
import os, sys
from monitor_plugin.processes.process import Process
from monitor_plugin.processes.process_table import ProcessTable
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
process = Process(int(sys.argv[1]))
print(ProcessTable().tree_memory(process.pid)[1])
try:
    process.send_signal(15)
except PermissionError:
    print("may not")
"""


@pytest.mark.parametrize("keep", [True, False])
def test_signals_and_ends(keep: bool, spawner: Spawner) -> None:
    """With and without a pidfd a signal arrives, and the end is seen and explained."""
    child = spawner.sleeper()
    with Process(child.pid, keep_descriptor=keep) as process:
        assert (process.pidfd is not None) == keep
        assert process.created_at == psutil.Process(child.pid).create_time()
        assert not process.ended()
        assert process.exit_code() is None
        assert process.send_signal(signal.SIGKILL)
        eventually(process.ended)
        assert process.exit_code() == -signal.SIGKILL
        assert child.wait() == -signal.SIGKILL
        assert process.ended()
        assert not process.send_signal(signal.SIGKILL)
    with pytest.raises(ProcessGone):
        Process(child.pid, keep_descriptor=keep)


def test_anothers_zombie_is_explained(spawner: Spawner) -> None:
    """The exit code of a zombie that is not our child is known, and stays for its parent."""
    code = """
import os, signal, sys, time
signal.signal(signal.SIGUSR1, lambda number, frame: os._exit(7))
pid = os.fork()
if pid == 0:
    time.sleep(1000)
print(pid, flush=True)
sys.stdin.readline()
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""
    parent = spawner.python(code, stdin=subprocess.PIPE)
    assert parent.stdin
    assert parent.stdout
    with Process(int(parent.stdout.readline())) as process:
        # Again and again: one that comes right after the fork is lost to Python's handler.
        eventually(lambda: not process.send_signal(signal.SIGUSR1))
        assert process.ended()
        assert process.exit_code() == 7
        parent.stdin.write("\n")
        parent.stdin.close()
        assert parent.stdout.readline() == "7\n"


def test_another_users_process(spawner: Spawner) -> None:
    """What may not be read falls back to what may, and signals are refused with a clear error."""
    if os.getuid() != 0:
        pytest.skip("only root can be another user")
    target = spawner.process(sys.executable, "-c", "input()", stdin=subprocess.PIPE)
    output = spawner.python(ON_ANOTHERS, str(target.pid)).communicate(timeout=60)[0]
    assert output.splitlines() == ["rss", "may not"]


def test_shared_pages_count_once(spawner: Spawner) -> None:
    """A tree that shares 60 MiB by fork holds them once, by PSS."""
    backend = spawner.backend("--weights-mib", "60", "--fork-workers", "3")
    table = ProcessTable()
    held = table.tree_memory(backend.pid)
    assert held
    assert held[1] == "pss"
    assert 60 * MIB < held[0] < 150 * MIB
    assert len(table.tree(backend.pid)) == 4
    assert ProcessTable().tree_memory(2**22 + 1) is None


def test_rows_of_the_table(spawner: Spawner, tmp_path: Path) -> None:
    """A strange name does not confuse the parser."""
    strange = tmp_path / "a) Z (b"
    strange.symlink_to("/bin/sleep")
    child = spawner.process(str(strange), "1000")
    row = read_row(child.pid)
    assert row
    assert (row.parent, row.session) == (os.getpid(), child.pid)
    assert read_row(2**22 + 1) is None


BURNER = """
import hashlib, sys, threading, time
def burn(share):
    data = bytes(1 << 16)
    while True:
        started, used = time.monotonic(), time.thread_time()
        while time.thread_time() - used < 0.05 * share:
            hashlib.sha256(data)  # without the interpreter's lock, so that threads run at once
        time.sleep(max(0, 0.05 - (time.monotonic() - started)))
percent = int(sys.argv[1])
for share in (min(100, percent) / 100, max(0, percent - 100) / 100):
    threading.Thread(target=burn, args=(share,)).start()
"""


def used(process: psutil.Process) -> tuple[float, float]:
    """Tell what CPU time a process had used, and when; again where that took its time."""
    while True:
        began, times, now = time.monotonic(), process.cpu_times(), time.monotonic()
        if now - began < 0.02:
            return now, times.user + times.system


@pytest.mark.parametrize("percent", [0, 50, 100, 150])
def test_cpu_percent_is_what_is_burnt(percent: int, monitor: Monitor, spawner: Spawner) -> None:
    """From a second on, with four clients at their own rates, it is the true one within 10 points.

    The truth is the process's CPU time over a stretch of one to five seconds before the reading:
    what it really burns depends on who else runs here.
    """
    child = spawner.python(BURNER, str(percent))
    measured = psutil.Process(child.pid)
    eventually(lambda: measured.num_threads() == 3)
    truth: list[tuple[float, float]] = []
    readings: list[tuple[float, float]] = []
    registered = time.monotonic()
    monitor.hook.monitor_backend_spawned(model="m", pid=child.pid, address="127.0.0.1:1")

    def ask(seconds: float) -> None:
        while (now := time.monotonic()) < registered + 4.5:
            if now > registered + 1:
                cpu = monitor.read("m").sample.cpu_percent  # type: ignore[union-attr]
                assert cpu is not None
                readings.append((time.monotonic(), cpu))
            time.sleep(seconds)

    with ThreadPoolExecutor(4) as pool:
        clients = [pool.submit(ask, seconds) for seconds in (0.01, 0.05, 0.13, 0.4)]
        while not all(each.done() for each in clients):
            truth.append(used(measured))
            time.sleep(0.02)
        for each in clients:
            each.result()

    def burnt(end: int) -> Iterator[float]:
        """What was burnt in each stretch that ends there."""
        for start in range(end):
            if 0.8 <= truth[end][0] - truth[start][0] <= 5:
                seconds = truth[end][1] - truth[start][1]
                yield 100 * seconds / (truth[end][0] - truth[start][0])

    assert readings
    for at, cpu in readings:
        end = min(range(len(truth)), key=lambda each: abs(truth[each][0] - at))
        assert any(abs(cpu - each) <= 10 for each in burnt(end)), (at - registered, cpu)


def test_a_sample_is_of_the_process_or_of_none(spawner: Spawner) -> None:
    """A sample has every figure, and there is none of a process that has ended."""
    child = spawner.sleeper()
    with Process(child.pid) as process:
        sampler = Sampler(process)
        # Which may be loading its libraries still.
        rss = psutil.Process(child.pid).memory_info
        eventually(lambda: sampler.sample().rss == rss().rss)
        assert sampler.sample().memory_percent
        child.kill()
        eventually(process.ended)
        with pytest.raises(ProcessGone):
            sampler.sample()


class Denied:
    """A process some figures of which may not be read, which to root none is."""

    def __init__(self, process: psutil.Process, *denied: str) -> None:
        self._process = process
        self._denied = denied

    def oneshot(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def __getattr__(self, name: str) -> Any:
        def deny() -> None:
            raise psutil.AccessDenied(self._process.pid)

        return deny if name in self._denied else getattr(self._process, name)


def test_a_figure_that_may_not_be_read_is_null(spawner: Spawner) -> None:
    """One figure that is denied is None, and the others stand."""
    child = spawner.sleeper()
    with Process(child.pid) as process:
        process.psutil_process = Denied(process.psutil_process, "memory_info")  # type: ignore[assignment]
        with pytest.raises(psutil.AccessDenied):
            process.psutil_process.memory_info()
        sample = Sampler(process).sample()
        assert (sample.rss, sample.vms) == (None, None)
        assert sample.memory_percent is not None
        assert sample.cpu_percent is not None


class Stalls:
    """A process whose first reading of the CPU time is late by a moment, in which it works."""

    def __init__(self) -> None:
        self.read = 0

    def cpu_times(self) -> Any:
        self.read += 1
        if self.read == 1:
            time.sleep(0.05)
        return SimpleNamespace(user=float(self.read), system=0.0)


def test_a_cpu_time_is_of_the_time_that_is_told(spawner: Spawner) -> None:
    """Where the thread had no turn between the two, both are read again."""
    with Process(spawner.sleeper().pid) as process:
        process.psutil_process = Stalls()  # type: ignore[assignment]
        ((_, seconds),) = Sampler(process)._baselines
    assert seconds >= 2


def test_memory_that_the_kernel_hides_is_null_and_not_0(spawner: Spawner) -> None:
    """Where a process lives on without its first thread, /proc says 0, which is not true."""
    process = spawner.python(
        "import ctypes, threading, time\n"
        "threading.Thread(target=time.sleep, args=(1000,)).start()\n"
        "ctypes.CDLL(None).pthread_exit(None)"
    )
    of_system = psutil.Process(process.pid)
    eventually(lambda: of_system.status() == psutil.STATUS_ZOMBIE)
    assert of_system.memory_info().vms == 0
    with Process(process.pid) as opened:
        sample = Sampler(opened).sample()
    assert (sample.rss, sample.vms, sample.memory_percent) == (None, None, None)
    assert sample.cpu_percent is not None


def test_nothing_may_be_read(make_monitor: Callable[..., Monitor], spawner: Spawner) -> None:
    """Where the status fails and no figure may be read, the error says so."""
    monitor = make_monitor()
    child = spawner.sleeper()
    monitor.hook.monitor_backend_spawned(model="m", pid=child.pid, address="127.0.0.1:1")
    (record,) = monitor._services.registry.records()
    record.process.psutil_process = Denied(  # type: ignore[assignment]
        record.process.psutil_process, "memory_info", "memory_percent", "cpu_times"
    )
    with pytest.raises(BackendUnreadable, match=f"process {child.pid} cannot be read"):
        monitor.read("m")


def test_kills_for_want_of_memory_are_counted(tmp_path: Path) -> None:
    """The control group's own count tells, in both versions' files, and in none."""
    groups, cgroup = tmp_path / "cgroup", tmp_path / "proc" / "5" / "cgroup"
    (groups / "a").mkdir(parents=True)
    (groups / "memory" / "b").mkdir(parents=True)
    cgroup.parent.mkdir(parents=True)
    for line, count_file in (
        ("0::/a\n", groups / "a" / "memory.events"),
        ("4:cpu,memory:/b\n0::/none\n", groups / "memory" / "b" / "memory.oom_control"),
    ):
        cgroup.write_text(line)
        count_file.write_text("oom 3\noom_kill 1\n")
        kills = OomKillCounter(5, proc=tmp_path / "proc", cgroups=groups)
        assert kills.path == str(count_file)
        assert not kills.has_risen()
        count_file.write_text("oom 4\noom_kill 2\n")
        assert kills.has_risen()
        kills.update()
        assert kills.has_risen()  # one update may fall between the kill and the end
        kills.update()
        assert not kills.has_risen()
    cgroup.write_text("0::/none\n")
    kills.update()
    assert kills.path is None
    assert not kills.has_risen()
    assert OomKillCounter(6, proc=tmp_path / "proc", cgroups=groups).path is None
