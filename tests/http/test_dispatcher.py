"""The request threads: requests that wait for a hung backend do not block other requests."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

from monitor_plugin import Monitor
from monitor_plugin.concurrency.blocking import BlockingObserver
from monitor_plugin.http.server.dispatcher import Dispatcher

from ..support import Client, Spawner, eventually, register


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
            hung.append(spawner.sleeper())
            monitor.hook.monitor_backend_spawned(
                model=f"hung{number}",
                pid=hung[-1].pid,
                address=f"127.0.0.1:{silent.getsockname()[1]}",
            )
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


def test_at_most_two_threads_are_awake_until_they_are_blocked() -> None:
    """The other threads sleep until no request has made progress, and are woken then."""
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
        eventually(lambda: not dispatcher.resize())
        assert all(each.begun.wait(60) for each in slow)
        assert http_threads() == 4
    finally:
        go.set()
        dispatcher.close()


def test_threads_that_wait_for_another_process_are_not_awake() -> None:
    """While a thread is counted as blocked, another one takes the next request at once."""
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
