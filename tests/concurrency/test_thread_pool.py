"""Threads that are kept a moment: every job runs, at once, and none of them stays."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import wait
from typing import Any

import pytest

from monitor_plugin.concurrency import thread_pool as module
from monitor_plugin.concurrency.thread_pool import ThreadPool

from ..support import eventually


def threads() -> int:
    return sum(each.name == "test-worker" for each in threading.enumerate())


@pytest.fixture
def workers() -> Iterator[ThreadPool]:
    made = ThreadPool("test-worker")
    yield made
    made.close()
    eventually(lambda: threads() == 0)


def test_a_thread_is_kept_for_the_next_job(
    workers: ThreadPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Jobs that follow each other run on one thread."""
    monkeypatch.setattr(module, "_IDLE_SECONDS", 60.0)
    ran: list[threading.Thread] = []
    for _ in range(20):
        workers.run(lambda: ran.append(threading.current_thread()))
        eventually(lambda: workers._idle)
    assert len(ran) == 20
    assert len(set(ran)) == 1


def test_threads_that_nobody_needs_end_by_themselves(workers: ThreadPool) -> None:
    """Some moments after their last job none is left, and the next job gets a new one."""
    go, at_work = threading.Event(), threading.Barrier(9)
    for _ in range(8):
        workers.run(lambda: (at_work.wait(60), go.wait(60)))
    at_work.wait(60)
    assert threads() == 8
    go.set()
    eventually(lambda: threads() == 0)
    done = threading.Event()
    workers.run(done.set)
    assert done.wait(60)


class RacingLock:
    """A pool's lock; a job comes just before an idle thread takes it to end itself."""

    def __init__(self, workers: ThreadPool, late: module.Job) -> None:
        self._lock = workers._lock
        self._workers = workers
        self._late = [late]

    def __enter__(self) -> None:
        if self._workers._idle and self._late and self._workers.is_current():
            self._workers._idle.pop().inbox.put(self._late.pop())
        self._lock.acquire()

    def __exit__(self, *error: object) -> None:
        self._lock.release()


def test_no_job_is_lost_to_a_thread_that_is_about_to_end(workers: ThreadPool) -> None:
    """A job runs that comes at the moment when an idle thread gives up waiting."""
    first, late = threading.Event(), threading.Event()
    racing: Any = RacingLock(workers, late.set)
    workers._lock = racing
    workers.run(first.set)
    assert first.wait(60)
    assert late.wait(60)


def test_map_calls_a_function_with_each_item(workers: ThreadPool) -> None:
    """Every future has its item's result or error, in order, and calls are bounded."""
    running: list[int] = []
    most: list[int] = []

    def work(item: int) -> int:
        running.append(item)
        most.append(len(running))
        time.sleep(0.001)
        running.remove(item)
        return 60 // item

    futures = workers.map(work, [1, 0, *range(2, 40)], 3)
    wait(futures)
    assert isinstance(futures.pop(1).exception(), ZeroDivisionError)
    assert [each.result() for each in futures] == [60 // item for item in [1, *range(2, 40)]]
    assert 1 < max(most) <= 3


def test_map_makes_no_call_for_a_cancelled_future(workers: ThreadPool) -> None:
    """A future that is cancelled before its turn has no call; the calls after it are made."""
    go = threading.Event()
    called: list[int] = []

    def work(item: int) -> None:
        go.wait(60)
        called.append(item)

    futures = workers.map(work, range(3), 1)
    assert futures[1].cancel()
    go.set()
    wait(futures)
    assert called == [0, 2]


def test_map_goes_on_with_fewer_threads(
    workers: ThreadPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the system starts one thread alone, it makes all calls; without any, map raises."""
    left = [workers.run]

    def start(job: module.Job) -> None:
        if not left:
            raise RuntimeError("can't start new thread")
        left.pop()(job)

    monkeypatch.setattr(workers, "run", start)
    assert [each.result(60) for each in workers.map(abs, [-1, -2, -3], 3)] == [1, 2, 3]
    with pytest.raises(RuntimeError):
        workers.map(abs, [-1], 1)
