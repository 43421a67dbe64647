"""Freed memory: the measurement before a stop, and the wait until drivers list it no longer."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
from msgspec import structs

from monitor_plugin import Backend, Gpu, GpuUse, Monitor, ShutdownFailed, hookimpl
from monitor_plugin.domain.models import Freed
from monitor_plugin.gpu.reader import GpuReader
from monitor_plugin.processes import process_table
from monitor_plugin.processes.process_table import read_row
from monitor_plugin.processes.tree_memory import TreeMemory
from monitor_plugin.shutdown import memory_release as module
from monitor_plugin.shutdown.memory_release import HeldMemory, MemoryRelease

from ..gpus import GpuFile, make_gpu
from ..support import (
    Answer,
    Client,
    Spawner,
    await_memory,
    eventually,
    is_running,
    logged,
    members_of,
    refuse_descriptors,
    register,
)
from .support import StaysBusy

GIB = 1024**3
MIB = 1024**2


def gpu(uses: Mapping[int, int | None] | None, **fields: Any) -> Gpu:
    return make_gpu(uses, **{"component": "vram:nvidia0", **fields})


def reads_again(driver: GpuFile) -> bool:
    """Wait until a read has begun and ended; so a wait has seen what the file has now."""
    before = driver.reads
    return bool(eventually(lambda: driver.reads >= before + 2))


class Rig:
    """A process of a backend, the driver of a GPU, and the parts of a stop.

    Attributes:
        process: holds 1 GiB of the GPU at first.
        driver: the GPU's driver.
        closing: ends waits.
    """

    def __init__(self, spawner: Spawner, path: Path) -> None:
        self.process = spawner.sleeper()
        self.pid = pid = self.process.pid
        await_memory(pid)
        self.members = members_of(pid)
        self.driver = GpuFile(path)
        self.driver.write(gpu({pid: GIB}))
        self.reader = GpuReader([self.driver])
        self.reader.start()
        self.closing = threading.Event()
        self._pool = ThreadPoolExecutor(4)

    def measure(self, seconds: float = 60) -> tuple[MemoryRelease, HeldMemory]:
        release = MemoryRelease(self.reader, seconds)
        return release, release.measure(self.members, None)

    def end(self) -> None:
        self.process.kill()
        self.process.wait()

    def wait(
        self, release: MemoryRelease, held: HeldMemory, found: Sequence[tuple[int, float]] = ()
    ) -> Freed:
        backend = Backend("m", self.pid, "127.0.0.1:1", 0.0)
        return release.wait(backend, held, found, time.monotonic(), self.closing)

    def begin_to_wait(
        self, release: MemoryRelease, held: HeldMemory, found: Sequence[tuple[int, float]] = ()
    ) -> Future[Freed]:
        """Wait on another thread, and return when that thread has seen the driver's list."""
        waiting = self._pool.submit(self.wait, release, held, found)
        reads_again(self.driver)
        assert not waiting.done()
        return waiting

    def stop(self, seconds: float = 60) -> Freed:
        release, held = self.measure(seconds)
        self.end()
        return self.wait(release, held)

    def close(self) -> None:
        self.driver.write()
        self.closing.set()
        self._pool.shutdown()
        self.reader.close()


@pytest.fixture
def rig(spawner: Spawner, tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(spawner, tmp_path / "gpus.json")
    yield rig
    rig.close()


def test_wait_ends_when_the_driver_lists_the_ended_process_no_longer(rig: Rig) -> None:
    """A driver goes on listing a dead PID, as NVIDIA's does for seconds."""
    release, held = rig.measure()
    rig.end()
    waiting = rig.begin_to_wait(release, held)
    rig.driver.write(gpu({}))
    freed = waiting.result(60)
    assert (freed.gpu, freed.gpu_left) == (GIB, 0)
    assert freed.seconds > 0
    assert freed.memory


def test_gpu_memory_that_stays_is_a_warning_after_the_time(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    """Part of it may have come back meanwhile."""
    release, held = rig.measure(0.5)
    rig.driver.write(gpu({rig.pid: GIB // 4}))
    rig.end()
    freed = rig.wait(release, held)
    assert (freed.gpu, freed.gpu_left) == (GIB * 3 // 4, GIB // 4)
    assert freed.seconds > 0
    (line,) = logged(caplog)
    assert "memory_release_seconds (0.5)" in line
    assert f"vram:nvidia0 still lists process {rig.pid}, 256.0 MiB" in line


def test_gpu_memory_that_grows_during_the_stop_is_no_negative_figure(rig: Rig) -> None:
    release, held = rig.measure(0.2)
    rig.driver.write(gpu({rig.pid: 2 * GIB}))
    rig.end()
    freed = rig.wait(release, held)
    assert (freed.gpu, freed.gpu_left) == (0, 2 * GIB)


def test_release_does_not_wait_if_members_hold_no_gpu_memory(rig: Rig) -> None:
    """Another process may hold some, and a member may be listed with 0 bytes."""
    rig.driver.write(gpu({os.getpid(): GIB, rig.pid: 0}))
    freed = rig.stop()
    assert (freed.gpu, freed.gpu_left, freed.seconds) == (0, 0, 0.0)


@pytest.mark.parametrize("gpus", [[], [gpu(None)]], ids=["no GPU", "users not known"])
def test_release_does_not_wait_if_the_users_of_gpus_are_unknown(
    rig: Rig, gpus: Sequence[Gpu]
) -> None:
    """An example is a container without the machine's PIDs."""
    rig.driver.write(*gpus)
    freed = rig.stop()
    assert freed.memory
    assert (freed.gpu, freed.gpu_left, freed.seconds) == (None, None, 0.0)


def test_unread_member_makes_the_gpu_memory_unknown(rig: Rig) -> None:
    """A process of another user, whose descriptors may not be read."""
    rig.driver.write(gpu({}, unread=frozenset([rig.pid])))
    freed = rig.stop()
    assert (freed.gpu, freed.gpu_left, freed.seconds) == (None, None, 0.0)


def test_release_neither_reads_nor_waits_if_the_setting_is_0(rig: Rig) -> None:
    """The freed memory is unknown then."""
    eventually(lambda: bool(rig.reader.last().gpus))
    before = rig.driver.reads
    freed = rig.stop(0)
    assert rig.driver.reads == before
    assert freed.memory
    assert (freed.gpu, freed.gpu_left, freed.seconds) == (None, None, 0.0)


def test_wait_ends_where_the_amount_is_not_known(rig: Rig) -> None:
    """On WSL2 and under vGPU the driver lists processes without their bytes."""
    rig.driver.write(gpu({rig.pid: None}))
    release, held = rig.measure()
    rig.end()
    waiting = rig.begin_to_wait(release, held)
    rig.driver.write(gpu({}))
    freed = waiting.result(60)
    assert (freed.gpu, freed.gpu_left) == (None, 0)


def test_device_of_unknown_users_is_not_waited_for(rig: Rig) -> None:
    """Another device lists its users. The sums are unknown."""
    other = gpu(None, component="vram:other0", uuid="other")
    rig.driver.write(gpu({rig.pid: GIB}), other)
    release, held = rig.measure()
    rig.driver.write(gpu({}), other)
    rig.end()
    freed = rig.wait(release, held)
    assert (freed.gpu, freed.gpu_left) == (None, None)
    assert freed.seconds < 30


def test_instances_of_a_divided_gpu_say_who_uses_it(rig: Rig) -> None:
    """The parent of MIG instances does not list its users, but the instances do."""
    parent = gpu(None, uuid="GPU-0")
    instance = {"component": "vram:nvidia0:mig1", "uuid": "MIG-1", "parent": "GPU-0"}
    rig.driver.write(parent, gpu({rig.pid: GIB}, **instance))
    release, held = rig.measure()
    rig.end()
    waiting = rig.begin_to_wait(release, held)
    rig.driver.write(parent, gpu({}, **instance))
    freed = waiting.result(60)
    assert (freed.gpu, freed.gpu_left) == (GIB, 0)


def test_driver_that_hangs_after_the_stop_is_waited_for_within_the_time(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    """The freed memory is unknown."""
    release, held = rig.measure(0.5)
    rig.driver.write(fault="hang")
    rig.end()
    freed = rig.wait(release, held)
    assert (freed.gpu, freed.gpu_left) == (None, None)
    assert "vram:nvidia0 could not be read" in logged(caplog)[-1]


def test_wait_for_a_driver_before_the_stop_is_part_of_the_time(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last reading counts then. A stop takes as long as the setting says, not twice as long."""
    eventually(lambda: bool(rig.reader.last().gpus))
    rig.driver.write(fault="hang")
    release, held = rig.measure(1000)
    assert held.waited_seconds >= 0.3
    assert held.gpus
    assert held.gpus.total() == GIB
    rig.end()
    freed = rig.wait(release, held._replace(waited_seconds=1000))
    assert (freed.gpu, freed.gpu_left) == (None, None)
    monkeypatch.setattr(module, "STALE_SECONDS", 0.0)
    _, held = rig.measure(0.1)
    assert held.gpus
    assert held.gpus.total() is None


def test_driver_that_has_never_answered_is_not_waited_for(spawner: Spawner, tmp_path: Path) -> None:
    """No device is known then."""
    driver = GpuFile(tmp_path / "gpus.json")
    driver.write(fault="hang")
    reader = GpuReader([driver])
    reader.start()
    release = MemoryRelease(reader, 0.2)
    process = spawner.sleeper()
    held = release.measure(members_of(process.pid), None)
    backend = Backend("m", process.pid, "", 0.0)
    freed = release.wait(backend, held, (), time.monotonic(), threading.Event())
    driver.write()
    reader.close()
    assert (freed.gpu, freed.gpu_left, freed.seconds) == (None, None, 0.0)


def test_device_that_disappears_is_waited_for(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    """Its library may have failed once. If the device stays away, the freed memory is unknown."""
    release, held = rig.measure()
    rig.driver.write(gpu({}, component="vram:nvidia1", uuid="GPU-1"))
    rig.end()
    freed = rig.wait(MemoryRelease(rig.reader, 0.5), held)
    assert (freed.gpu, freed.gpu_left) == (None, None)
    assert "vram:nvidia0 could not be read" in logged(caplog)[-1]
    waiting = rig.begin_to_wait(release, held)
    rig.driver.write(gpu({}))
    assert waiting.result(60).gpu == GIB


def test_device_that_appears_with_a_member_is_waited_for(rig: Rig) -> None:
    """The freed memory counts only what was held before the stop."""
    release, held = rig.measure()
    second = {"component": "vram:nvidia1", "uuid": "GPU-1"}
    rig.driver.write(gpu({}), gpu({rig.pid: GIB}, **second))
    rig.end()
    waiting = rig.begin_to_wait(release, held)
    rig.driver.write(gpu({}), gpu({}, **second))
    assert waiting.result(60).gpu == GIB


def test_later_process_with_the_pid_of_a_member_is_not_waited_for(rig: Rig) -> None:
    """The two processes differ in their start times."""
    release, held = rig.measure()
    pid, started = rig.members.root
    freed = rig.wait(release, held._replace(members={(pid, started - 1)}))  # the PID runs
    assert (freed.gpu, freed.gpu_left) == (GIB, 0)


def test_member_that_was_found_during_the_stop_is_waited_for(rig: Rig, spawner: Spawner) -> None:
    """An example is a worker that started after the memory was measured."""
    worker = spawner.sleeper()
    identity = members_of(worker.pid).root
    worker.kill()
    worker.wait()
    release, held = rig.measure()
    rig.driver.write(gpu({worker.pid: GIB}))
    rig.end()
    waiting = rig.begin_to_wait(release, held, [identity])
    rig.driver.write(gpu({}))
    assert waiting.result(60).gpu == GIB


def test_closing_ends_the_wait(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    """It ends the wait even while the driver hangs. There is no warning before the time is over."""
    release, held = rig.measure()
    rig.end()
    waiting = rig.begin_to_wait(release, held)
    rig.driver.write(fault="hang")
    rig.closing.set()
    waiting.result(60)
    assert logged(caplog) == []


def test_system_memory_that_is_used_through_a_gpu_counts(rig: Rig) -> None:
    """On AMD's APUs the models are in GTT."""
    apu = {"component": "vram:amdgpu:0000:03:00.0", "gtt_total": 32 * GIB}
    listed = structs.replace(gpu({}, **apu), uses=[GpuUse(rig.pid, GIB, 24 * GIB)])
    rig.driver.write(listed)
    release, held = rig.measure()
    rig.driver.write(gpu({}, **apu))
    rig.end()
    assert rig.wait(release, held).gpu == 25 * GIB


def test_stop_without_a_free_descriptor_reports_no_memory(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stop is what frees descriptors, so this is no failure."""
    refuse_descriptors(monkeypatch, process_table, "read_row")
    assert rig.measure()[1].memory is None


def test_memory_is_pss_where_it_was_read_and_has_not_changed_much(rig: Rig) -> None:
    """PSS is read in the background, at times seldom: a model may have been loaded since."""
    eventually(lambda: psutil.Process(rig.pid).status() == psutil.STATUS_SLEEPING)
    (rss,) = [row.rss for row in [read_row(rig.pid)] if row]  # it has started, and grows no more
    release = MemoryRelease(rig.reader, 0)
    last = TreeMemory(time.monotonic(), rss, pss=rss // 2)
    assert release.measure(rig.members, last).memory == rss // 2
    for outdated in (last._replace(rss=rss // 2), last._replace(pss=None)):
        assert release.measure(rig.members, outdated).memory == rss
    rig.end()
    assert release.measure(rig.members, last).memory is None


# Shutdowns over HTTP.


class Hooks:
    """A plugin that records the memory that shutdowns have freed.

    Attributes:
        freed: by the backend's PID.
        stops: stops backends as a host, with SIGKILL.
    """

    def __init__(self, stops: bool = False) -> None:
        self.freed: dict[int, tuple[str, Freed | None]] = {}
        self.stops = stops

    @hookimpl
    def monitor_stop_backend(self, backend: Backend) -> bool | None:
        if self.stops:
            os.kill(backend.pid, 9)
        return self.stops or None

    @hookimpl
    def monitor_shutdown_finished(
        self, backend: Backend, outcome: str, freed: Freed | None
    ) -> None:
        self.freed[backend.pid] = outcome, freed


class FewerArguments:
    """A plugin of before `freed`."""

    def __init__(self) -> None:
        self.outcomes: list[str] = []

    @hookimpl
    def monitor_shutdown_finished(self, backend: Backend, outcome: str, seconds: float) -> None:
        self.outcomes.append(outcome)


@pytest.fixture
def driver(tmp_path: Path) -> Iterator[GpuFile]:
    driver = GpuFile(tmp_path / "gpus.json")
    yield driver
    driver.write()


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as pool:
        yield pool


def parse(header: str) -> dict[str, float]:
    """Parse a dictionary of RFC 8941 with numbers alone."""
    return {name: float(value) for name, value in (each.split("=") for each in header.split(", "))}


def last_event(client: Client) -> Any:
    events = client.request("GET", "/events").json["events"]
    return [each for each in events if each["type"] == "shutdown_finished"][-1]


def test_shutdown_answers_when_the_gpu_memory_is_free(
    make_monitor: Callable[..., Monitor],
    spawner: Spawner,
    driver: GpuFile,
    pool: ThreadPoolExecutor,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """NVML goes on listing the dead PID; callers that join the shutdown get the same answer."""
    caplog.set_level("INFO")
    hooks, old = Hooks(), FewerArguments()
    monitor = make_monitor([driver, hooks, old], memory_release_seconds=600)
    client = Client(monitor.url)
    backend = spawner.backend("--weights-mib", "64")
    register(monitor, backend.pid, address=backend.address)
    driver.write(gpu({backend.pid: GIB}))
    answers = [pool.submit(client.shutdown, "m") for _ in range(2)]
    eventually(lambda: not is_running(backend.pid) and reads_again(driver))
    assert not any(each.done() for each in answers)
    assert not hooks.freed
    driver.write(gpu({}))
    for each in answers:
        answer: Answer = each.result(60)
        assert (answer.status, answer.body) == (200, b'{"message":"model stopped"}')
        figures = parse(answer.headers["X-Monitor-Freed"])
        assert list(figures) == ["memory", "gpu", "seconds"]
        assert figures["memory"] >= 64 * MIB
        assert figures["gpu"] == GIB
        assert figures["seconds"] > 0
    outcome, freed = hooks.freed[backend.pid]
    assert outcome == "stopped"
    assert freed
    assert (freed.gpu, freed.gpu_left) == (GIB, 0)
    assert old.outcomes == ["stopped"]
    event = last_event(client)
    assert event["outcome"] == "stopped"
    assert event["freed"] == {
        "memory": freed.memory,
        "gpu": GIB,
        "gpu_left": 0,
        "seconds": freed.seconds,
    }
    words = f"MiB and 1 GiB of GPU memory, {freed.seconds:.1f} s after its end"
    eventually(lambda: sum(words in line and "gave back" in line for line in logged(caplog)) == 3)
    counts = client.request("GET", "/metrics").body.decode()
    assert 'monitor_backend_shutdowns_total{model="m",outcome="stopped"} 1' in counts


def test_gpu_memory_that_stays_fails_no_shutdown(
    make_monitor: Callable[..., Monitor],
    spawner: Spawner,
    driver: GpuFile,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The answer is a 200. The header, the event and the log report the memory that stays."""
    monitor = make_monitor([driver], memory_release_seconds=0.5)
    client = Client(monitor.url)
    process = spawner.sleeper()
    register(monitor, process.pid)
    driver.write(gpu({process.pid: GIB}))
    answer = client.shutdown("m")
    assert (answer.status, answer.body) == (200, b'{"message":"model stopped"}')
    figures = parse(answer.headers["X-Monitor-Freed"])
    assert (figures["gpu"], figures["gpu_left"]) == (0, GIB)
    event = last_event(client)
    assert (event["outcome"], event["freed"]["gpu_left"]) == ("stopped", GIB)
    assert any("still lists process" in line for line in logged(caplog))
    assert client.monitor("m").json["error"]["type"] == "model_not_loaded"


def test_replicas_wait_for_their_gpu_memory_and_the_header_has_the_sum(
    make_monitor: Callable[..., Monitor],
    spawner: Spawner,
    driver: GpuFile,
    pool: ThreadPoolExecutor,
) -> None:
    """They wait at the same time: both have ended before the memory of one is free."""
    hooks = Hooks()
    monitor = make_monitor([driver, hooks], memory_release_seconds=600)
    processes = [spawner.sleeper() for _ in range(2)]
    first, second = (each.pid for each in processes)
    for port, process in enumerate(processes, 1):
        register(monitor, process.pid, address=f"127.0.0.1:{port}")
    driver.write(gpu({first: GIB, second: 2 * GIB}))
    answer = pool.submit(Client(monitor.url).shutdown, "m")
    eventually(lambda: not is_running(first) and not is_running(second) and reads_again(driver))
    driver.write(gpu({second: GIB}))
    reads_again(driver)
    assert not answer.done()
    driver.write(gpu({}))
    assert parse(answer.result(60).headers["X-Monitor-Freed"])["gpu"] == 3 * GIB
    gpus = {pid: freed and freed.gpu for pid, (_, freed) in hooks.freed.items()}
    assert gpus == {first: GIB, second: 2 * GIB}
    seconds = [freed.seconds for _, freed in hooks.freed.values() if freed]
    assert parse(answer.result().headers["X-Monitor-Freed"])["seconds"] == max(seconds)


@pytest.mark.parametrize("by_host", [False, True], ids=["by signals", "by the host"])
def test_shutdown_does_not_wait_if_the_setting_is_0(
    make_monitor: Callable[..., Monitor], spawner: Spawner, driver: GpuFile, by_host: bool
) -> None:
    """The header has no figure of GPUs, which were not read."""
    monitor = make_monitor([driver, Hooks(by_host)], memory_release_seconds=0)
    process = spawner.sleeper()
    await_memory(process.pid)
    register(monitor, process.pid)
    driver.write(gpu({process.pid: GIB}))
    figures = parse(Client(monitor.url).shutdown("m").headers["X-Monitor-Freed"])
    assert list(figures) == ["memory", "seconds"]
    assert figures["seconds"] == 0


def test_stop_by_a_host_waits_for_the_gpu_memory(
    make_monitor: Callable[..., Monitor],
    spawner: Spawner,
    driver: GpuFile,
    pool: ThreadPoolExecutor,
) -> None:
    """supervisord stops a model like this."""
    monitor = make_monitor([driver, Hooks(stops=True)], memory_release_seconds=600)
    process = spawner.sleeper()
    register(monitor, process.pid)
    driver.write(gpu({process.pid: GIB}))
    answer = pool.submit(Client(monitor.url).shutdown, "m")
    eventually(lambda: not is_running(process.pid) and reads_again(driver))
    assert not answer.done()
    driver.write(gpu({}))
    assert parse(answer.result(60).headers["X-Monitor-Freed"])["gpu"] == GIB


def test_shutdown_waits_for_what_an_ended_backend_and_its_processes_held(
    make_monitor: Callable[..., Monitor],
    spawner: Spawner,
    driver: GpuFile,
    pool: ThreadPoolExecutor,
) -> None:
    """The backend was killed, and has left a worker behind: the driver lists both for a time."""
    monitor = make_monitor([driver], memory_release_seconds=600)
    root = spawner.process("sh", "-c", "sleep 300 & echo $!; wait")
    assert root.stdout
    worker = int(root.stdout.readline())
    register(monitor, root.pid)
    driver.write(gpu({root.pid: GIB, worker: GIB}))
    root.kill()
    root.wait()
    eventually(lambda: not monitor.backends())
    answer = pool.submit(Client(monitor.url).shutdown, "m")
    eventually(lambda: not is_running(worker) and reads_again(driver))
    driver.write(gpu({root.pid: GIB}))
    reads_again(driver)
    assert not answer.done()
    driver.write(gpu({}))
    assert parse(answer.result(60).headers["X-Monitor-Freed"])["gpu"] == 2 * GIB


def test_failed_and_refused_shutdowns_give_nothing_back(
    make_monitor: Callable[..., Monitor], spawner: Spawner, driver: GpuFile
) -> None:
    """A spared backend holds its memory. Without a sum for the model, there is no header."""
    hooks = Hooks()
    monitor = make_monitor([driver, hooks, StaysBusy()], drain_timeout_seconds=0.1)
    process = spawner.sleeper()
    register(monitor, process.pid)
    driver.write(gpu({process.pid: GIB}))
    monitor.read("m")
    with pytest.raises(ShutdownFailed):
        monitor.shutdown("m", spare_busy=True)
    assert hooks.freed == {process.pid: ("failed", None)}
    assert last_event(Client(monitor.url))["freed"] is None


def test_closing_monitor_ends_the_wait_of_a_shutdown(
    make_monitor: Callable[..., Monitor],
    spawner: Spawner,
    driver: GpuFile,
    pool: ThreadPoolExecutor,
) -> None:
    """The processes have ended, so the stop has not failed."""
    hooks = Hooks()
    monitor = make_monitor([driver, hooks], memory_release_seconds=600)
    process = spawner.sleeper()
    register(monitor, process.pid)
    driver.write(gpu({process.pid: GIB}))
    stopping = pool.submit(monitor.shutdown, "m")
    eventually(lambda: not is_running(process.pid) and reads_again(driver))
    monitor.close()
    stopping.result(60)
    outcome, freed = hooks.freed[process.pid]
    assert outcome == "stopped"
    assert freed
    assert freed.gpu in (0, None)


def test_respawn_during_the_wait_is_noticed(
    make_monitor: Callable[..., Monitor],
    spawner: Spawner,
    driver: GpuFile,
    pool: ThreadPoolExecutor,
) -> None:
    """The time of the watch begins at the end of the backend. Its freed memory is reported."""
    hooks = Hooks()
    monitor = make_monitor([driver, hooks], memory_release_seconds=600, respawn_watch_seconds=0)
    process, again = spawner.sleeper(), spawner.sleeper()
    register(monitor, process.pid)
    driver.write(gpu({process.pid: GIB}))
    answer = pool.submit(Client(monitor.url).shutdown, "m")
    eventually(lambda: not is_running(process.pid) and reads_again(driver))
    register(monitor, again.pid, address="127.0.0.1:2")
    driver.write(gpu({again.pid: GIB}))
    assert answer.result(60).status == 500
    assert "X-Monitor-Freed" not in answer.result().headers
    outcome, freed = hooks.freed[process.pid]
    assert outcome == "respawned"
    assert freed
    assert freed.gpu == GIB
