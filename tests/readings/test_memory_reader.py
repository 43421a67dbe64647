"""The memory of process trees is read in the background, in order, and at a low cost."""

from __future__ import annotations

import itertools
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator

import pytest

from monitor_plugin import Monitor, Settings
from monitor_plugin.backends.registry import Record, Registry
from monitor_plugin.concurrency.cpu_budget import CpuBudget
from monitor_plugin.domain.models import Observation
from monitor_plugin.processes.members import Members
from monitor_plugin.processes.process_table import ProcessIdentity, ProcessRow, ProcessSnapshot
from monitor_plugin.processes.tree_memory import TreeMemory
from monitor_plugin.readings import memory_reader
from monitor_plugin.readings.memory_reader import MemoryReader

from ..backends.conftest import make_record
from ..support import Client, Spawner, eventually, started_since

GIB = 1024**3


class Host:
    """Backends without processes, whose memory a test sets, and the clocks of the thread.

    Attributes:
        reader: the reader, without a thread.
        reads: the model and the time of each reading.
        used: CPU seconds that readings have taken.
    """

    def __init__(self, seconds_per_gib: float = 0.0) -> None:
        self.registry = Registry()
        self.now = 1000.0
        self.used = 0.0
        self.reads: list[tuple[str, float]] = []
        self._seconds_per_gib = seconds_per_gib
        self._rss: dict[int, int] = {}
        share, credit = memory_reader._SHARE_OF_A_CORE, memory_reader._MAX_CREDIT_SECONDS
        budget = CpuBudget(share, credit, lambda: self.now, lambda: self.used)
        self.reader = MemoryReader(self.registry, self._read, lambda: self.now, budget)

    def add(self, model: str, rss: int = GIB) -> Record:
        """Register a backend."""
        pid = 100 + len(self._rss)
        record = make_record(model, pid)
        record.members = Members((pid, 1.0))
        self._rss[pid] = rss
        self.registry.add(record, lambda: None)
        self.snapshot()
        return record

    def set_rss(self, record: Record, rss: int) -> None:
        """Change the memory of a backend, as a later snapshot shows it."""
        self._rss[record.backend.pid] = rss
        self.snapshot()

    def snapshot(self) -> None:
        """Let all members be found in a snapshot of now."""
        self.now += 0.001
        rows = {
            pid: ProcessRow(1, pid, 1.0, rss=rss, vms=rss, read_at=self.now)
            for pid, rss in self._rss.items()
        }
        for record in self.registry.records():
            record.members.update(ProcessSnapshot(self.now, rows))

    def run(self, seconds: float) -> list[str]:
        """Let the time pass; return the models that were read, in order."""
        end, before = self.now + seconds, len(self.reads)
        while self.now < end:
            wait = self.reader.read_next()
            self.now = min(end, self.now + max(wait, 0.0001))
        return [model for model, _ in self.reads[before:]]

    def _read(self, members: Iterable[ProcessIdentity], root: ProcessIdentity) -> TreeMemory | None:
        assert list(members) == [root]
        taken_at, rss = self.now, self._rss[root[0]]
        took = self._seconds_per_gib * rss / GIB
        self.now += took
        self.used += took
        record = self.registry.find(root[0])
        self.reads.append((record.backend.model if record else "", taken_at))
        return TreeMemory(taken_at, rss, rss // 2, peak_rss=rss)


def test_new_backend_is_read_first() -> None:
    """It comes before trees that were read, even if their memory has changed."""
    host = Host()
    a, b = host.add("a"), host.add("b")
    assert sorted(host.run(1.0)) == ["a", "b"]
    host.now += 20
    host.set_rss(b, 2 * GIB)
    host.add("new")
    assert host.run(0.5) == ["new", "b", "a"]
    assert a.tree_memory
    assert (a.tree_memory.pss, a.tree_memory.rss) == (GIB // 2, GIB)


def test_tree_is_read_every_ten_seconds_and_sooner_if_it_changes() -> None:
    """A change of up to an eighth does not count. Backends that report memory are read less."""
    host = Host()
    record = host.add("m", 800)
    host.run(0.5)
    assert len(host.run(600)) in range(54, 61)
    record.observation = Observation(backend=record.backend, memory_source="backend")
    assert len(host.run(600)) in range(18, 21)
    record.observation = None
    host.run(11)
    host.now = record.tree_read_at + 2
    host.set_rss(record, 900)
    assert host.run(0.9) == []
    host.set_rss(record, 901)
    assert host.run(2.0) == ["m"]


def test_tree_that_always_changes_is_read_once_a_second() -> None:
    """It is not read more often, even if there is nothing else to do."""
    host = Host()
    record = host.add("m")
    count = 0
    for number in range(60):
        host.set_rss(record, (1 + number % 2) * GIB)
        count += len(host.run(1.0))
    assert 25 <= count <= 61


@pytest.mark.parametrize(("backends", "gib"), [(8, 1), (3, 100), (1, 800), (200, 0.02)])
def test_readings_take_two_percent_of_a_core(backends: int, gib: float) -> None:
    """At 17 ms per GiB, the memory of each backend is read, and what takes long less often."""
    host = Host(seconds_per_gib=0.017)
    for number in range(backends):
        host.add(f"m{number}", int(gib * GIB))
    began = host.now
    host.run(1200)
    longest = 0.017 * gib
    assert host.used <= 0.02 * (host.now - began) + 0.1 + longest
    by_model = {model for model, _ in host.reads}
    assert len(by_model) == backends
    if backends * longest > 0.02 * 10:  # all of the CPU time is used then
        assert host.used > 0.018 * (host.now - began)


def test_reading_of_a_huge_tree_is_followed_by_a_pause() -> None:
    """1.7 s at 100 GiB are followed by more than a minute."""
    host = Host(seconds_per_gib=0.017)
    host.add("m", 100 * GIB)
    host.run(600)
    times = [at for _, at in host.reads[1:]]
    assert len(times) > 4
    pauses = [after - before for before, after in itertools.pairwise(times)]
    assert min(pauses) == pytest.approx(85, abs=2)


def test_huge_tree_that_always_changes_does_not_keep_others_from_being_read() -> None:
    """The older a reading is, the sooner comes the next one."""
    host = Host(seconds_per_gib=0.017)
    grows, *others = [host.add(f"m{number}", 50 * GIB) for number in range(4)]
    for number in range(3000):
        host.set_rss(grows, (50 + 10 * (number % 2)) * GIB)
        host.run(2.0)
    counts = {record.backend.model: 0 for record in (grows, *others)}
    for model, _ in host.reads:
        counts[model] += 1
    assert counts["m0"] == max(counts.values())
    assert min(counts.values()) >= 5


def test_ended_backend_is_released_and_its_peak_stays(caplog: pytest.LogCaptureFixture) -> None:
    """A reading that finds no running member, or that fails, changes nothing."""
    host = Host()
    record = host.add("m")
    host.run(1.0)
    known = record.tree_memory
    assert known
    for result in (lambda *_: None, _raise_oserror):
        host.reader._read = result
        host.now += 10
        host.reader.read_next()
        assert record.tree_memory is known
        assert record.tree_read_at == pytest.approx(host.now, abs=1)
    assert record.peak_rss() == GIB
    assert not caplog.records


def _raise_oserror(*_: object) -> TreeMemory:
    raise OSError(24, "Too many open files")


@pytest.fixture
def make_unstarted() -> Iterator[Callable[[], Monitor]]:
    """Makes monitors that are closed after the test."""
    monitors: list[Monitor] = []

    def make() -> Monitor:
        settings = Settings(listen="127.0.0.1:0", sweep_interval_seconds=0.1, gpu="off")
        monitors.append(Monitor(settings))
        return monitors[-1]

    yield make
    for each in monitors:
        each.close()


def test_nothing_waits_for_a_reading_that_hangs(
    make_unstarted: Callable[[], Monitor], spawner: Spawner
) -> None:
    """The kernel can block a reading; lists say how old the last figures are. `close` gives up."""
    monitor = make_unstarted()
    reader = monitor._services.memory_reader
    read, hangs, released = reader._read, threading.Event(), threading.Event()

    def read_until_it_hangs(*arguments: object) -> TreeMemory | None:
        if hangs.is_set():
            released.wait(60)
        return read(*arguments)  # type: ignore[arg-type]

    reader._read = read_until_it_hangs
    before = threading.enumerate()
    monitor.start()
    backend = spawner.backend("--no-memory")
    backend.register(monitor, "m")
    client = Client(monitor.url)

    def item() -> dict[str, object]:
        (found,) = client.request("GET", "/backends").json["backends"]
        assert isinstance(found, dict)
        return {**found, **found["process"]["tree"]}

    try:
        eventually(lambda: item()["memory_source"] == "pss")
        hangs.set()
        record = monitor._services.registry.records()[0]
        eventually(lambda: (item()["memory_age_seconds"] or 0) > 12)  # type: ignore[operator]
        assert time.monotonic() - record.tree_read_at < 60
        other = spawner.backend("--no-memory")
        other.register(monitor, "other")  # it is not read, and has its RSS
        (unread,) = client.request("GET", "/backends?model=other").json["backends"]
        assert unread["memory_source"] == "rss"
        tree = unread["process"]["tree"]
        assert (tree["pss"], tree["memory_age_seconds"], tree["peak_rss"]) == (None, None, None)
        assert [each.awaits_pss for each in monitor.sweep()] == [False, True]
        answer = client.monitor("m")
        assert answer.json["state"] == 2
        assert client.monitor("other").headers["X-Monitor-Memory-Source"] == "rss"
        assert started_since(before).count("monitor-memory") == 1
        monitor.close()
        assert started_since(before) == ["monitor-memory"]
    finally:
        released.set()
    eventually(lambda: not started_since(before))


def test_stopped_process_is_read(monitor: Monitor, spawner: Spawner) -> None:
    """SIGSTOP blocks no reading."""
    backend = spawner.backend("--no-memory")
    backend.register(monitor, "m")
    psutil_process = monitor._services.registry.records()[0].process
    psutil_process.send_signal(signal.SIGSTOP)
    record = monitor._services.registry.records()[0]
    first = eventually(lambda: record.tree_memory)
    assert first
    eventually(lambda: record.tree_memory is not first)
    psutil_process.send_signal(signal.SIGCONT)


def test_error_of_a_reading_is_logged_and_the_next_one_follows(
    make_unstarted: Callable[[], Monitor], spawner: Spawner, caplog: pytest.LogCaptureFixture
) -> None:
    """A bug in the reading of one tree must not end the thread."""
    monitor = make_unstarted()
    reader = monitor._services.memory_reader
    read, calls = reader._read, []

    def fail_once(*arguments: object) -> TreeMemory | None:
        calls.append(arguments)
        if len(calls) == 1:
            raise ZeroDivisionError("odd")
        return read(*arguments)  # type: ignore[arg-type]

    reader._read = fail_once
    monitor.start()
    with caplog.at_level(logging.ERROR, "monitor_plugin"):
        spawner.backend("--no-memory").register(monitor, "m")
        (record,) = monitor._services.registry.records()
        eventually(lambda: record.tree_memory)
    assert "the memory of a process tree could not be read" in caplog.text
