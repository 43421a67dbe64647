"""`/backends`: every backend and the last that ended; and what all lists have in common."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from importlib import metadata
from typing import Any

import msgspec
import psutil
import pytest

from monitor_plugin import Backend, Memory, Monitor, State, Status, hookimpl
from monitor_plugin.api.schemas import Machine
from monitor_plugin.domain.models import ProcessUsage, TreeUsage, state_name

from ..support import (
    Client,
    Spawner,
    eventually,
    foreign_server,
    free_port,
    register,
    sends,
    suspend,
)

LOAD = ("requests_running", "requests_waiting", "tokens_per_second", "kv_cache_percent")


class Hook:
    """A hook that answers any state and load, and lets shutdowns wait for an event."""

    def __init__(self) -> None:
        self.state = 2
        self.load: dict[str, Any] = {}
        self.leave = threading.Event()

    @hookimpl
    def monitor_query_status(self, backend: Backend, timeout_seconds: float) -> Status:
        return msgspec.structs.replace(Status(self.state), **self.load)

    @hookimpl
    def monitor_before_shutdown(self, backend: Backend, force: bool) -> None:
        self.leave.wait(30)


@pytest.fixture
def hook() -> Hook:
    return Hook()


@pytest.fixture
def hooked(hook: Hook, make_monitor: Callable[..., Monitor]) -> Monitor:
    """A monitor with the hook and without periodic sweeps."""
    return make_monitor([hook], sweep_interval_seconds=0, hook_timeout_seconds=60.0)


def get(client: Client, path: str) -> Any:
    answer = client.request("GET", path)
    assert answer.status == 200, answer.body
    assert answer.headers["Content-Type"] == "application/json"
    return answer.json


def age(text: str) -> float:
    """Seconds since a time in RFC 3339."""
    moment = datetime.fromisoformat(text.replace("Z", "+00:00"))
    return (datetime.now(timezone.utc) - moment).total_seconds()


def test_zombies_are_counted(monitor: Monitor, client: Client, spawner: Spawner) -> None:
    """They are not among the processes that run."""
    register(monitor, spawner.with_zombie().pid)
    (item,) = get(client, "/backends")["backends"]
    tree = item["process"]["tree"]
    assert (tree["processes"], tree["zombies"]) == (2, 1)


def names_of(struct: type[msgspec.Struct]) -> set[str]:
    return {field.name for field in msgspec.structs.fields(struct)}


@pytest.mark.parametrize("prefix", ["", "/v1"])
def test_backends_and_ends_are_listed(
    prefix: str, monitor: Monitor, client: Client, spawner: Spawner
) -> None:
    """Each backend with all that is known of it, and how those that ended did."""
    runs, dies = spawner.backend_served_here(), spawner.sleeper()
    monitor.hook.monitor_backend_spawned(model="org/a b", pid=runs.pid, address=runs.address)
    monitor.hook.monitor_backend_spawned(model="dies", pid=dies.pid, address="127.0.0.1:1")
    dies.kill()
    eventually(lambda: len(monitor.backends()) == 1)
    monitor.hook.monitor_backend_exited(model="dies", pid=dies.pid, exit_code=-9)
    listed = get(client, f"{prefix}/backends")

    (item,) = listed["backends"]
    process, tree = item.pop("process"), None
    tree = process.pop("tree")
    assert set(process) == names_of(ProcessUsage)
    assert set(tree) == names_of(TreeUsage)
    assert process["rss"] <= tree["rss"]
    assert age(item.pop("created_at")) == pytest.approx(item.pop("uptime_seconds"), abs=5)
    assert 0 <= age(item.pop("state_changed_at")) < 100
    assert 0 <= item.pop("age_seconds") < 100
    assert item == {
        "model": "org/a b",
        "pid": runs.pid,
        "address": runs.address,
        "state": 2,
        "state_name": "ready",
        "last_state": 2,
        "source": "grpc",
        "protocol": "localai",
        "rpc_error": None,
        "status_error": None,
        "requests_running": None,
        "requests_waiting": None,
        "tokens_per_second": None,
        "kv_cache_percent": None,
        "served_by": runs.pid,
        "address_owner": None,
        "memory": {"total": 3 << 20, "breakdown": {"weights": 2 << 20, "kv_cache": 1 << 20}},
        "memory_source": "backend",
        "limits": None,
        "shutdown": None,
        "unit": None,
    }

    (end,) = listed["ended"]
    assert 0 <= age(end.pop("ended_at")) <= age(end.pop("created_at"))
    assert end.pop("left_behind") in (None, [])  # null until the monitor has looked
    assert end.pop("id") > 0
    assert end == {
        "model": "dies",
        "pid": dies.pid,
        "address": "127.0.0.1:1",
        "cause": "killed",
        "exit_code": None,
        "signal": 9,
        "signal_name": "SIGKILL",
        "oom": None,
        "oom_certain": None,
        "peak_rss": end["peak_rss"],
        "description": "was killed by SIGKILL",
        "last_output": end["last_output"],
        "host_exit": None,
    }
    machine = listed["machine"]
    assert set(machine) == names_of(Machine)
    assert machine["memory_total"] == psutil.virtual_memory().total
    assert machine["cpus"] == psutil.cpu_count()
    assert 0 < machine["memory_available"] < (machine["memory_limit"] or machine["memory_total"])
    assert 0 < machine["cpu_limit"] <= machine["cpus"]


def test_one_models_backends_are_listed(monitor: Monitor, client: Client, spawner: Spawner) -> None:
    """The parameter `model` leaves out all others, ends too; of an unknown one there are none."""
    for model in ("a", "b", "a"):
        running = spawner.backend()
        monitor.hook.monitor_backend_spawned(model=model, pid=running.pid, address=running.address)
    monitor.shutdown("b")
    listed = get(client, "/backends?model=a")
    assert [each["model"] for each in listed["backends"]] == ["a", "a"]
    assert listed["ended"] == []
    listed = get(client, "/backends?model=b")
    assert (listed["backends"], [each["model"] for each in listed["ended"]]) == ([], ["b"])
    assert get(client, "/backends?model=c")["backends"] == []


def test_the_last_readings_are_listed(
    make_monitor: Callable[..., Monitor], spawner: Spawner
) -> None:
    """With `fresh=false` nobody is asked: a hung backend is listed as it was, or as never read."""
    monitor = make_monitor(sweep_interval_seconds=0, status_timeout_seconds=1.0)
    client = Client(monitor.url)
    running = spawner.backend()
    monitor.hook.monitor_backend_spawned(model="m", pid=running.pid, address=running.address)
    (item,) = get(client, "/backends?fresh=false")["backends"]
    unknown = ("state", "last_state", "source", "age_seconds", "memory", "process")
    assert [item[name] for name in unknown] == 6 * [None]
    assert item["state_name"] == "starting"
    assert item["uptime_seconds"] >= 0
    eventually(lambda: get(client, "/backends")["backends"][0]["source"] == "grpc")
    suspend(running.pid)
    (item,) = get(client, "/backends?fresh=false")["backends"]
    assert (item["state"], item["source"]) == (2, "grpc")
    # A reading that is still fresh may be given again.
    eventually(lambda: get(client, "/backends?fresh=true")["backends"][0]["source"] == "psutil")
    (item,) = get(client, "/backends?fresh=true")["backends"]
    assert (item["state"], item["last_state"]) == (None, 2)
    assert item["rpc_error"] == "DEADLINE_EXCEEDED"
    assert item["memory"]["total"] > 0


def conditions(monitor: Monitor) -> list[tuple[int | None, str, str | None]]:
    """Return the state, its name and the gRPC code of each backend, in a reading of its own."""
    paths = {f"/backends?model={each.model}" for each in monitor.backends()}
    listed = [item for path in paths for item in get(Client(monitor.url), path)["backends"]]
    return [(each["state"], each["state_name"], each["rpc_error"]) for each in listed]


def test_a_backend_is_starting_until_its_first_answer(monitor: Monitor, spawner: Spawner) -> None:
    """Later silence is no start. An answer at an address does not count for another address."""
    port = free_port()
    process = spawner.launcher(f"127.0.0.1:{port}")
    register(monitor, process.pid, address=f"localhost:{port}")
    assert conditions(monitor) == [(None, "starting", "UNAVAILABLE")]
    assert conditions(monitor) == [(None, "starting", "UNAVAILABLE")]
    process.launch()
    assert conditions(monitor) == [(2, "ready", None)]
    process.end_server()
    assert conditions(monitor) == [(None, "unknown", "UNAVAILABLE")]
    register(monitor, process.pid, model="other", address=f"127.0.0.1:{port}")
    assert conditions(monitor) == [(None, "unknown", "UNAVAILABLE")]
    register(monitor, process.pid, model="other", address=f"127.0.0.1:{free_port()}")
    assert conditions(monitor) == [(None, "starting", "UNAVAILABLE")]
    register(monitor, process.pid, address=f"127.0.0.1:{port}")
    assert conditions(monitor) == [(None, "starting", "UNAVAILABLE")]


def test_process_that_takes_the_place_of_another_is_not_starting_anew(
    monitor: Monitor, spawner: Spawner
) -> None:
    """The same server answers at the address of a launcher and of the child that serves."""
    address = f"127.0.0.1:{free_port()}"
    launcher = spawner.launcher(address)
    register(monitor, launcher.pid, address=address)
    launcher.launch()
    assert conditions(monitor) == [(2, "ready", None)]
    (old,) = monitor._services.registry.records()
    register(monitor, launcher.server, address=address)
    (record,) = monitor._services.registry.records()
    assert record.backend.pid == launcher.server
    assert record.answered
    assert record.registered_at == old.registered_at


def test_backend_whose_address_another_process_serves_is_not_starting(
    monitor: Monitor, spawner: Spawner
) -> None:
    """An operator should look at it now, as the other process does not become the backend."""
    other = spawner.backend()
    register(monitor, spawner.sleeper().pid, address=other.address)
    assert conditions(monitor) == [(None, "unknown", "UNAVAILABLE")]
    other.process.kill()
    other.process.wait()
    eventually(lambda: conditions(monitor) == [(None, "starting", "UNAVAILABLE")])


@pytest.mark.parametrize("request_it", ["/backend/monitor?model=m", "/backends", "/metrics"])
def test_each_way_to_read_a_backend_finds_its_first_answer(
    request_it: str, monitor: Monitor, client: Client, spawner: Spawner
) -> None:
    """An error of the server, such as UNIMPLEMENTED, is an answer as well."""
    running = spawner.backend("--no-status")
    register(monitor, running.pid, address=running.address)
    assert client.request("GET", request_it).status == 200
    assert monitor._services.registry.records()[0].answered
    assert conditions(monitor) == [(None, "unknown", "UNIMPLEMENTED")]


def test_a_server_that_only_accepts_connections_is_starting(
    make_monitor: Callable[..., Monitor], spawner: Spawner
) -> None:
    """A server that loads its model may listen already, and answer nobody."""
    monitor = make_monitor(status_timeout_seconds=0.1)
    with foreign_server(sends(b"", closes=False)) as server:
        register(monitor, spawner.sleeper(serves=server.address).pid, address=server.address)
        for _ in range(2):
            assert conditions(monitor) == [(None, "starting", "DEADLINE_EXCEEDED")]
        monitor.close()


def test_a_status_of_a_hook_is_an_answer(hook: Hook, hooked: Monitor, spawner: Spawner) -> None:
    """Then the address itself need not answer."""
    register(hooked, spawner.sleeper().pid)
    assert conditions(hooked) == [(2, "ready", None)]
    hooked.plugin_manager.unregister(hook)
    assert conditions(hooked) == [(None, "unknown", "UNAVAILABLE")]


def test_a_backend_is_starting_only_while_the_grace_lasts(
    make_monitor: Callable[..., Monitor], spawner: Spawner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The grace begins with the registration; 0 seconds are none."""
    none = make_monitor(start_grace_seconds=0)
    monitor = make_monitor(start_grace_seconds=600)
    pid = spawner.sleeper().pid
    for each in (none, monitor):
        register(each, pid)
    assert conditions(none) == [(None, "unknown", "UNAVAILABLE")]
    (record,) = monitor._services.registry.records()
    record.registered_at -= 590
    assert conditions(monitor) == [(None, "starting", "UNAVAILABLE")]
    (last,) = get(Client(monitor.url), "/backends?fresh=false")["backends"]
    assert last["state_name"] == "starting"
    record.registered_at -= 10
    assert conditions(monitor) == [(None, "unknown", "UNAVAILABLE")]
    register(monitor, pid, address=f"127.0.0.1:{free_port()}")
    assert conditions(monitor) == [(None, "starting", "UNAVAILABLE")]


def test_a_shutdown_under_way_is_listed(hook: Hook, hooked: Monitor, spawner: Spawner) -> None:
    """With its phase, until the backend is gone; and each step of it is an event."""
    client = Client(hooked.url)
    process = spawner.sleeper()
    hooked.hook.monitor_backend_spawned(model="m", pid=process.pid, address="127.0.0.1:1")
    with ThreadPoolExecutor() as pool:
        stopped = pool.submit(client.shutdown, "m")
        (item,) = eventually(
            lambda: [x for x in get(client, "/backends?fresh=false")["backends"] if x["shutdown"]]
        )
        assert item["shutdown"]["phase"] == "asking"
        assert item["shutdown"]["seconds"] >= 0
        hook.leave.set()
        assert stopped.result().status == 200
    assert get(client, "/backends")["backends"] == []
    events = [each for each in get(client, "/events")["events"] if "shutdown" in each["type"]]
    phases = [each["phase"] for each in events[:-1]]
    assert phases == ["asking", "draining", "stopping", "watching"]
    assert events[-1]["type"] == "shutdown_finished"
    assert events[-1]["outcome"] == "stopped"
    assert events[-1]["seconds"] > 0


def test_states_are_named(hook: Hook, hooked: Monitor, spawner: Spawner) -> None:
    """By the protocol's names; a number that it does not know passes through as unknown."""
    assert {state_name(int(each)): int(each) for each in State} == {
        "error": -1,
        "uninitialized": 0,
        "busy": 1,
        "ready": 2,
    }
    client = Client(hooked.url)
    hooked.hook.monitor_backend_spawned(model="m", pid=spawner.sleeper().pid, address="127.0.0.1:1")
    hook.state = 77
    (item,) = get(client, "/backends")["backends"]
    assert (item["state"], item["state_name"], item["last_state"]) == (77, "unknown", None)


def test_load_of_a_backend_is_listed(hook: Hook, hooked: Monitor, spawner: Spawner) -> None:
    """A figure that is not known is null, and 0 is 0. The answer of the contract has none."""
    client = Client(hooked.url)
    register(hooked, spawner.sleeper().pid)
    for load in (
        {"requests_running": 2, "requests_waiting": 0, "tokens_per_second": 41.5},
        {"requests_waiting": 3, "kv_cache_percent": 62.5},
        {},
    ):
        hook.load = {"memory": Memory(7, {"weights": 7}), **load}
        expected = {**dict.fromkeys(LOAD), **load}
        for query in ("model=m", "fresh=false"):
            (item,) = get(client, f"/backends?{query}")["backends"]
            assert {name: item[name] for name in LOAD} == expected
        (record,) = hooked._services.registry.records()
        reading = hooked._services.backend_reader.read(record)
        assert {name: getattr(reading.status, name) for name in LOAD} == expected
        body = client.request("GET", "/backend/monitor?model=m").body
        assert body == b'{"state":2,"memory":{"total":7,"breakdown":{"weights":7}}}'


@pytest.mark.parametrize(
    "path",
    [
        "/backends?model=",
        "/backends?model=%ff",
        "/backends?fresh=maybe",
        "/history?model=%00",
        "/events?after=-1",
        "/events?after=x",
        "/events?after=1e3",
        f"/events?after={'9' * 30}",
        "/events?wait=-1",
        "/events?wait=nan",
        "/events?wait=inf",
        "/events?wait=soon",
    ],
)
def test_bad_parameters_are_refused(path: str, client: Client) -> None:
    """With 400 in the envelope, and what is wrong."""
    answer = client.request("GET", path)
    assert (answer.status, answer.json["error"]["type"]) == (400, "invalid_request")


def test_version_is_answered(client: Client) -> None:
    """The program's name, and its version."""
    assert get(client, "/version") == {
        "name": "monitor-plugin",
        "version": metadata.version("monitor-plugin"),
    }


def test_lists_need_a_token_of_role_read(make_monitor: Callable[..., Monitor]) -> None:
    """None of them is open where a token is set, as each reveals models, or what runs."""
    client = Client(make_monitor(token="l0ne").url)
    for path in ("/backends", "/v1/backends", "/events", "/history", "/version"):
        assert client.request("GET", path).status == 401
        headers = {"Authorization": "Bearer l0ne"}
        assert client.request("GET", path, headers=headers).status == 200
