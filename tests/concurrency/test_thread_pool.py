"""Threads that are kept a moment: every job runs, at once, and none of them stays."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
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


def job(work: Callable[[], object], last: Callable[[], object] = threading.Event) -> module.Job:
    def run() -> Callable[[], object]:
        work()
        return last

    return run


def test_a_thread_is_kept_for_the_next_job(
    workers: ThreadPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One after the other they run on one thread: it is free when a job's last is called."""
    monkeypatch.setattr(module, "_IDLE_SECONDS", 60.0)
    ran: list[threading.Thread] = []
    for _ in range(20):
        done = threading.Event()
        workers.run(job(lambda: ran.append(threading.current_thread()), done.set))
        assert done.wait(60)
    assert len(set(ran)) == 1


def test_threads_that_nobody_needs_end_by_themselves(workers: ThreadPool) -> None:
    """Some moments after their last job none is left, and the next job gets a new one."""
    go, at_work = threading.Event(), threading.Barrier(9)
    for _ in range(8):
        workers.run(job(lambda: (at_work.wait(60), go.wait(60))))
    at_work.wait(60)
    assert threads() == 8
    go.set()
    eventually(lambda: threads() == 0)
    done = threading.Event()
    workers.run(job(done.set))
    assert done.wait(60)


class Racing(deque[Any]):
    """Idle threads, of which the first gets a job in the moment in which it gives up waiting."""

    def __init__(self, late: module.Job) -> None:
        super().__init__()
        self._late = [late]

    def remove(self, value: Any) -> None:
        if self._late:
            self.pop().inbox.put(self._late.pop())
        super().remove(value)


def test_no_job_is_lost_to_a_thread_that_is_about_to_end(workers: ThreadPool) -> None:
    """A job that comes in the moment in which a thread gives up waiting runs all the same."""
    first, late = threading.Event(), threading.Event()
    workers._idle = Racing(job(late.set))
    workers.run(job(first.set))
    assert first.wait(60)
    assert late.wait(60)
