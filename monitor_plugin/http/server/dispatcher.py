"""The threads that answer requests: few at a time, and more while requests are blocked."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any

import waitress.task

# Threads that run at the same time compete for the interpreter's lock. So at most two threads are
# awake while requests make progress: with all 16 awake, 16 clients got 15 to 30 % fewer answers.
_MAX_AWAKE = 2
# If requests are queued and none was started for this long, all threads are woken. A thread that
# answers for this long without a reported wait does not count as awake: it probably waits for
# something that is not reported, such as a slow hook, a lock or a client that reads slowly.
_STALL_SECONDS = 0.005
# A request that takes this long is not computing: a hung backend or a slow hook blocks it.
_BLOCKED_SECONDS = 0.1
_MAX_EXTRA_THREADS = 100
_CLOSE_SECONDS = 5
# Interval of checks whether the extra threads can be stopped.
_SHRINK_SECONDS = 0.05


class Dispatcher(waitress.task.ThreadedTaskDispatcher):
    """Waitress's request threads. More threads are started while requests are blocked.

    Args:
        threads: the number of threads while no request is blocked. While requests are blocked, up
            to a hundred more are started.
    """

    def __init__(self, threads: int) -> None:
        super().__init__()
        self._base_count = threads
        self._resize_lock = threading.Lock()
        self._closed = False
        self._running: set[threading.Thread] = set()
        self._answering: dict[threading.Thread, _TimedTask] = {}
        # When a request was last started, or was queued while the queue was empty.
        self._progress_at = 0.0

    def start(self) -> None:
        """Start the threads.

        Raises:
            RuntimeError: not all threads can be started. `close` ends the others.
        """
        self.set_thread_count(self._base_count)

    def start_new_thread(self, target: Callable[[int], object], thread_no: int) -> None:
        """Start a thread, and record it so that `close` can join it."""

        def run() -> None:
            try:
                target(thread_no)
            finally:
                if not self._closed:
                    self._running.discard(threading.current_thread())

        thread = threading.Thread(target=run, name=f"monitor-http-{thread_no}", daemon=True)
        self._running.add(thread)
        try:
            thread.start()
        except RuntimeError:
            self._running.discard(thread)
            self.threads.discard(thread_no)  # `close` would wait for this thread's end
            raise

    def add_task(self, task: Any) -> None:
        """Queue a request, and wake a thread for it unless enough threads are awake.

        Unlike waitress's own method it logs no queue depth, which tells an operator nothing.
        """
        with self.lock:
            if not self.queue:
                self._progress_at = time.monotonic()
            timed: Any = _TimedTask(task, self)
            self.queue.append(timed)
            # Each queued request may already have a thread that was woken for it.
            if self._awake_count() + len(self.queue) <= _MAX_AWAKE:
                self.queue_cv.notify()

    def count_blocked(self, change: int) -> None:
        """Count the calling thread as blocked once more (1), or once less (-1).

        A blocked thread is not awake, so that another thread can take the next request. Threads
        that answer no requests are not counted.
        """
        timed = self._answering.get(threading.current_thread())
        if timed is None:
            return
        with self.lock:
            timed.waits += change
            timed.computing_since = time.monotonic()
            if self.queue and self._awake_count() < _MAX_AWAKE:
                self.queue_cv.notify()

    def _awake_count(self) -> int:
        """Count the threads that compute, or are about to. Call this while holding the lock."""
        latest = time.monotonic() - _STALL_SECONDS
        blocked = [
            each
            for each in list(self._answering.values())
            if each.waits or each.computing_since < latest
        ]
        return self.active_count - len(blocked)

    def service(self, timed: _TimedTask) -> None:
        """Answer a request in the calling thread, and record when the answer began."""
        thread = threading.current_thread()
        self._progress_at = timed.started_at = timed.computing_since = time.monotonic()
        self._answering[thread] = timed
        try:
            timed.task.service()
        finally:
            del self._answering[thread]

    def resize(self) -> float | None:
        """Adjust the number of threads to the requests that are blocked and queued.

        Returns:
            Seconds until the next call; None if no call is needed soon.
        """
        now = time.monotonic()
        with self.lock:
            if self.queue and now - self._progress_at > _STALL_SECONDS:
                self.queue_cv.notify(len(self.queue))
        with self._resize_lock:
            if self._closed:
                return None
            queued, answering = len(self.queue), list(self._answering.values())
            blocked = any(now - each.started_at > _BLOCKED_SECONDS for each in answering)
            running = len(self.threads) - self.stop_count
            if queued and blocked:
                limit = self._base_count + _MAX_EXTRA_THREADS
                with contextlib.suppress(RuntimeError):  # no thread can be started now
                    self.set_thread_count(min(limit, max(running, len(answering) + queued)))
            elif not blocked and running > self._base_count:
                self.set_thread_count(self._base_count)
            if queued:
                return _STALL_SECONDS
            return _SHRINK_SECONDS if running > self._base_count else None

    def close(self) -> None:
        """Cancel queued requests, and wait at most 5 s for those that are being answered."""
        with self._resize_lock:
            self._closed = True
        self.shutdown(cancel_pending=True, timeout=_CLOSE_SECONDS)
        seconds = 0 if self.threads else None  # threads are left if the time is over
        for thread in list(self._running):
            if thread is not threading.current_thread():
                thread.join(seconds)


class _TimedTask:
    """A queued request, which the dispatcher answers to record when the answer began.

    Attributes:
        task: the request.
        started_at: when the answer began, by the monotonic clock.
        computing_since: when the thread began the answer, or began or ended its last reported wait.
        waits: the number of reported waits in which the thread is now; waits may be nested.
    """

    def __init__(self, task: Any, dispatcher: Dispatcher) -> None:
        self.task = task
        self.started_at = self.computing_since = 0.0
        self.waits = 0
        self._dispatcher = dispatcher

    def service(self) -> None:
        self._dispatcher.service(self)

    def cancel(self) -> None:
        self.task.cancel()
