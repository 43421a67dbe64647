"""Threads that are kept a moment for the next job, and end when they are closed."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from queue import Empty, SimpleQueue

MOST_IDLE = 32
_IDLE_SECONDS = 0.1  # under load each is needed much sooner
_CLOSE_SECONDS = 5.0

# What a job returns is called last, when its thread is free for the next job again.
Job = Callable[[], Callable[[], object]]


class ThreadPool:
    """Runs jobs, each at once on a thread of its own; some threads are kept idle for a moment.

    A job that never ends keeps its thread, and costs the others nothing. Safe to call from any
    thread.

    Args:
        name: the threads' name.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._idle: deque[_Worker] = deque()
        self._closed = False
        self._local = threading.local()

    def run(self, job: Job) -> None:
        """Run a job, which raises nothing.

        Raises:
            RuntimeError: the system starts no more threads.
        """
        try:
            worker = self._idle.pop()
        except IndexError:
            worker = _Worker(self._name, self._serve)
            worker.start()
        worker.inbox.put(job)

    def close(self) -> None:
        """End the idle threads; those at work end after their job."""
        self._closed = True
        while True:
            try:
                worker = self._idle.pop()
            except IndexError:
                return
            worker.inbox.put(None)
            if worker is not threading.current_thread():
                worker.join(_CLOSE_SECONDS)

    def _end_if_closed(self) -> None:
        if self._closed:  # a moment ago, and this thread was perhaps not found
            self.close()

    def is_current(self) -> bool:
        """Whether the calling thread is one of these."""
        return getattr(self._local, "is_worker", False)

    def _serve(self, worker: _Worker) -> None:
        self._local.is_worker = True
        while job := self._next_job(worker):
            done = job()
            if kept := not self._closed and len(self._idle) < MOST_IDLE:
                self._idle.append(worker)
                self._end_if_closed()
            done()
            del job, done  # what they hold is let go while it is idle
            if not kept:
                return

    def _next_job(self, worker: _Worker) -> Job | None:
        try:
            return worker.inbox.get(timeout=_IDLE_SECONDS)
        except Empty:
            pass
        try:
            self._idle.remove(worker)
        except ValueError:  # somebody else just took it, to give it something
            return worker.inbox.get()
        return None


class _Worker(threading.Thread):
    def __init__(self, name: str, serve: Callable[[_Worker], None]) -> None:
        super().__init__(name=name, daemon=True)
        self.inbox: SimpleQueue[Job | None] = SimpleQueue()
        self._serve = serve

    def run(self) -> None:
        """Do what comes in."""
        self._serve(self)
