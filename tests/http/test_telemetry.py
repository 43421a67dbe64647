"""`/events` and `/history`: what happened on this node, and the usage of its backends."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from monitor_plugin import Monitor

from ..support import Client, Spawner, eventually, register
from .test_backends import age, get


def test_history_lists_the_points_of_each_backend(
    make_monitor: Callable[..., Monitor], spawner: Spawner
) -> None:
    """The points of each backend, and when they were taken."""
    monitor = make_monitor(sweep_interval_seconds=0.05)
    client = Client(monitor.url)
    running = spawner.backend_served_here()
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
        "oom_certain": None,
        "peak_rss": ended["peak_rss"],
        "description": "was killed by SIGKILL",
        "end_id": ended["end_id"],
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
        register(monitor, spawner.sleeper().pid, "m", "127.0.0.1:1")
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
