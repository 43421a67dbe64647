"""Readings that are shared by concurrent callers, and freed with their backends."""

from __future__ import annotations

import gc
import signal
import socket
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from monitor_plugin import Backend, Monitor, Reading, Settings, Status, hookimpl
from monitor_plugin.api import results
from monitor_plugin.api.results import Response, reading_response
from monitor_plugin.backends.registry import Record
from monitor_plugin.domain.errors import MonitorError
from monitor_plugin.readings import model_reader

from ..support import Client, Spawner, eventually, register

# The maximum age is longer than any test, so that a test sees a wrongly cached reading.
CACHED = {"reading_max_age_seconds": 600.0, "sweep_interval_seconds": 0.0}


class Counting:
    """A plugin that gives the status of every backend, and records its calls."""

    def __init__(self) -> None:
        self.asked: list[Backend] = []
        self.running: Counter[Backend] = Counter()
        self.most = 0
        self.state = 2
        self.go = threading.Event()
        self.go.set()

    @hookimpl
    def monitor_query_status(self, backend: Backend) -> Status:
        self.asked.append(backend)
        self.running[backend] += 1
        self.most = max(self.most, self.running[backend])
        self.go.wait(30)
        self.running[backend] -= 1
        return Status(self.state)


@pytest.fixture
def counting() -> Counting:
    return Counting()


def test_readers_within_the_maximum_age_get_the_same_reading(
    make_monitor: Callable[..., Monitor], spawner: Spawner, counting: Counting
) -> None:
    """HTTP requests, by model or PID, share a reading; each call from Python reads again."""
    monitor = make_monitor([counting], reading_max_age_seconds=1.0, sweep_interval_seconds=0.0)
    client, pid = Client(monitor.url), spawner.sleeper().pid
    register(monitor, pid)
    began = time.monotonic()
    answers = [client.monitor("m") for _ in range(3)]
    answers.append(client.request("GET", "/backend/monitor", {"model": "m", "pid": pid}))
    assert {each.headers["X-Monitor-Source"] for each in answers} == {"hook"}
    if time.monotonic() - began < 0.9:  # on a machine that is not very slow
        assert len(counting.asked) == 1
    eventually(lambda: client.monitor("m").status == 200 and len(counting.asked) > 1)
    before = len(counting.asked)
    for _ in range(3):
        monitor.read("m")
    assert len(counting.asked) == before + 3


def test_reading_is_encoded_once(
    make_monitor: Callable[..., Monitor],
    spawner: Spawner,
    counting: Counting,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All readers of a shared reading get the same bytes and headers."""
    encoded = []

    def encoding(reading: Reading) -> Response:
        encoded.append(reading)
        return reading_response(reading)

    monkeypatch.setattr(results, "reading_response", encoding)
    monitor = make_monitor([counting], **CACHED)
    client = Client(monitor.url)
    register(monitor, spawner.sleeper().pid)
    first, second = client.monitor("m"), client.monitor("m")
    assert (first.body, first.headers["X-Monitor-Source"]) == (
        second.body,
        second.headers["X-Monitor-Source"],
    )
    assert len(encoded) == 1


def test_changed_state_is_seen_after_the_maximum_age(
    make_monitor: Callable[..., Monitor], spawner: Spawner, counting: Counting
) -> None:
    """By default a reading that began over 20 ms ago is not returned again."""
    age = Settings().reading_max_age_seconds
    monitor = make_monitor([counting], reading_max_age_seconds=age)
    client = Client(monitor.url)
    register(monitor, spawner.sleeper().pid)
    for state in (1, 2) * 5:
        counting.state = state
        time.sleep(0.021)
        assert client.monitor("m").json["state"] == state


def test_reading_is_not_cached_with_a_maximum_age_of_zero(
    make_monitor: Callable[..., Monitor], spawner: Spawner, counting: Counting
) -> None:
    """With a maximum age of 0, each of several successive requests reads the backend."""
    monitor = make_monitor([counting], reading_max_age_seconds=0.0, sweep_interval_seconds=0.0)
    client = Client(monitor.url)
    register(monitor, spawner.sleeper().pid)
    for _ in range(5):
        client.monitor("m")
    assert len(counting.asked) == 5


def test_readers_join_a_reading_in_progress(
    make_monitor: Callable[..., Monitor], spawner: Spawner, counting: Counting
) -> None:
    """A backend is read by one thread at a time, alone or with all replicas."""
    monitor = make_monitor([counting], hook_timeout_seconds=60.0, **CACHED)
    pids = [spawner.sleeper().pid for _ in range(2)]
    for port, pid in enumerate(pids, 1):
        register(monitor, pid, address=f"127.0.0.1:{port}")
    counting.go.clear()
    with ThreadPoolExecutor(12) as pool:
        asked = [pool.submit(monitor.read, "m", pid) for pid in (None, *pids) * 4]
        eventually(lambda: counting.asked)
        counting.go.set()
        assert {each.result(30).replicas for each in asked} == {2}
    assert counting.most == 1


@pytest.mark.parametrize("replicas", [1, 2])
def test_no_reading_outlives_its_backend(
    make_monitor: Callable[..., Monitor], spawner: Spawner, counting: Counting, replicas: int
) -> None:
    """The next request after an exit reports the exit, although a reading is cached."""
    monitor = make_monitor([counting], **CACHED)
    client = Client(monitor.url)
    processes = [spawner.sleeper() for _ in range(replicas)]
    for port, process in enumerate(processes, 1):
        register(monitor, process.pid, address=f"127.0.0.1:{port}")
    assert client.monitor("m").headers["X-Monitor-Replicas"] == str(replicas)
    for left, process in enumerate(processes, 1):
        process.send_signal(signal.SIGKILL)
        process.wait()
        answer = client.monitor("m")
        if left < replicas:
            assert answer.headers["X-Monitor-Replicas"] == str(replicas - left)
        else:
            assert answer.status == 500
            assert answer.json["error"]["type"] == "model_not_loaded"


def test_no_reading_outlives_a_shutdown(
    make_monitor: Callable[..., Monitor], spawner: Spawner, counting: Counting
) -> None:
    """After the answer to a shutdown, the model is not loaded."""
    monitor = make_monitor([counting], **CACHED)
    client = Client(monitor.url)
    register(monitor, spawner.sleeper().pid)
    assert client.monitor("m").status == 200
    monitor.shutdown("m")
    assert client.monitor("m").json["error"]["type"] == "model_not_loaded"


@pytest.mark.parametrize("moves", [False, True])
def test_readings_leave_nothing_of_a_model_whose_backends_have_ended(
    make_monitor: Callable[..., Monitor], spawner: Spawner, moves: bool
) -> None:
    """The shared readings, alone and of replicas, keep no record of an ended backend in memory.

    This includes the readings of a replica that now serves another model, and still runs.
    """
    monitor = make_monitor(sweep_interval_seconds=0.0)
    first = spawner.sleeper()
    backends = [spawner.sleeper(), spawner.sleeper()]
    if moves:
        register(monitor, first.pid, address="127.0.0.1:9")
    for port, process in enumerate(backends, 1):
        register(monitor, process.pid, address=f"127.0.0.1:{port}")
        monitor.read("m")
    if moves:
        register(monitor, first.pid, "other", address="127.0.0.1:9")
    pids = [process.pid for process in backends]
    records = [
        weakref.ref(each)
        for each in gc.get_objects()
        if isinstance(each, Record) and each.backend.pid in pids
    ]
    assert len(records) == 2
    for process in backends:
        process.kill()
        process.wait()
    eventually(lambda: len(monitor.backends()) == moves)

    def collected() -> bool:
        gc.collect()
        # The watcher's thread still references the last process that it reported.
        return sum(each() is not None for each in records) <= 1

    eventually(collected)


@pytest.mark.parametrize("ports", [(2,), (2, 1)])
def test_new_registration_is_read_again(
    make_monitor: Callable[..., Monitor],
    spawner: Spawner,
    counting: Counting,
    ports: tuple[int, ...],
) -> None:
    """A backend with a new address, also a former one, is read again."""
    monitor = make_monitor([counting], **CACHED)
    client = Client(monitor.url)
    pid = spawner.sleeper().pid
    register(monitor, pid)
    client.monitor("m")
    for port in ports:
        register(monitor, pid, address=f"127.0.0.1:{port}")
    client.monitor("m")
    assert [each.address for each in counting.asked] == ["127.0.0.1:1", f"127.0.0.1:{ports[-1]}"]


def test_new_replica_is_read_immediately(
    make_monitor: Callable[..., Monitor], spawner: Spawner, counting: Counting
) -> None:
    """A reading from before the registration of a replica is not returned for all replicas."""
    monitor = make_monitor([counting], **CACHED)
    first = spawner.sleeper().pid
    client = Client(monitor.url)
    register(monitor, first)
    assert client.monitor("m").headers["X-Monitor-Replicas"] == "1"
    register(monitor, spawner.sleeper().pid, address="127.0.0.1:2")
    assert client.monitor("m").headers["X-Monitor-Replicas"] == "2"
    alone = client.request("GET", "/backend/monitor", {"model": "m", "pid": first})
    assert alone.headers["X-Monitor-Replicas"] == "2"


def test_many_replicas_that_hang_share_one_deadline(
    make_monitor: Callable[..., Monitor], spawner: Spawner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The statuses of all replicas are requested at the same time, although few are read so."""
    monkeypatch.setattr(model_reader, "_MAX_CONCURRENT_READS", 1)
    monitor = make_monitor(status_timeout_seconds=300.0, sweep_interval_seconds=0.0)
    with ExitStack() as stack:
        silent = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(3)]
        for each in silent:
            each.settimeout(15)  # gRPC abandons a silent connection after 20 s
            address = f"127.0.0.1:{each.getsockname()[1]}"
            register(monitor, spawner.sleeper(serves=address).pid, address=address)
        reading = stack.enter_context(ThreadPoolExecutor(1)).submit(monitor.read, "m")
        for each in silent:  # while the first of them is still awaited
            stack.enter_context(each.accept()[0])
        monitor.close()
        assert isinstance(reading.exception(60), (type(None), MonitorError))
