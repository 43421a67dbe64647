"""A pool of threads without an upper bound, which keeps idle threads for a short time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

MAX_IDLE = 32
_IDLE_SECONDS = 0.1  # under load a thread gets its next job much sooner
_CLOSE_SECONDS = 5.0

Job = Callable[[], object]


class ThreadPool:
    """Runs each job immediately, on an idle or a new thread. Safe to call from any thread.

    A job that never ends keeps its thread, and delays no other job. The threads are daemons, so a
    blocked job does not keep the interpreter from exiting.

    Args:
        name: the name of the threads.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._idle: list[_Worker] = []
        self._closed = False

    def run(self, job: Job) -> None:
        """Run a job that raises nothing.

        Raises:
            RuntimeError: the system cannot start a thread.
        """
        with self._lock:
            worker = self._idle.pop() if self._idle else None
        if worker is None:
            worker = _Worker(self, self._name)
            worker.start()
        worker.inbox.put(job)

    def map(
        self, function: Callable[[T], R], items: Iterable[T], max_concurrent: int
    ) -> list[Future[R]]:
        """Start to call a function with each item, at most `max_concurrent` calls at a time.

        Returns:
            A future for each item. Cancelling a future prevents its call if the call has not begun.

        Raises:
            RuntimeError: the system cannot start any thread.
        """
        calls: SimpleQueue[tuple[Future[R], T]] = SimpleQueue()
        futures: list[Future[R]] = []
        for item in items:
            futures.append(Future())
            calls.put((futures[-1], item))

        def work() -> None:
            while True:
                try:
                    future, item = calls.get_nowait()
                except Empty:
                    return
                if future.set_running_or_notify_cancel():
                    _call(future, function, item)

        for started in range(min(max_concurrent, len(futures))):
            try:
                self.run(work)
            except RuntimeError:
                if not started:
                    raise
                break  # the threads that were started make all calls
        return futures

    def is_current(self) -> bool:
        """Whether the calling thread belongs to this pool."""
        thread = threading.current_thread()
        return isinstance(thread, _Worker) and thread.pool is self

    def close(self) -> None:
        """End the idle threads immediately, and each other thread after its job."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for worker in idle:
            worker.inbox.put(None)
        for worker in idle:
            worker.join(_CLOSE_SECONDS)

    def serve(self, worker: _Worker) -> None:
        """Run the jobs of a worker until it has been idle for too long."""
        job = worker.inbox.get()
        while job:
            job()
            job = None  # release what the job refers to while the thread is idle
            with self._lock:
                if self._closed or len(self._idle) >= MAX_IDLE:
                    return
                self._idle.append(worker)
            try:
                job = worker.inbox.get(timeout=_IDLE_SECONDS)
            except Empty:
                with self._lock:
                    if worker in self._idle:
                        self._idle.remove(worker)
                        return
                job = worker.inbox.get()  # `run` or `close` took the worker just now


class _Worker(threading.Thread):
    def __init__(self, pool: ThreadPool, name: str) -> None:
        super().__init__(name=name, daemon=True)
        self.pool = pool
        self.inbox: SimpleQueue[Job | None] = SimpleQueue()

    def run(self) -> None:
        self.pool.serve(self)


def _call(future: Future[R], function: Callable[[T], R], item: T) -> None:
    try:
        result = function(item)
    except BaseException as error:
        future.set_exception(error)
    else:
        future.set_result(result)
