"""Lists over HTTP: backends and ends, history, events."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from importlib import metadata
from typing import Any

import psutil
import pytest

from monitor_plugin import Backend, Monitor, State, Status, hookimpl
from monitor_plugin.domain.models import state_name

from ..support import Client, Spawner, eventually, suspend


class Hook:
    """A hook that answers any state, and lets shutdowns wait for an event."""

    def __init__(self) -> None:
        self.state = 2
        self.leave = threading.Event()

    @hookimpl
    def monitor_query_status(self, backend: Backend, timeout_seconds: float) -> Status:
        return Status(self.state)

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


@pytest.mark.parametrize("prefix", ["", "/v1"])
def test_backends_and_ends_are_listed(
    prefix: str, monitor: Monitor, client: Client, spawner: Spawner
) -> None:
    """Each backend with all that is known of it, and how those that ended did."""
    runs, dies = spawner.backend(), spawner.sleeper()
    monitor.hook.monitor_backend_spawned(model="org/a b", pid=runs.pid, address=runs.address)
    monitor.hook.monitor_backend_spawned(model="dies", pid=dies.pid, address="127.0.0.1:1")
    dies.kill()
    eventually(lambda: len(monitor.backends()) == 1)
    monitor.hook.monitor_backend_exited(model="dies", pid=dies.pid, exit_code=-9)
    listed = get(client, f"{prefix}/backends")

    (item,) = listed["backends"]
    process, tree = item.pop("process"), None
    tree = process.pop("tree")
    figures = {
        *("rss", "vms", "memory_percent", "cpu_percent", "cpu_seconds", "threads", "open_files")
    }
    assert set(process) == figures
    assert set(tree) == figures | {"processes", "pss", "vram"}
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
        "rpc_error": None,
        "memory": {"total": 3 << 20, "breakdown": {"weights": 2 << 20, "kv_cache": 1 << 20}},
        "memory_source": "backend",
        "shutdown": None,
    }

    (end,) = listed["ended"]
    assert 0 <= age(end.pop("ended_at")) <= age(end.pop("created_at"))
    assert end == {
        "model": "dies",
        "pid": dies.pid,
        "address": "127.0.0.1:1",
        "cause": "killed",
        "exit_code": None,
        "signal": 9,
        "signal_name": "SIGKILL",
        "oom": None,
        "description": "was killed by SIGKILL",
    }
    assert listed["machine"] == {
        "memory_total": psutil.virtual_memory().total,
        "cpus": psutil.cpu_count(),
    }


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
    assert item["state_name"] == "unknown"
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


def test_history_lists_the_points_of_each_backend(
    make_monitor: Callable[..., Monitor], spawner: Spawner
) -> None:
    """The points of each backend, and when they were taken."""
    monitor = make_monitor(sweep_interval_seconds=0.05)
    client = Client(monitor.url)
    running = spawner.backend()
    monitor.hook.monitor_backend_spawned(model="m", pid=running.pid, address=running.address)

    def measured() -> Any:
        history = get(client, "/history?model=m")
        known = any(x["cpu_percent"][-1] is not None for x in history["backends"])
        return history if known else None

    history = eventually(measured)
    (series,) = history["backends"]
    assert history["interval_seconds"] == 0.05
    assert len(history["times"]) >= len(series["memory"]) == len(series["cpu_percent"])
    assert abs(history["times"][-1] - time.time()) < 100
    assert (series["model"], series["pid"], series["memory"][-1]) == ("m", running.pid, 3 << 20)
    assert get(client, "/history?model=other")["backends"] == []


def test_events_are_listed_in_order(monitor: Monitor, client: Client, spawner: Spawner) -> None:
    """Registration, state, end, each once and with its facts; then nothing new."""
    running = spawner.backend()
    monitor.hook.monitor_backend_spawned(model="m", pid=running.pid, address=running.address)
    client.monitor("m")
    running.process.kill()
    eventually(lambda: len(get(client, "/events")["events"]) == 3)
    answer = get(client, "/events")
    assert not answer["gap"]
    ids = [each.pop("id") for each in answer["events"]]
    assert ids == sorted(set(ids))
    assert answer["next"] == ids[-1]
    assert all(0 <= age(each.pop("at")) < 100 for each in answer["events"])
    identity = {"model": "m", "pid": running.pid}
    registered, state, ended = answer["events"]
    assert registered == {"type": "registered", **identity, "address": running.address}
    assert state == {
        "type": "state_changed",
        **identity,
        "previous": None,
        "previous_name": "unknown",
        "current": 2,
        "current_name": "ready",
    }
    assert ended == {
        "type": "ended",
        **identity,
        "cause": "killed",
        "exit_code": None,
        "signal": 9,
        "signal_name": "SIGKILL",
        "oom": None,
        "description": "was killed by SIGKILL",
    }
    again = get(client, f"/events?after={answer['next']}")
    assert again == {**answer, "events": [], "poll_after_seconds": again["poll_after_seconds"]}
    assert get(client, f"/events?after={ids[1]}")["events"] == [
        {**ended, **_id_and_time(client, ids[2])}
    ]


def _id_and_time(client: Client, id: int) -> dict[str, Any]:
    (event,) = [each for each in get(client, "/events")["events"] if each["id"] == id]
    return {"id": id, "at": event["at"]}


def test_a_quarter_of_the_threads_may_wait_for_events(
    make_monitor: Callable[..., Monitor], spawner: Spawner
) -> None:
    """More are answered at once, and told when to ask again; all learn of what happens."""
    monitor = make_monitor(http_threads=8, sweep_interval_seconds=0)
    client = Client(monitor.url)
    known = get(client, "/events")["next"]
    path = f"/events?after={known}&wait=1000"
    with ThreadPoolExecutor() as pool:
        waiting = [pool.submit(get, client, path) for _ in range(2)]
        event_log: Any = monitor._services.event_log
        eventually(lambda: len(event_log._changed._waiters) == 2)
        answer = get(client, path)
        assert answer["events"] == []
        assert answer["poll_after_seconds"] > 0
        assert not any(each.done() for each in waiting)
        monitor.hook.monitor_backend_spawned(
            model="m", pid=spawner.sleeper().pid, address="127.0.0.1:1"
        )
        for each in waiting:
            page = each.result(timeout=60)
            assert [event["type"] for event in page["events"]] == ["registered"]
            assert page["poll_after_seconds"] == 0


def test_waiting_for_events_ends_with_the_monitor(make_monitor: Callable[..., Monitor]) -> None:
    """A client that waits is answered when the monitor closes."""
    monitor = make_monitor()
    client = Client(monitor.url)
    known = get(client, "/events")["next"]
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(get, client, f"/events?after={known}&wait=20")
        event_log: Any = monitor._services.event_log
        eventually(lambda: event_log._changed._waiters)
        monitor.close()
        assert waiting.result(timeout=60)["events"] == []


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
