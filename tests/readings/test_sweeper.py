"""Sweeps: concurrent readings of all backends, by gRPC or hooks, and in the background."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from monitor_plugin import Backend, Memory, Monitor, Reading, State, Status, hookimpl
from monitor_plugin.domain.models import Observation
from monitor_plugin.readings import sweeper
from monitor_plugin.rpc import client as status_client

from ..support import Backend as Running
from ..support import Spawner, eventually, started_since, suspend

MIB = 1 << 20


def register(monitor: Monitor, model: str, running: Running) -> None:
    monitor.hook.monitor_backend_spawned(model=model, pid=running.pid, address=running.address)


def by_model(observations: Sequence[Observation]) -> dict[str, Observation]:
    return {each.backend.model: each for each in observations}


def test_sweep_reads_each_backend(make_monitor: Callable[..., Monitor], spawner: Spawner) -> None:
    """A backend is read by gRPC or from its process, with the figures of process and tree."""
    monitor = make_monitor(sweep_interval_seconds=0)
    with_status = spawner.backend("--fork-workers", "2")
    without = spawner.backend("--no-status")
    register(monitor, "a", with_status)
    register(monitor, "b", without)
    monitor.sweep()
    time.sleep(0.2)  # a CPU figure needs 0.1 s since the registration
    eventually(lambda: [each.tree and each.tree.pss for each in monitor.sweep()].count(None) == 0)
    eventually(lambda: monitor.sweep()[1].memory_source == "pss")
    a, b = monitor.sweep()

    assert a.reading
    assert a.reading.source == "grpc"
    assert a.reading.status == Status(2, Memory(3 * MIB, {"weights": 2 * MIB, "kv_cache": MIB}))
    assert (a.memory, a.memory_source) == (a.reading.status.memory, "backend")
    assert (a.last_state, b.last_state) == (State.READY, None)
    assert a.state_changed_at
    assert a.state_changed_at <= time.time()

    assert b.reading
    assert b.reading.rpc_error == "UNIMPLEMENTED"
    assert b.reading.sample
    assert b.process
    assert b.reading.sample.rss == b.process.rss
    assert b.memory
    assert b.tree
    assert (b.memory.total, b.memory_source) == (b.tree.pss, "pss")

    for each, running, processes in ((a, with_status, 3), (b, without, 1)):
        process, tree = each.process, each.tree
        assert process
        assert tree
        real = psutil.Process(running.pid)
        assert process.rss == pytest.approx(real.memory_info().rss, rel=0.1)
        assert process.vms == pytest.approx(real.memory_info().vms, rel=0.1)
        assert process.memory_percent == pytest.approx(real.memory_percent(), rel=0.1)
        assert process.cpu_seconds == pytest.approx(sum(real.cpu_times()[:2]), abs=0.2)
        assert process.cpu_percent is not None
        assert process.threads == real.num_threads()
        assert process.open_files == real.num_fds()
        assert tree.processes == processes
        members = [real, *real.children(recursive=True)]
        assert tree.rss == pytest.approx(sum(p.memory_info().rss for p in members), rel=0.1)
        assert tree.threads == sum(p.num_threads() for p in members)
        assert tree.open_files == sum(p.num_fds() for p in members)
        assert tree.pss is not None
        assert tree.rss is not None
        assert tree.pss < tree.rss
        assert tree.vram is None


def test_cpu_of_a_tree_is_known_without_earlier_sweeps(
    make_monitor: Callable[..., Monitor], spawner: Spawner
) -> None:
    """Baselines are recorded between sweeps, which may be rare, or made on request alone."""
    monitor = make_monitor(sweep_interval_seconds=0)
    register(monitor, "m", spawner.backend("--fork-workers", "2"))
    reader = monitor._services.sweeper._usage_reader
    eventually(lambda: [b for b in reader._baselines if time.monotonic() - b.taken_at > 1])
    (observation,) = monitor.sweep()
    assert observation.tree
    assert observation.tree.processes == 3
    assert observation.tree.cpu_percent is not None


def test_hung_backends_cost_one_wait(
    make_monitor: Callable[..., Monitor], spawner: Spawner
) -> None:
    """A sweep waits for all hung backends at the same time, and has the last state of each."""
    monitor = make_monitor(sweep_interval_seconds=0, status_timeout_seconds=2.0)
    running = [spawner.backend() for _ in range(6)]
    for number, each in enumerate(running):
        register(monitor, f"m{number}", each)
    assert all(each.reading and each.reading.source == "grpc" for each in monitor.sweep())
    for each in running[1:]:
        suspend(each.pid)
    time.sleep(sweeper._MAX_AGE_SECONDS)  # so that the next sweep does not share the first
    began = time.monotonic()
    healthy, *hung = monitor.sweep()
    assert time.monotonic() - began < 4 * 2.0  # and not 5 times
    assert healthy.reading
    assert healthy.reading.source == "grpc"
    for observation in hung:
        assert observation.reading
        assert observation.reading.rpc_error == "DEADLINE_EXCEEDED"
        assert observation.reading.sample
        assert observation.reading.sample.rss
        assert observation.memory
        assert observation.last_state is State.READY


def test_sweep_has_exactly_the_registered_backends(
    make_monitor: Callable[..., Monitor], spawner: Spawner
) -> None:
    """A caller that joins a sweep gets the backends that are registered when it returns."""
    monitor = make_monitor(sweep_interval_seconds=0, status_timeout_seconds=5.0)
    hung, goes = spawner.backend("--hang-status"), spawner.backend()
    register(monitor, "hung", hung)
    register(monitor, "goes", goes)
    with ThreadPoolExecutor() as pool:
        first = pool.submit(monitor.sweep)
        eventually(lambda: by_model(monitor.sweep(model="goes"))["goes"].reading)
        goes.process.kill()
        eventually(lambda: [each.model for each in monitor.backends()] == ["hung"])
        register(monitor, "comes", spawner.backend())
        register(monitor, "hung", spawner.backend())
        second = pool.submit(monitor.sweep)
        assert set(by_model(second.result())) == {"hung", "comes"}
        *_, also_hung = second.result()
        assert also_hung.reading
        assert also_hung.reading.replicas == 2
        assert set(by_model(first.result())) <= {"hung", "comes"}


def test_last_sweep_is_returned_without_a_new_one(
    make_monitor: Callable[..., Monitor], spawner: Spawner
) -> None:
    """The last sweep is returned without a new one; before the first there are no readings."""
    monitor = make_monitor(sweep_interval_seconds=0)
    running = spawner.backend_served_here()
    register(monitor, "m", running)
    (before,) = monitor.sweep(fresh=False)
    assert before == Observation(backend=monitor.backends()[0], starting=True)
    (swept,) = monitor.sweep(model="m")
    suspend(running.pid)
    assert monitor.sweep(fresh=False) == [swept] == monitor.sweep("m", fresh=False)
    assert monitor.sweep("other") == monitor.sweep("other", fresh=False) == []


def test_last_sweep_has_a_state_that_was_found_since(
    make_monitor: Callable[..., Monitor], spawner: Spawner
) -> None:
    """After a change of state, the last sweep's readings have the new state."""
    monitor = make_monitor(sweep_interval_seconds=0)
    backend = spawner.backend()
    register(monitor, "m", backend)
    os.kill(backend.pid, signal.SIGUSR1)  # busy
    (busy,) = eventually(lambda: [s for s in monitor.sweep() if s.last_state is State.BUSY])
    os.kill(backend.pid, signal.SIGUSR1)  # and ready again
    eventually(lambda: (status := monitor.read("m").status) and status.state == State.READY)
    (last,) = monitor.sweep(fresh=False)
    assert last.last_state is State.READY
    assert last.reading
    assert last.reading.status
    assert last.reading.status.state == State.READY
    assert last.reading.taken_at == last.state_changed_at
    assert last.memory == busy.memory


class Swept:
    def __init__(self) -> None:
        self.sweeps: list[Sequence[Reading]] = []

    @hookimpl
    def monitor_readings_swept(self, readings: Sequence[Reading]) -> None:
        self.sweeps.append(readings)


def test_background_sweeps_call_hooks_and_store_figures(
    make_monitor: Callable[..., Monitor], spawner: Spawner
) -> None:
    """A sweep passes every backend to the hook, finds states, and stores figures."""
    hook = Swept()
    monitor = make_monitor([hook], sweep_interval_seconds=0.05)
    for model, switches in (("m", ()), ("m", ("--no-status",)), ("busy", ("--state", "1"))):
        register(monitor, model, spawner.backend(*switches))
    readings = eventually(lambda: [each for each in hook.sweeps if len(each) == 3])[0]
    assert [each.backend for each in readings] == monitor.backends()
    assert [each.replicas for each in readings] == [2, 2, 1]
    assert [each.source for each in readings] == ["grpc", "psutil", "grpc"]
    observations = monitor.sweep(fresh=False)
    assert [each.last_state for each in observations] == [State.READY, None, State.BUSY]
    times, series = monitor._services.time_series.read()
    assert times
    assert [each.backend for each in series] == monitor.backends()


def test_background_sweeps_are_off_without_an_interval(
    make_monitor: Callable[..., Monitor],
) -> None:
    """There is no thread for sweeps, and closing the monitor does not wait for one."""
    before = threading.enumerate()
    monitor = make_monitor(sweep_interval_seconds=0)
    assert "monitor-sweep" not in started_since(before)
    monitor.close()


def test_closing_the_monitor_does_not_wait_for_a_hung_backend(
    make_monitor: Callable[..., Monitor], spawner: Spawner
) -> None:
    """A sweep that waits for a backend ends when the monitor is closed, as does its thread."""
    before = threading.enumerate()
    monitor = make_monitor(sweep_interval_seconds=0.01, status_timeout_seconds=1000.0)
    register(monitor, "m", spawner.backend("--hang-status"))
    eventually(lambda: monitor._services.status_client._connections)
    assert "monitor-sweep" in started_since(before)
    monitor.close()
    assert "monitor-sweep" not in started_since(before)


class StatusAndMemory:
    """A plugin with the status of one model, a slow status of another, and GPU memory of all."""

    def __init__(self) -> None:
        self.released = threading.Event()

    @hookimpl
    def monitor_query_status(self, backend: Backend, timeout_seconds: float) -> Status | None:
        if backend.model == "slow":
            self.released.wait(30)
        return Status(1) if backend.model == "hook" else None

    @hookimpl
    def monitor_memory_components(self, backend: Backend, pids: Sequence[int]) -> Mapping[str, int]:
        return {"vram:0": 5 * MIB, "vram:1": 2 * MIB, "shared": MIB}


def test_hooks_add_statuses_and_memory_to_a_sweep(
    make_monitor: Callable[..., Monitor], spawner: Spawner
) -> None:
    """Statuses and memory of hooks are used, GPU memory is summed; a slow hook delays no other."""
    plugin = StatusAndMemory()
    monitor = make_monitor([plugin], sweep_interval_seconds=0, hook_timeout_seconds=2.0)
    for model in ("hook", "grpc", "slow"):
        register(monitor, model, spawner.backend("--no-memory"))
    # A sweep would wait for the slow hook.
    read = monitor._services.registry.records
    eventually(lambda: all(each.tree_memory for each in read()))
    found = by_model(monitor.sweep())
    plugin.released.set()
    sources = {model: each.reading and each.reading.source for model, each in found.items()}
    assert sources == {"hook": "hook", "grpc": "grpc", "slow": "grpc"}
    assert found["hook"].last_state is State.BUSY
    for each in found.values():
        assert each.memory
        assert each.memory_source in ("pss", "rss")
        assert each.memory.breakdown == {"vram:0": 5 * MIB, "vram:1": 2 * MIB, "shared": MIB}
        assert each.tree
        assert each.tree.vram == 7 * MIB


def test_sweep_reads_more_backends_than_channels(
    make_monitor: Callable[..., Monitor], spawner: Spawner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If descriptors are few, backends are read in groups, and each gives its own status."""
    monkeypatch.setattr(status_client, "max_channels", lambda: 2)
    monitor = make_monitor(sweep_interval_seconds=0)
    for number in range(5):
        register(monitor, f"m{number}", spawner.backend_served_here())
    assert [each.reading and each.reading.source for each in monitor.sweep()] == 5 * ["grpc"]
