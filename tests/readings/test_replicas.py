"""Several backends of one model: read or stopped together, or one by one."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from monitor_plugin import (
    Backend,
    Memory,
    ModelNotLoaded,
    Monitor,
    PidNotHeld,
    Reading,
    Sample,
    ShutdownFailed,
    Status,
    hookimpl,
)
from monitor_plugin.readings.replicas import NO_MEMORY, SourcedMemory, combine

from ..http.test_app import assert_error
from ..support import Backend as Running
from ..support import Client, Spawner, eventually, is_running

MIB = 1024 * 1024


def reading(state: int | None, sample: Sample | None = None, **fields: Any) -> Reading:
    status = None if state is None else Status(state)
    status = fields.pop("status", status)
    known = {"source": "grpc" if status else "psutil", "rpc_error": None, "taken_at": 1.0}
    return Reading(Backend("m", 1, "a:1", 1.0), status, sample, **{**known, **fields})


@pytest.mark.parametrize(
    ("states", "worst"),
    [
        ([2, 2], 2),
        ([2, 1, 2], 1),
        ([2, 1, 0], 0),
        ([0, -1, 2], -1),
        ([2, None, 1], 1),
        ([2, 7], 7),
        ([1, 7], 1),
        ([7, 2, -1], -1),
    ],
)
def test_combined_state_is_the_worst(states: list[int | None], worst: int) -> None:
    """The order is error, uninitialized, busy, unknown numbers, ready; samples do not count."""
    readings = [reading(state, Sample(1, 2, 3.0, 4.0)) for state in states]
    combined = combine(readings, [SourcedMemory(Memory(1), "backend")] * len(states))
    assert combined.status == Status(worst, Memory(len(states)))
    assert combined.sample is None


def test_memory_is_summed_by_component() -> None:
    """Totals and components add up, whatever their source, and never exceed 64 bits."""
    memories = [
        SourcedMemory(Memory(10, {"weights": 7, "kv": 3}), "backend"),
        SourcedMemory(Memory(5, {"weights": 1}), "pss", 3.5),
        SourcedMemory(Memory(2**64 - 1, {"kv": 2**64 - 1}), "pss", 1.5),
    ]
    combined = combine([reading(2)] * 3, memories)
    top = 2**64 - 1
    assert combined.status == Status(2, Memory(top, {"kv": top, "weights": 8}))
    assert combined.memory_source == "backend, pss"
    assert combined.memory_age_seconds == 3.5


def test_sum_with_an_unknown_figure_is_none() -> None:
    """If one replica's figure is unknown, so is its sum; the other sums are not affected."""
    combined = combine([reading(2), reading(2)], [SourcedMemory(Memory(1), "pss", 1.0), NO_MEMORY])
    assert combined.status == Status(2, None)
    assert (combined.memory_source, combined.memory_age_seconds) == (None, None)
    samples = [Sample(1, 2, 1.5, 50.0), Sample(10, None, 2.5, 75.0)]
    combined = combine([reading(None, each, rpc_error="UNAVAILABLE") for each in samples], [])
    assert combined.sample == Sample(11, None, 4.0, 125.0)
    assert (combined.source, combined.rpc_error) == ("psutil", "UNAVAILABLE")


def test_load_is_summed_and_the_fullest_cache_counts() -> None:
    """A sum needs the figure of each replica, also of one without a status."""
    first = Status(2, None, 1, 2, 3.5, 40.0)
    second = Status(1, None, 10, 0, None, 90.0)
    parts = [
        reading(2, status=each, protocol=name)
        for each, name in ((first, "vllm"), (second, "sglang"))
    ]
    combined = combine(parts, [NO_MEMORY] * 2)
    assert combined.status == Status(1, None, 11, 2, None, 90.0)
    assert combined.protocol == "vllm, sglang"
    failed = reading(None, status_error="no", rpc_error="UNAVAILABLE")
    combined = combine([*parts, failed, failed], [NO_MEMORY] * 4)
    assert combined.status == Status(1, None, None, None, None, 90.0)
    assert combined.status_error == "no"


def test_combined_sources_are_those_of_the_statuses() -> None:
    """If any reading has a status, only the sources of statuses count; each code is named once."""
    parts = [
        reading(2, source="hook", taken_at=5.0),
        reading(None, rpc_error="UNAVAILABLE"),
        reading(2),
        reading(None, rpc_error="UNIMPLEMENTED"),
        reading(None, rpc_error="UNAVAILABLE"),
    ]
    combined = combine(parts, [SourcedMemory(Memory(1), "rss")] * 5)
    assert combined.source == "hook, grpc"
    assert combined.rpc_error == "UNAVAILABLE, UNIMPLEMENTED"
    assert combined.taken_at == 1.0


@pytest.fixture
def replicas(spawner: Spawner) -> Callable[..., list[Running]]:
    """Starts backends and registers them as replicas of the model `m`."""

    def start(monitor: Monitor, *switches: tuple[str, ...]) -> list[Running]:
        backends = [spawner.backend(*each) for each in switches]
        for each in backends:
            monitor.hook.monitor_backend_spawned(model="m", pid=each.pid, address=each.address)
        return backends

    return start


def test_replicas_are_read_together(
    monitor: Monitor, client: Client, replicas: Callable[..., list[Running]]
) -> None:
    """The worst state, and sums; a replica without a status adds its tree's memory."""
    busy, ready, silent = replicas(monitor, ("--state", "1"), (), ("--no-status",))
    eventually(lambda: "X-Monitor-Memory-Age" in client.monitor("m").headers)
    answer = client.monitor("m")
    assert answer.status == 200
    assert answer.json["state"] == 1
    assert answer.json["memory"]["breakdown"] == {"weights": 4 * MIB, "kv_cache": 2 * MIB}
    assert answer.json["memory"]["total"] > 6 * MIB + 5 * MIB
    assert answer.headers["X-Monitor-Replicas"] == "3"
    assert answer.headers["X-Monitor-Source"] == "grpc"
    assert answer.headers["X-Monitor-Memory-Source"] == "backend, pss"
    assert answer.headers["X-Monitor-Rpc-Error"] == "UNIMPLEMENTED"

    for pid, state in ((busy.pid, 1), (ready.pid, 2)):
        one = client.request("GET", f"/backend/monitor?model=m&pid={pid}")
        assert one.json["state"] == state
        assert one.json["memory"]["total"] == 3 * MIB
        assert one.headers["X-Monitor-Replicas"] == "3"
    one = client.request("POST", "/backend/monitor", {"model": "m", "pid": silent.pid})
    assert list(one.json) == ["memory_info", "memory_percent", "cpu_percent"]
    one = client.request("GET", f"/backend/monitor?pid={ready.pid}", {"model": "m", "pid": 5})
    assert one.json["state"] == 2


def test_replicas_without_a_status_are_sampled_together(
    monitor: Monitor, client: Client, replicas: Callable[..., list[Running]]
) -> None:
    """The sample's fields are sums over the registered processes."""
    backends = replicas(monitor, ("--no-status",), ("--no-status", "--weights-mib", "40"))
    together = client.monitor("m").json
    parts = [client.request("GET", f"/backend/monitor?model=m&pid={each.pid}").json
             for each in backends]  # fmt: skip
    total = sum(part["memory_info"]["rss"] for part in parts)
    assert list(together) == ["memory_info", "memory_percent", "cpu_percent"]
    assert abs(together["memory_info"]["rss"] - total) < 4 * MIB
    assert together["memory_percent"] > parts[1]["memory_percent"]


@pytest.mark.parametrize(
    "query", ["pid=1", "pid=0", "pid=x", "pid=", "pid=-5", "pid=1.0", "pid=99999999999", "pid=%d9"]
)
def test_pid_of_another_model_is_refused(
    query: str, monitor: Monitor, client: Client, replicas: Callable[..., list[Running]]
) -> None:
    """The answer is a 400, with the PID in the query or the body, for a reading and a shutdown."""
    (backend,) = replicas(monitor, ())
    answer = client.request("GET", f"/backend/monitor?model=m&{query}")
    message = assert_error(answer, 400, "invalid_request")
    if query == "pid=1":
        assert message == f"model 'm' has no backend with PID 1; it has {backend.pid}"
    for pid in (1, 0, -1, "5", True, 1.5, 10**30):
        body = {"model": "m", "pid": pid}
        answer = client.request("POST", "/backend/monitor", body)
        assert_error(answer, 400, "invalid_request")
        assert_error(client.shutdown("m", pid=pid), 400, "invalid_request")
    with pytest.raises(PidNotHeld) as raised:
        monitor.shutdown("m", pid=1)
    assert (raised.value.pid, raised.value.pids) == (1, (backend.pid,))
    assert is_running(backend.pid)
    answer = client.request("GET", "/backend/monitor?model=other&pid=1")
    assert_error(answer, 500, "model_not_loaded")


def test_hung_replicas_cost_one_wait(
    make_monitor: Callable[..., Monitor], spawner: Spawner
) -> None:
    """Hung replicas are requested at the same time, and the other replicas give the reading."""
    monitor = make_monitor(status_timeout_seconds=2.0)
    hung = [spawner.backend("--hang-status") for _ in range(5)]
    backend = spawner.backend_served_here("--state", "1")
    for each in (*hung, backend):
        monitor.hook.monitor_backend_spawned(model="m", pid=each.pid, address=each.address)
    reading = monitor.read("m")
    assert reading.status is not None
    assert (reading.status.state, reading.rpc_error) == (1, "DEADLINE_EXCEEDED")
    connections = monitor._services.status_client._connections.values()
    calls = [each._call.sent_at for each in connections if each._call is not None]
    assert len(calls) == 5
    assert max(calls) - min(calls) < 2.0  # none was begun after another's deadline


def test_ended_replica_is_left_out(
    monitor: Monitor, replicas: Callable[..., list[Running]]
) -> None:
    """The reading combines the replicas that run, and has their number."""
    first, second = replicas(monitor, (), ("--state", "1"))
    second.process.kill()
    second.process.wait()
    reading = monitor.read("m")
    assert (reading.backend.pid, reading.replicas) == (first.pid, 1)
    assert reading.status == Status(2, Memory(3 * MIB, {"kv_cache": MIB, "weights": 2 * MIB}))


def test_replica_is_stopped_by_its_pid(
    monitor: Monitor, client: Client, replicas: Callable[..., list[Running]]
) -> None:
    """The other replicas continue to run, and do not count as a respawn."""
    first, second, third = replicas(monitor, (), (), ())
    answer = client.shutdown("m", pid=second.pid)
    assert (answer.status, answer.json) == (200, {"message": "model stopped"})
    assert [is_running(each.pid) for each in (first, second, third)] == [True, False, True]
    assert client.monitor("m").headers["X-Monitor-Replicas"] == "2"
    assert client.shutdown("m").status == 200
    assert not any(is_running(each.pid) for each in (first, third))


def test_partial_stop_lists_the_running_processes(
    make_monitor: Callable[..., Monitor], spawner: Spawner, caplog: pytest.LogCaptureFixture
) -> None:
    """If a replica is not stopped, the answer is a 500 with its PID and the reason, also logged."""

    class StopPlugin:
        stubborn = 0

        @hookimpl
        def monitor_stop_backend(self, backend: Backend, timeout_seconds: float) -> bool | None:
            if backend.pid == self.stubborn:
                raise ShutdownFailed(backend.model, "the host says no")
            return None

    plugin = StopPlugin()
    client = Client((monitor := make_monitor(plugins=[plugin])).url)
    backends = [spawner.sleeper() for _ in range(3)]
    for number, each in enumerate(backends):
        address = f"127.0.0.1:{number + 1}"
        monitor.hook.monitor_backend_spawned(model="m", pid=each.pid, address=address)
    plugin.stubborn = backends[1].pid
    message = assert_error(client.shutdown("m"), 500, "shutdown_failed")
    assert "the host says no" in message
    assert f"still running: PID {plugin.stubborn}" in message
    assert "the host says no" in caplog.text
    assert "Traceback" not in caplog.text
    assert [each.pid for each in monitor.backends()] == [plugin.stubborn]
    plugin.stubborn = 0
    assert client.shutdown("m").status == 200


def test_no_replica_is_stopped_before_all_are_drained(
    make_monitor: Callable[..., Monitor], replicas: Callable[..., list[Running]]
) -> None:
    """An idle replica serves while another is busy; both are listed as stopping."""
    monitor = make_monitor(drain_timeout_seconds=100.0)
    idle, busy = replicas(monitor, (), ("--state", "1"))
    with ThreadPoolExecutor(2) as pool:
        stopped = pool.submit(monitor.shutdown, "m")
        eventually(lambda: len(monitor.stopping()) == 2)
        eventually(lambda: monitor._services.status_client._connections)
        for _ in range(20):
            assert monitor.read("m", idle.pid).status is not None
        assert not stopped.done()
        pool.submit(monitor.shutdown, "m", force=True).result(60)
        stopped.result(60)
    assert monitor.stopping() == []
    assert not is_running(idle.pid)
    assert not is_running(busy.pid)


def test_shutdowns_of_a_replica_and_of_a_model_join_or_wait(
    make_monitor: Callable[..., Monitor], replicas: Callable[..., list[Running]]
) -> None:
    """A shutdown of a PID joins that of its model; one of the model waits for that of a PID."""
    calls: list[int] = []

    class StopPlugin:
        @hookimpl
        def monitor_stop_backend(self, backend: Backend, timeout_seconds: float) -> bool | None:
            calls.append(backend.pid)
            return None

    monitor = make_monitor(plugins=[StopPlugin()], drain_timeout_seconds=100.0)
    busy, other = replicas(monitor, ("--state", "1"), ())
    with ThreadPoolExecutor(4) as pool:
        one = pool.submit(monitor.shutdown, "m", pid=busy.pid)
        eventually(lambda: [each.pid for each in monitor.stopping()] == [busy.pid])
        all_replicas = pool.submit(monitor.shutdown, "m", force=True)  # ends the drain of `one`
        one.result(60)
        all_replicas.result(60)
    assert sorted(calls) == sorted([busy.pid, other.pid])

    calls.clear()
    busy, other = replicas(monitor, ("--state", "1"), ())
    with ThreadPoolExecutor(4) as pool:
        all_replicas = pool.submit(monitor.shutdown, "m")
        eventually(lambda: len(monitor.stopping()) == 2)
        one = pool.submit(monitor.shutdown, "m", pid=other.pid)
        assert not one.done()
        pool.submit(monitor.shutdown, "m", force=True).result(60)
        all_replicas.result(60)
        with contextlib.suppress(ModelNotLoaded):  # if its thread came too late to join
            one.result(60)
    assert sorted(calls) == sorted([busy.pid, other.pid])


def test_replica_that_came_later_is_stopped_by_another_shutdown(
    make_monitor: Callable[..., Monitor], spawner: Spawner
) -> None:
    """A shutdown of a new replica does not join one that already watches for respawns."""
    monitor = make_monitor(respawn_watch_seconds=100.0)
    first, second = spawner.sleeper(), spawner.sleeper()
    monitor.hook.monitor_backend_spawned(model="m", pid=first.pid, address="127.0.0.1:1")
    with ThreadPoolExecutor(3) as pool:
        one = pool.submit(monitor.shutdown, "m")
        first.wait(60)
        monitor.hook.monitor_backend_spawned(model="m", pid=second.pid, address="127.0.0.1:1")
        another = pool.submit(monitor.shutdown, "m", pid=second.pid)
        with pytest.raises(ShutdownFailed, match="the host started it again"):
            one.result(60)
        eventually(lambda: not is_running(second.pid))
        monitor.close()  # ends the watch for respawns
        another.result(60)
