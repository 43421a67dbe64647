"""The threads that answer: requests that wait for a hung backend keep no other from its answer."""

from __future__ import annotations

import errno
import logging
import os
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from monitor_plugin import Monitor
from monitor_plugin.concurrency.blocking import BlockingObserver
from monitor_plugin.http.server.connections import patient
from monitor_plugin.http.server.dispatcher import Dispatcher

from ..support import Client, Spawner, eventually, logged


def http_threads() -> int:
    return sum(each.name.startswith("monitor-http-") for each in threading.enumerate())


def test_hung_backends_never_hold_all_threads(
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
        monitor.hook.monitor_backend_spawned(
            model="healthy", pid=healthy.pid, address=healthy.address
        )
        with ThreadPoolExecutor(20) as pool:
            waiting = [pool.submit(client.monitor, f"hung{number % 4}") for number in range(20)]
            eventually(lambda: http_threads() > 2)
            assert client.monitor("healthy").headers["X-Monitor-Source"] == "grpc"
            assert not any(each.done() for each in waiting)
            for process in hung:
                process.kill()
            assert {each.result(60).status for each in waiting} == {500}
    eventually(lambda: http_threads() == 2)


class Held:
    """A request that is held until it is let go."""

    def __init__(self, go: threading.Event, waits: BlockingObserver | None = None) -> None:
        self.go = go
        self.waits = waits or BlockingObserver()
        self.begun = threading.Event()
        self.cancelled = False

    def service(self) -> None:
        with self.waits:
            self.begun.set()
            self.go.wait(300)

    def cancel(self) -> None:
        self.cancelled = True


def test_there_is_a_limit_to_more_threads() -> None:
    """However many requests are held up, at most a hundred threads are added, and all end."""
    go = threading.Event()
    dispatcher = Dispatcher(3)
    dispatcher.start()
    try:
        for _ in range(500):
            dispatcher.add_task(Held(go))
        eventually(lambda: dispatcher.fit() and http_threads() >= 103)
        assert dispatcher.fit()
        assert http_threads() == 103
        go.set()
        eventually(lambda: not dispatcher.fit() and http_threads() == 3)
    finally:
        go.set()
        dispatcher.close()
    assert http_threads() == 0
    assert not dispatcher.fit()


def test_two_threads_do_the_work_until_they_are_held_up() -> None:
    """Of more threads the others sleep, and are woken for those that wait once none gets on."""
    go = threading.Event()
    dispatcher = Dispatcher(4)
    dispatcher.start()
    try:
        eventually(lambda: dispatcher.active_count == 0)
        held = [Held(go) for _ in range(4)]
        for each in held:
            dispatcher.add_task(each)
        assert all(each.begun.wait(60) for each in held[:2])
        assert not any(each.begun.is_set() for each in held[2:])
        eventually(lambda: not dispatcher.fit())
        assert all(each.begun.wait(60) for each in held)
        assert http_threads() == 4
    finally:
        go.set()
        dispatcher.close()


def test_threads_that_wait_for_another_process_are_not_awake() -> None:
    """Those that say so let others have the next requests at once, with no look at who gets on."""
    go, waits = threading.Event(), BlockingObserver()
    dispatcher = Dispatcher(4)
    waits.tell(dispatcher.note_wait)
    dispatcher.start()
    try:
        eventually(lambda: dispatcher.active_count == 0)
        with waits:  # as a thread that answers nobody, which counts for nothing
            held = [Held(go, waits) for _ in range(2)] + [Held(go) for _ in range(2)]
            working = [Held(go) for _ in range(2)]
            for each in held:
                dispatcher.add_task(each)
            assert all(each.begun.wait(60) for each in held)
            go.set()
            eventually(lambda: dispatcher.active_count == 0)
            go.clear()
            for each in working:  # two that work are enough again
                dispatcher.add_task(each)
            assert all(each.begun.wait(60) for each in working)
            late = Held(go)
            dispatcher.add_task(late)
            assert not late.begun.wait(0.05)
    finally:
        go.set()
        dispatcher.close()


def test_requests_that_wait_at_the_close_are_dropped() -> None:
    """What no thread has begun when it closes is cancelled, and no thread is started for it."""
    go = threading.Event()
    dispatcher = Dispatcher(1)
    dispatcher.start()
    held = [Held(go) for _ in range(3)]
    for each in held:
        dispatcher.add_task(each)
    assert held[0].begun.wait(60)
    closing = threading.Thread(target=dispatcher.close)
    closing.start()
    eventually(lambda: dispatcher.stop_count or not dispatcher.threads)
    go.set()
    closing.join(60)
    assert [each.cancelled for each in held] == [False, True, True]


def test_accepting_pauses_where_descriptors_run_out(caplog: pytest.LogCaptureFixture) -> None:
    """A process without descriptors says so once, and accepts again when it has some."""
    answers: list[object] = [errno.EMFILE, errno.EMFILE, "accepted", errno.ENFILE, errno.EBADF]

    def accept() -> object:
        answer = answers.pop(0)
        if isinstance(answer, int):
            raise OSError(answer, os.strerror(answer))
        return answer

    starved: list[bool] = []
    accept_patiently = patient(accept, "127.0.0.1:1", lambda: starved.append(True))
    with caplog.at_level(logging.WARNING):
        assert [accept_patiently() for _ in range(4)] == [None, None, "accepted", None]
    assert len(starved) == 3
    said = "no connection is accepted on 127.0.0.1:1 for now: "
    assert logged(caplog) == [
        f"{said}[Errno 24] Too many open files",
        f"{said}[Errno 23] Too many open files in system",
    ]
    with pytest.raises(OSError, match="Bad file descriptor"):
        accept_patiently()
