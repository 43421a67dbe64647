"""The request threads: requests that wait for a hung backend do not block other requests."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import falcon
import pytest

from monitor_plugin import Backend, Monitor, hookimpl
from monitor_plugin.concurrency.blocking import BlockingObserver
from monitor_plugin.http.server import dispatcher as dispatchers
from monitor_plugin.http.server.dispatcher import Dispatcher

from ..support import Client, Spawner, eventually, refuse_thread, register


def http_threads() -> int:
    return sum(each.name.startswith("monitor-http-") for each in threading.enumerate())


def test_hung_backends_never_occupy_all_threads(
    make_monitor: Callable[..., Monitor], spawner: Spawner
) -> None:
    """With more requests waiting for hung backends than threads, a healthy one is answered."""
    monitor = make_monitor(http_threads=2, status_timeout_seconds=60.0)
    client = Client(monitor.url)
    with ExitStack() as stack:
        hung = []
        for number in range(4):
            silent = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            address = f"127.0.0.1:{silent.getsockname()[1]}"
            hung.append(spawner.sleeper(serves=address))
            register(monitor, hung[-1].pid, f"hung{number}", address)
        healthy = spawner.backend()
        register(monitor, healthy.pid, "healthy", healthy.address)
        with ThreadPoolExecutor(20) as pool:
            waiting = [pool.submit(client.monitor, f"hung{number % 4}") for number in range(20)]
            eventually(lambda: http_threads() > 2)
            assert client.monitor("healthy").headers["X-Monitor-Source"] == "grpc"
            assert not any(each.done() for each in waiting)
            for process in hung:
                process.kill()
            assert {each.result(60).status for each in waiting} == {500}
    eventually(lambda: http_threads() == 2)


class SlowRequest:
    """A request whose answer waits for an event."""

    def __init__(self, go: threading.Event, blocking: BlockingObserver | None = None) -> None:
        self.go = go
        self.blocking = blocking or BlockingObserver()
        self.begun = threading.Event()
        self.cancelled = False

    def service(self) -> None:
        with self.blocking:
            with self.blocking:  # a wait within a wait, which ends first
                pass
            self.begun.set()
            self.go.wait(300)

    def cancel(self) -> None:
        self.cancelled = True


def test_extra_threads_are_limited() -> None:
    """For any number of blocked requests at most a hundred threads are added, and all end."""
    go = threading.Event()
    dispatcher = Dispatcher(3)
    dispatcher.start()
    try:
        for _ in range(500):
            dispatcher.add_task(SlowRequest(go))
        eventually(lambda: dispatcher.resize() and http_threads() >= 103)
        assert dispatcher.resize()
        assert http_threads() == 103
        go.set()
        eventually(lambda: not dispatcher.resize() and http_threads() == 3)
    finally:
        go.set()
        dispatcher.close()
    assert http_threads() == 0
    assert not dispatcher.resize()


def test_at_most_two_threads_are_awake_until_they_are_blocked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The other threads sleep until no request has made progress, and are woken then."""
    monkeypatch.setattr(dispatchers, "_STALL_SECONDS", 60.0)
    go = threading.Event()
    dispatcher = Dispatcher(4)
    dispatcher.start()
    try:
        eventually(lambda: dispatcher.active_count == 0)
        slow = [SlowRequest(go) for _ in range(4)]
        for each in slow:
            dispatcher.add_task(each)
        assert all(each.begun.wait(60) for each in slow[:2])
        assert not any(each.begun.is_set() for each in slow[2:])
        monkeypatch.setattr(dispatchers, "_STALL_SECONDS", 0.0)
        eventually(lambda: not dispatcher.resize())
        assert all(each.begun.wait(60) for each in slow)
        assert http_threads() == 4
    finally:
        go.set()
        dispatcher.close()


def test_threads_that_wait_are_not_awake(monkeypatch: pytest.MonkeyPatch) -> None:
    """While a thread is counted as blocked, another one takes the next request at once."""
    monkeypatch.setattr(dispatchers, "_STALL_SECONDS", 60.0)
    go, blocking = threading.Event(), BlockingObserver()
    dispatcher = Dispatcher(4)
    blocking.subscribe(dispatcher.count_blocked)
    dispatcher.start()
    try:
        eventually(lambda: dispatcher.active_count == 0)
        with blocking:  # this thread answers no requests, so it is not counted
            slow = [SlowRequest(go, blocking) for _ in range(2)] + [
                SlowRequest(go) for _ in range(2)
            ]
            working = [SlowRequest(go) for _ in range(2)]
            for each in slow:
                dispatcher.add_task(each)
            assert all(each.begun.wait(60) for each in slow)
            go.set()
            eventually(lambda: dispatcher.active_count == 0)
            go.clear()
            for each in working:  # two that work are enough again
                dispatcher.add_task(each)
            assert all(each.begun.wait(60) for each in working)
            late = SlowRequest(go)
            dispatcher.add_task(late)
            assert not late.begun.wait(0.05)
    finally:
        go.set()
        dispatcher.close()


def test_threads_that_have_not_waited_for_long_are_not_awake(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What a thread waits for may be unknown to the monitor, such as a lock of a hook's route."""
    monkeypatch.setattr(dispatchers, "_STALL_SECONDS", 0.0)
    go = threading.Event()
    dispatcher = Dispatcher(8)
    dispatcher.start()
    try:
        for _ in range(8):
            request = SlowRequest(go)
            dispatcher.add_task(request)
            assert request.begun.wait(60)
    finally:
        go.set()
        dispatcher.close()


class SlowPlugin:
    """Hooks and a route that wait for an event."""

    def __init__(self) -> None:
        self.go = threading.Event()

    @hookimpl
    def monitor_query_status(self, backend: Backend) -> None:
        if backend.model.startswith("slow"):
            self.go.wait(60)

    @hookimpl
    def monitor_before_shutdown(self) -> None:
        self.go.wait(60)

    @hookimpl
    def monitor_add_routes(self, app: falcon.App[Any, Any]) -> None:
        app.add_route("/slow", self)

    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        self.go.wait(60)


@pytest.mark.parametrize(
    ("method", "path", "body", "is_reported"),
    [
        pytest.param("GET", "/events?wait=20&after={last_event}", None, True, id="events"),
        pytest.param("POST", "/backend/shutdown", {"model": "slow{n}"}, True, id="shutdowns"),
        pytest.param("POST", "/backend/shutdown", {"model": "slow0"}, True, id="joined shutdown"),
        pytest.param("GET", "/backend/monitor?model=slow{n}", None, False, id="hooks"),
        pytest.param("GET", "/backend/monitor?model=slow0", None, False, id="shared reading"),
        pytest.param("GET", "/slow", None, False, id="route of a hook"),
    ],
)
def test_requests_that_wait_hold_up_no_other_request(
    method: str,
    path: str,
    body: dict[str, str] | None,
    is_reported: bool,
    make_monitor: Callable[..., Monitor],
    spawner: Spawner,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A thread is woken for each reading when it arrives, not when the queue has stalled."""
    plugin = SlowPlugin()
    monitor = make_monitor([plugin], http_threads=16, hook_timeout_seconds=60.0)
    client = Client(monitor.url)
    backend = spawner.backend()
    register(monitor, backend.pid, "quick", backend.address)
    assert client.monitor("quick").status == 200  # its change of state is an event
    for number in range(4):
        register(monitor, spawner.sleeper().pid, f"slow{number}", f"unix:/{number}")
    assert monitor._server is not None
    dispatcher = monitor._server._dispatcher

    def send(n: int) -> int:
        values = {"n": n, "last_event": client.request("GET", "/events").json["next"]}
        sent = body and {"model": body["model"].format_map(values)}
        return client.request(method, path.format_map(values), sent).status

    if is_reported:  # such waits count at once
        monkeypatch.setattr(dispatchers, "_STALL_SECONDS", 60.0)
    with ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(send, n) for n in range(4)]
        eventually(lambda: len(dispatcher._answering) == 4)
        eventually(lambda: dispatcher._awake_count() <= 0)
        monkeypatch.setattr(Dispatcher, "resize", lambda self: None)  # sees a stall
        for _ in range(3):
            answer = client.request("GET", "/backend/monitor?model=quick", timeout=20)
            assert answer.headers["X-Monitor-Source"] == "grpc"
        assert not any(each.done() for each in waiting)
        monkeypatch.undo()
        plugin.go.set()
        monitor.close()  # ends the waits for events
        assert all(each.result(60) in (200, 500) for each in waiting)


def test_dispatcher_that_cannot_start_all_threads_ends_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The error is that of the thread, and the close waits for no thread that never was."""
    refuse_thread(monkeypatch, "monitor-http-2")
    dispatcher = Dispatcher(4)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        dispatcher.start()
    assert dispatcher.threads == {0, 1}
    dispatcher.close()
    assert http_threads() == 0


def test_requests_are_answered_where_no_further_thread_starts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The dispatcher goes on with the threads that it has, and tries again later."""
    monkeypatch.setattr(dispatchers, "_BLOCKED_SECONDS", 0.0)
    go = threading.Event()
    dispatcher = Dispatcher(1)
    dispatcher.start()
    try:
        slow = [SlowRequest(go) for _ in range(2)]
        for each in slow:
            dispatcher.add_task(each)
        assert slow[0].begun.wait(60)
        with monkeypatch.context() as patch:
            refuse_thread(patch, "monitor-http-1")
            assert dispatcher.resize()
        assert http_threads() == 1
        eventually(lambda: dispatcher.resize() and slow[1].begun.is_set())
        assert http_threads() == 2
    finally:
        go.set()
        dispatcher.close()


def test_closing_cancels_queued_requests() -> None:
    """A request that no thread has begun at the close is cancelled, and no thread is started."""
    go = threading.Event()
    dispatcher = Dispatcher(1)
    dispatcher.start()
    slow = [SlowRequest(go) for _ in range(3)]
    for each in slow:
        dispatcher.add_task(each)
    assert slow[0].begun.wait(60)
    closing = threading.Thread(target=dispatcher.close)
    closing.start()
    eventually(lambda: dispatcher.stop_count or not dispatcher.threads)
    go.set()
    closing.join(60)
    assert [each.cancelled for each in slow] == [False, True, True]
