"""Samples of real processes, and their CPU figure in readings."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from monitor_plugin import BackendUnreadable, Monitor
from monitor_plugin.processes.process import Process, ProcessGone
from monitor_plugin.processes.sampler import Sampler

from ..support import Spawner, eventually

USABLE_BYTES = 1 << 30

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


def cpu_seconds(process: psutil.Process) -> tuple[float, float]:
    """Return when the CPU time of a process was read (monotonic), and the CPU seconds used."""
    while True:
        began, times, now = time.monotonic(), process.cpu_times(), time.monotonic()
        if now - began < 0.02:
            return now, times.user + times.system


@pytest.mark.parametrize("percent", [pytest.param(50, marks=pytest.mark.once), 150])
def test_cpu_percent_is_what_the_process_uses(
    percent: int, monitor: Monitor, spawner: Spawner
) -> None:
    """Four clients with different intervals all read the true figure, within 10 points.

    The true figure is the process's CPU usage in the one to five seconds before the reading: how
    much it can use depends on the load of the machine.
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
            truth.append(cpu_seconds(measured))
            time.sleep(0.02)
        for each in clients:
            each.result()

    def used_before(end: int) -> Iterator[float]:
        """The CPU usage of each stretch of time that ends there, in percent."""
        for start in range(end):
            if 0.8 <= truth[end][0] - truth[start][0] <= 5:
                seconds = truth[end][1] - truth[start][1]
                yield 100 * seconds / (truth[end][0] - truth[start][0])

    assert readings
    for at, cpu in readings:
        end = min(range(len(truth)), key=lambda each: abs(truth[each][0] - at))
        assert any(abs(cpu - each) <= 10 for each in used_before(end)), (at - registered, cpu)


def test_a_process_that_has_ended_has_no_sample(spawner: Spawner) -> None:
    """A process that runs has a sample with every figure."""
    child = spawner.sleeper()
    with Process(child.pid) as process:
        sampler = Sampler(process)
        # The process may still be loading its libraries.
        rss = psutil.Process(child.pid).memory_info
        eventually(lambda: sampler.sample(USABLE_BYTES).rss == rss().rss)
        sample = sampler.sample(USABLE_BYTES)
        assert sample.rss
        assert sample.memory_percent == 100 * sample.rss / USABLE_BYTES
        assert sampler.sample(0).memory_percent is None
        child.kill()
        eventually(process.ended)
        with pytest.raises(ProcessGone):
            sampler.sample(USABLE_BYTES)


class Denied:
    """A psutil process of which some figures may not be read; root may read all of them."""

    def __init__(self, process: psutil.Process, *denied: str) -> None:
        self._process = process
        self._denied = denied

    def __getattr__(self, name: str) -> Any:
        def deny() -> None:
            raise psutil.AccessDenied(self._process.pid)

        return deny if name in self._denied else getattr(self._process, name)


def test_a_figure_that_may_not_be_read_is_none(spawner: Spawner) -> None:
    """The other figures are in the sample."""
    child = spawner.sleeper()
    with Process(child.pid) as process:
        process.psutil_process = Denied(process.psutil_process, "memory_info")  # type: ignore[assignment]
        with pytest.raises(psutil.AccessDenied):
            process.psutil_process.memory_info()
        sample = Sampler(process).sample(USABLE_BYTES)
        assert (sample.rss, sample.vms, sample.memory_percent) == (None, None, None)
        assert sample.cpu_percent is not None


class SlowAtFirst:
    """A psutil process: the first read of its CPU time takes 0.05 s, in which it works."""

    def __init__(self) -> None:
        self.read = 0

    def cpu_times(self) -> Any:
        self.read += 1
        if self.read == 1:
            time.sleep(0.05)
        return SimpleNamespace(user=float(self.read), system=0.0)


def test_cpu_time_and_clock_are_read_at_the_same_time(spawner: Spawner) -> None:
    """Where the thread was suspended between the two, both are read again."""
    with Process(spawner.sleeper().pid) as process:
        process.psutil_process = SlowAtFirst()  # type: ignore[assignment]
        ((_, seconds),) = Sampler(process)._baselines
    assert seconds >= 2


def test_memory_that_the_kernel_hides_is_none_and_not_0(spawner: Spawner) -> None:
    """Of a process whose first thread has exited, /proc shows 0 bytes, which is wrong."""
    process = spawner.python(
        "import ctypes, threading, time\n"
        "threading.Thread(target=time.sleep, args=(1000,)).start()\n"
        "ctypes.CDLL(None).pthread_exit(None)"
    )
    by_psutil = psutil.Process(process.pid)
    eventually(lambda: by_psutil.status() == psutil.STATUS_ZOMBIE)
    assert by_psutil.memory_info().vms == 0
    with Process(process.pid) as opened:
        sample = Sampler(opened).sample(USABLE_BYTES)
    assert (sample.rss, sample.vms, sample.memory_percent) == (None, None, None)
    assert sample.cpu_percent is not None


def test_a_backend_without_any_figure_is_unreadable(
    make_monitor: Callable[..., Monitor], spawner: Spawner
) -> None:
    """If the status fails and no figure may be read, the reading is an error."""
    monitor = make_monitor()
    child = spawner.sleeper()
    monitor.hook.monitor_backend_spawned(model="m", pid=child.pid, address="127.0.0.1:1")
    (record,) = monitor._services.registry.records()
    record.process.psutil_process = Denied(  # type: ignore[assignment]
        record.process.psutil_process, "memory_info", "cpu_times"
    )
    with pytest.raises(BackendUnreadable, match=f"process {child.pid} cannot be read"):
        monitor.read("m")
