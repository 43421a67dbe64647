"""Every job of a pool runs immediately, and idle threads end soon."""

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
def pool() -> Iterator[ThreadPool]:
    made = ThreadPool("test-worker")
    yield made
    made.close()
    eventually(lambda: threads() == 0)


def test_thread_pool_keeps_a_thread_for_the_next_job(
    pool: ThreadPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Successive jobs run on one thread."""
    monkeypatch.setattr(module, "_IDLE_SECONDS", 60.0)
    ran: list[threading.Thread] = []
    for _ in range(20):
        pool.run(lambda: ran.append(threading.current_thread()))
        eventually(lambda: pool._idle)
    assert len(ran) == 20
    assert len(set(ran)) == 1


def test_idle_threads_end_soon(pool: ThreadPool) -> None:
    """Idle threads end soon, and the next job gets a new thread."""
    go, at_work = threading.Event(), threading.Barrier(9)
    for _ in range(8):
        pool.run(lambda: (at_work.wait(60), go.wait(60)))
    at_work.wait(60)
    assert threads() == 8
    go.set()
    eventually(lambda: threads() == 0)
    done = threading.Event()
    pool.run(done.set)
    assert done.wait(60)


class RacingLock:
    """Replaces a pool's lock; adds a job just before an idle thread acquires the lock to end."""

    def __init__(self, pool: ThreadPool, late: module.Job) -> None:
        self._lock = pool._lock
        self._pool = pool
        self._late = [late]

    def __enter__(self) -> None:
        if self._pool._idle and self._late and self._pool.is_current():
            self._pool._idle.pop().inbox.put(self._late.pop())
        self._lock.acquire()

    def __exit__(self, *error: object) -> None:
        self._lock.release()


def test_job_for_a_thread_that_is_about_to_end_runs(pool: ThreadPool) -> None:
    """A job that arrives when an idle thread stops waiting is run."""
    first, late = threading.Event(), threading.Event()
    racing: Any = RacingLock(pool, late.set)
    pool._lock = racing
    pool.run(first.set)
    assert first.wait(60)
    assert late.wait(60)


def test_map_calls_a_function_with_each_item(pool: ThreadPool) -> None:
    """Every future has its item's result or error, in order, and calls are bounded."""
    running: list[int] = []
    most: list[int] = []

    def work(item: int) -> int:
        running.append(item)
        most.append(len(running))
        time.sleep(0.001)
        running.remove(item)
        return 60 // item

    futures = pool.map(work, [1, 0, *range(2, 40)], 3)
    wait(futures)
    assert isinstance(futures.pop(1).exception(), ZeroDivisionError)
    assert [each.result() for each in futures] == [60 // item for item in [1, *range(2, 40)]]
    assert 1 < max(most) <= 3


def test_map_makes_no_call_for_a_cancelled_future(pool: ThreadPool) -> None:
    """A future that is cancelled before its call has no call; the later calls are made."""
    go = threading.Event()
    called: list[int] = []

    def work(item: int) -> None:
        go.wait(60)
        called.append(item)

    futures = pool.map(work, range(3), 1)
    assert futures[1].cancel()
    go.set()
    wait(futures)
    assert called == [0, 2]


def test_map_continues_with_fewer_threads(
    pool: ThreadPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If only one thread can be started, it makes all calls; if none can, `map` raises."""
    left = [pool.run]

    def start(job: module.Job) -> None:
        if not left:
            raise RuntimeError("can't start new thread")
        left.pop()(job)

    monkeypatch.setattr(pool, "run", start)
    assert [each.result(60) for each in pool.map(abs, [-1, -2, -3], 3)] == [1, 2, 3]
    with pytest.raises(RuntimeError):
        pool.map(abs, [-1], 1)
