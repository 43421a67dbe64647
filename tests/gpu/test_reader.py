"""Reading GPUs on separate threads, also while a driver hangs or fails."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from monitor_plugin import Gpu, GpuUse
from monitor_plugin.gpu import reader as module
from monitor_plugin.gpu.providers import make_providers
from monitor_plugin.gpu.reader import GpuReader
from monitor_plugin.gpu.reading import STALE_SECONDS, DeviceReading, GpuProcess, GpuReading, Held
from monitor_plugin.processes.process_table import read_row
from monitor_plugin.testing import eventually

from ..gpus import GpuFile, make_gpu
from ..support import Spawner, refuse_thread

THREAD = "monitor-gpus"


@pytest.fixture
def file(tmp_path: Path) -> Iterator[GpuFile]:
    """A file of GPUs; after the test no read hangs."""
    file = GpuFile(tmp_path / "gpus.json")
    file.write(make_gpu({}))
    yield file
    file.write()


@pytest.fixture
def make_reader() -> Iterator[Callable[..., GpuReader]]:
    """Starts readers, and closes them after the test."""
    readers = []

    def make(*arguments: object) -> GpuReader:
        reader = GpuReader(*arguments)  # type: ignore[arg-type]
        readers.append(reader)
        reader.start()
        return reader

    yield make
    for each in readers:
        each.close()


def threads() -> int:
    return sum(each.name == THREAD for each in threading.enumerate())


def identity(pid: int) -> tuple[int, float]:
    row = read_row(pid)
    assert row
    return pid, row.started


def used(reading: GpuReading) -> list[int | None]:
    return [gpu.used for gpu in reading.gpus]


def test_reader_without_providers_and_hooks_has_no_thread(
    make_reader: Callable[..., GpuReader],
) -> None:
    reader = make_reader()
    assert list(reader.read().gpus) == list(reader.last().gpus) == []
    assert reader.read().taken_at <= time.monotonic()
    assert threads() == 0


@pytest.mark.parametrize("setting", ["off", "nvidia", "drm", "auto"])
def test_setting_gpu_selects_the_providers(setting: str) -> None:
    names = {type(each).__name__ for each in make_providers(setting)}
    expected = {"nvidia": {"NvidiaProvider"}, "drm": {"DrmProvider"}, "off": set()}
    assert names == expected.get(setting, {"NvidiaProvider", "DrmProvider"})


def test_bindings_of_nvidia_are_imported_by_the_first_read() -> None:
    code = (
        "import sys, monitor_plugin.monitor\n"
        "monitor_plugin.monitor.Monitor(monitor_plugin.Settings(listen=None))\n"
        "assert 'pynvml' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_last_reading_is_shared_for_a_second(
    file: GpuFile, make_reader: Callable[..., GpuReader]
) -> None:
    """A newer one is read on request."""
    reader = make_reader([file])
    first = reader.read()
    assert used(first) == [600]
    file.write(make_gpu({}, used=700))
    assert reader.read(max_age_seconds=1000) is first
    assert reader.last() is first
    assert used(reader.read(max_age_seconds=0)) == [700]


def test_reading_begins_after_the_call_if_no_age_is_allowed(
    file: GpuFile, make_reader: Callable[..., GpuReader]
) -> None:
    reader = make_reader([file])
    began = time.monotonic()
    assert reader.read(max_age_seconds=0, wait_seconds=60).taken_at >= began


def test_requested_reading_is_begun_without_waiting(
    file: GpuFile, make_reader: Callable[..., GpuReader]
) -> None:
    """A caller that needs it later waits for less time, or not at all."""
    reader = make_reader([file])
    reader.read(wait_seconds=60)
    file.write(make_gpu({}, used=700), fault="hang")
    reads = file.reads
    reader.request(max_age_seconds=0)
    eventually(lambda: file.reads == reads + 1)
    assert used(reader.last()) == [600]
    file.write(make_gpu({}, used=700))
    assert used(reader.read(wait_seconds=60, max_age_seconds=0)) == [700]


def test_hung_driver_delays_callers_once_and_then_not_at_all(
    file: GpuFile, make_reader: Callable[..., GpuReader]
) -> None:
    """They get the last reading, no second read begins, and the end of the hang is seen."""
    reader = make_reader([file])
    assert used(reader.read()) == [600]
    file.write(make_gpu({}, used=700), fault="hang")
    before = file.reads
    assert used(reader.read(max_age_seconds=0, wait_seconds=0.05)) == [600]
    eventually(lambda: file.reads == before + 1)
    began = time.monotonic()
    for _ in range(20):
        reading = reader.read(max_age_seconds=0, wait_seconds=0.05)
    assert used(reading) == [600]
    assert time.monotonic() - began < 20 * 0.05  # not even one more wait on each call
    assert file.reads == before + 1
    assert threads() == 1
    eventually(lambda: reader.last().age_seconds(reading.gpus[0]) > 0.1)
    file.write(make_gpu({}, used=700))
    eventually(lambda: used(reader.read(max_age_seconds=0)) == [700])


def test_driver_that_hangs_from_the_start_has_no_reading(
    file: GpuFile, make_reader: Callable[..., GpuReader]
) -> None:
    file.write(fault="hang")
    reader = make_reader([file])
    reading = reader.read(wait_seconds=0.05)
    assert list(reading.gpus) == []
    assert reading.taken_at == float("-inf")


@pytest.mark.parametrize("fault", ["hang", "raise"])
def test_one_driver_that_fails_does_not_hide_the_other(
    fault: str, file: GpuFile, make_reader: Callable[..., GpuReader], tmp_path: Path
) -> None:
    """The devices of the driver that fails keep their last figures, and age."""
    other = GpuFile(tmp_path / "other.json")
    other.write(make_gpu({}, component="vram:other", used=1))
    reader = make_reader([file, other])
    eventually(lambda: used(reader.read(0, 0.05)) == [600, 1])
    file.write(make_gpu({}, used=700), fault=fault)
    other.write(make_gpu({}, component="vram:other", used=2))
    eventually(lambda: used(reader.read(0, 0.05)) == [600, 2])
    reading = reader.last()
    failing, working = reading.gpus
    assert reading.age_seconds(failing) > reading.age_seconds(working)


def test_failure_of_a_driver_is_logged_once_until_it_works_again(
    file: GpuFile, make_reader: Callable[..., GpuReader], caplog: pytest.LogCaptureFixture
) -> None:
    reader = make_reader([file])
    for _ in range(2):
        file.write(fault="raise")
        for _ in range(3):
            reader.read(max_age_seconds=0, wait_seconds=60)
        file.write(make_gpu({}))
        reader.read(max_age_seconds=0, wait_seconds=60)
    found = [each for each in caplog.records if "cannot be read" in each.message]
    assert len(found) == 2
    assert "GpuFile" in found[0].message


def test_silence_of_a_driver_is_logged_once_until_it_answers(
    file: GpuFile,
    make_reader: Callable[..., GpuReader],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A driver that never answers has no GPU in any list, so only the log tells of it."""
    monkeypatch.setattr(module, "STALE_SECONDS", 0.0)
    reader = make_reader([file])
    for count in (1, 2):
        reads = file.reads
        file.write(fault="hang")
        for _ in range(3):
            eventually(lambda: reader.read(0, 0.01) and file.reads > reads)  # noqa: B023
        assert sum("has not answered" in each.message for each in caplog.records) == count
        file.write(make_gpu({}))
        reader.read(max_age_seconds=0, wait_seconds=60)


def test_driver_is_released_when_the_reader_is_closed(file: GpuFile) -> None:
    """It may be started again."""
    reader = GpuReader([file])
    for count in (1, 2):
        reader.start()
        assert used(reader.read(max_age_seconds=0, wait_seconds=60)) == [600]
        reader.close()
        assert file.closes == count
        assert threads() == 0


def test_reader_closes_while_a_driver_hangs(file: GpuFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CLOSE_SECONDS", 0.05)
    file.write(fault="hang")
    reader = GpuReader([file])
    reader.start()
    eventually(lambda: file.reads == 1)
    reader.close()
    assert file.closes == 0
    file.write()
    eventually(lambda: file.closes == 1 and threads() == 0)


def test_read_starts_no_thread_after_the_end_of_the_reader(
    file: GpuFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if the reader is closed while a caller is about to request a read."""
    reader = GpuReader([file])
    assert reader.read(max_age_seconds=0).gpus == ()
    assert threads() == 0
    reader.start()
    assert used(reader.read(max_age_seconds=0, wait_seconds=60)) == [600]
    (source,) = reader._providers

    def close_first(oldest: float) -> bool:
        reader.close()
        return False

    monkeypatch.setattr(source, "has_read_since", close_first)
    assert used(reader.read(max_age_seconds=0, wait_seconds=60)) == [600]
    assert threads() == 0


def test_read_is_repeated_for_a_request_during_an_older_read(
    file: GpuFile, make_reader: Callable[..., GpuReader], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shutdown wants figures from after the end of the processes."""
    monkeypatch.setattr(module, "_INTERVAL_SECONDS", 1000.0)
    file.write(fault="hang")
    (source,) = make_reader([file])._providers
    eventually(lambda: file.reads == 1)
    assert source.request(time.monotonic())
    file.write(make_gpu({}))
    eventually(lambda: file.reads == 2)


@pytest.mark.parametrize("is_closed", [True, False], ids=["closed", "no device"])
def test_caller_waits_no_longer_if_no_read_will_follow(
    is_closed: bool,
    file: GpuFile,
    make_reader: Callable[..., GpuReader],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The reader is closed meanwhile, or the read in progress finds no device."""
    monkeypatch.setattr(module, "_CLOSE_SECONDS", 0.05)
    file.write(fault="hang")
    reader = make_reader([file])
    (source,) = reader._providers
    eventually(lambda: file.reads == 1)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(reader.read, 0, 1000)
        eventually(lambda: source._requested)
        if is_closed:
            reader.close()
        else:
            file.write()
        assert waiting.result(60).gpus == ()


def test_thread_of_a_driver_without_devices_ends(
    file: GpuFile, make_reader: Callable[..., GpuReader], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Readings find that out a minute later, if the driver was loaded meanwhile."""
    file.write()
    reader = make_reader([file])
    assert list(reader.read(wait_seconds=60).gpus) == []
    eventually(lambda: threads() == 0)
    (source,) = reader._providers
    assert not source.request(time.monotonic())  # by a caller that found the read in progress
    assert file.closes == 1
    file.write(make_gpu({}))
    for _ in range(3):
        assert list(reader.read(max_age_seconds=0).gpus) == []
    assert (file.reads, threads()) == (1, 0)
    monkeypatch.setattr(source, "_empty_until", 0.0)
    eventually(lambda: used(reader.read()) == [600])
    assert threads() == 1


def test_reads_in_the_background_use_two_percent_of_a_core(
    make_reader: Callable[..., GpuReader], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pause after a read is 49 times the CPU time of that read."""
    monkeypatch.setattr(module, "_INTERVAL_SECONDS", 0.0)
    times = []

    class Busy:
        def read(self) -> Sequence[Gpu]:
            times.append(time.monotonic())
            began = time.thread_time()
            while time.thread_time() - began < 0.01:
                pass
            return [make_gpu({})]

        def close(self) -> None:
            pass

    reader = make_reader([Busy()])
    eventually(lambda: len(times) >= 3)
    reader.close()
    assert times[2] - times[1] >= 0.49


def test_reader_goes_on_if_no_thread_can_be_started(
    file: GpuFile, make_reader: Callable[..., GpuReader], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A caller gets the last reading, here none, without waiting."""
    has_hooks = False
    reader = make_reader([], lambda: {"p": file.read()}, lambda: has_hooks)
    has_hooks = True
    with monkeypatch.context() as patch:
        refuse_thread(patch, THREAD)
        assert list(reader.read(wait_seconds=600).gpus) == []
    assert used(reader.read(wait_seconds=60)) == [600]


def test_devices_of_a_hook_replace_those_of_a_driver(
    file: GpuFile, make_reader: Callable[..., GpuReader], caplog: pytest.LogCaptureFixture
) -> None:
    """That is logged once for each device."""
    hooks = {"a": [make_gpu({}, used=1)], "b": [make_gpu({}, used=2)]}
    reader = make_reader([file], lambda: hooks, lambda: True)
    for _ in range(3):
        reading = reader.read(max_age_seconds=0, wait_seconds=60)
    assert used(reading) == [1]
    found = [each.message for each in caplog.records if "more than once" in each.message]
    assert len(found) == 1
    assert "'vram:test0'" in found[0]


def test_hook_of_a_later_plugin_is_read_after_a_restart() -> None:
    """No plugin has the hook when the reader starts."""
    plugins: list[str] = []
    reads = itertools.count(1)
    reader = GpuReader([], lambda: {"p": [make_gpu({}, used=next(reads))]}, lambda: bool(plugins))
    for number in (1, 2):
        reader.start()
        assert reader.read(wait_seconds=60).gpus == ()
        plugins.append("p")
        assert used(reader.read(max_age_seconds=0, wait_seconds=60)) == [number]
        plugins.clear()
        reader.close()
        assert threads() == 0


def test_devices_of_a_hook_that_fails_are_kept(make_reader: Callable[..., GpuReader]) -> None:
    """Devices of another plugin are updated, and devices of an unregistered plugin are dropped."""
    first = make_gpu({}, component="vram:a", used=1)
    second = make_gpu({}, component="vram:b", used=2)
    hooks: Mapping[str, Sequence[Gpu] | None] = {"a": [first], "b": [second]}
    reader = make_reader([], lambda: hooks, lambda: True)
    assert used(reader.read(0, 60)) == [1, 2]
    hooks = {"a": None, "b": []}
    assert used(reader.read(0, 60)) == [1]
    hooks = {"b": [second]}
    assert used(reader.read(0, 60)) == [2]


def test_bytes_are_added_up_by_component() -> None:
    """A component is left out if the bytes of one of the processes are not known."""
    reading = make_reading(
        make_gpu({1: 10, 2: 20, 3: 40}),
        make_gpu({1: None, 2: 5}, component="vram:test1"),
        make_gpu(None, component="vram:test2"),
        make_gpu({}, component="vram:test3", unread=frozenset({2})),
    )
    assert reading.held_by([(1, 1), (2, 1)]).components == {"vram:test0": 30}
    assert reading.held_by([(2, 1)]).components == {"vram:test0": 20, "vram:test1": 5}
    assert reading.held_by([(4, 1)]).components == {}


def test_system_memory_of_a_device_has_a_component_of_its_own() -> None:
    apu = Gpu(
        component="vram:amdgpu:0000:03:00.0",
        vendor="amd",
        gtt_total=100,
        uses=[GpuUse(1, 5, 50), GpuUse(2, 6, None)],
    )
    names = "vram:amdgpu:0000:03:00.0", "gtt:amdgpu:0000:03:00.0"
    reading = make_reading(apu)
    assert reading.held_by([(1, 1)]).components == dict(zip(names, (5, 50), strict=True))
    assert reading.held_by([(1, 1), (2, 1)]).components == {names[0]: 11}
    tpu = make_reading(Gpu(component="tpu", vendor="x", uses=apu.uses))
    assert tpu.held_by([(1, 1)]).components == {"tpu": 5}


def test_reused_pid_is_not_charged(
    file: GpuFile, make_reader: Callable[..., GpuReader], spawner: Spawner
) -> None:
    """The start time tells whether a process is the one that had the PID when it was listed."""
    pid = spawner.sleeper().pid
    gone = spawner.sleeper()
    gone.kill()
    gone.wait()
    file.write(make_gpu({pid: 10, os.getpid(): 5, gone.pid: 3}))
    reading = make_reader([file]).read(0, 60)
    assert reading.held_by([identity(pid)]).components == {"vram:test0": 10}
    later = pid, identity(pid)[1] + 1
    assert reading.held_by([later, identity(os.getpid())]).components == {"vram:test0": 5}
    assert reading.process(reading.gpus[0], gone.pid) is None
    process = reading.process(reading.gpus[0], pid)
    assert process
    assert process.name


def test_process_that_started_after_the_read_began_is_not_the_listed_one(
    make_reader: Callable[..., GpuReader], spawner: Spawner
) -> None:
    """A driver that has hung may list the processes that used the device before."""
    pids = []

    class Slow:
        def read(self) -> Sequence[Gpu]:
            time.sleep(0.05)  # a start time has a resolution of 10 ms
            pids.append(spawner.sleeper().pid)
            return [make_gpu({pids[0]: 10})]

        def close(self) -> None:
            pass

    reader = make_reader([Slow()])
    first = reader.read(wait_seconds=60)
    assert first.process(first.gpus[0], pids[0]) is None
    second = reader.read(0, 60)
    assert second.process(second.gpus[0], pids[0])


def make_reading(*gpus: Gpu, age: float = 0.0) -> GpuReading:
    """Makes a reading in which the process of each PID has the start time 1."""
    taken_at = time.monotonic() - age
    devices = {
        gpu.component: DeviceReading(
            taken_at, {use.pid: GpuProcess(1, "p", None) for use in gpu.uses or ()}
        )
        for gpu in gpus
    }
    return GpuReading(gpus, taken_at, devices)


def test_unknown_bytes_differ_from_no_bytes() -> None:
    """The total is unknown if any component is."""
    known = make_gpu({1: 10, 2: None})
    assert make_reading(known).held_by([(1, 1)]) == Held({"vram:test0": 10}, frozenset())
    assert make_reading(known).held_by([(3, 1)]) == Held({}, frozenset())
    assert make_reading(known).held_by([(1, 1), (2, 1)]) == Held({}, frozenset({"vram:test0"}))
    unlisted = make_gpu(None, component="vram:test1", uuid="GPU-1")
    held = make_reading(known, unlisted).held_by([(1, 1)])
    assert held == Held({"vram:test0": 10}, frozenset({"vram:test1"}))
    assert held.total("vram", {}) is None
    assert held.total("vram", {"vram:test1": 7}) == 17  # a hook knows it
    assert held.total("vram", {"vram": 9, "vram:test1": 7}) == 9
    assert held.total("gtt", {}) is None
    assert held.total("vram", {"vram:test1": 2**64 - 1}) == 2**64 - 1  # no amount is larger
    instance = make_gpu({1: 4}, component="vram:test1:mig0", parent="GPU-1")
    held = make_reading(unlisted, instance).held_by([(1, 1)])
    assert held.total("vram", {}) == 4  # the memory of the parent is that of its instances


def test_utilization_is_that_of_gpus_which_no_other_process_uses() -> None:
    """The utilization of a shared GPU cannot be assigned to a process."""

    def gpu(percent: float | None, *pids: int, **fields: object) -> GpuReading:
        uses = dict.fromkeys(pids, 10)
        return make_reading(make_gpu(uses, utilization_percent=percent, **fields))

    own = [(1, 1), (2, 1)]
    assert gpu(60.0, 1).utilization_of(own) == 60.0
    assert gpu(0.0, 1, 2).utilization_of(own) == 0.0
    assert gpu(None, 1).utilization_of(own) is None
    assert gpu(60.0, 1, 3).utilization_of(own) is None
    assert gpu(60.0).utilization_of(own) is None
    assert gpu(60.0, 1).utilization_of([(1, 2)]) is None  # a later process with the same PID
    assert gpu(60.0, 1, unread=frozenset({3})).utilization_of(own) is None
    assert gpu(60.0, 1, unread=frozenset({2})).utilization_of(own) == 60.0
    assert GpuReading().utilization_of(own) is None
    some = [
        make_gpu({pid: None}, component=f"vram:{pid}", utilization_percent=20.0 * pid)
        for pid in (1, 2, 3)
    ]
    assert make_reading(*some).utilization_of(own) == 40.0
    assert make_reading(*some, age=STALE_SECONDS + 1).utilization_of(own) is None


def test_old_figures_are_not_part_of_sums() -> None:
    """They count as unknown."""
    gpu = make_gpu({1: 10})
    held = make_reading(gpu, age=STALE_SECONDS + 1).held_by([(1, 1)])
    assert held == Held({}, frozenset({"vram:test0"}))
    assert make_reading(gpu, age=STALE_SECONDS - 5).held_by([(1, 1)]).components


def test_backend_with_a_member_that_cannot_be_read_has_no_figure() -> None:
    gpu = make_gpu({1: 10}, unread=frozenset({2}))
    assert make_reading(gpu).held_by([(1, 1), (2, 1)]) == Held({}, frozenset({"vram:test0"}))
    assert make_reading(gpu).held_by([(1, 1)]).components == {"vram:test0": 10}
