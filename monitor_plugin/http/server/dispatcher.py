"""The threads that answer requests: few at a time, and more while some are held up."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import waitress.task

# Threads that answer at the same time take the interpreter's lock from one another, at several
# times the cost of the answers: while requests get on, two do all the work, of which one may wait.
_AWAKE = 2
# Where none has been begun for so long, and some wait, all threads that are needed are woken.
_STALLED_SECONDS = 0.005
# A request that takes this long is held up: by a hung backend or a slow hook, not by work.
_HELD_UP_SECONDS = 0.1
_MOST_MORE_THREADS = 100
_CLOSE_SECONDS = 5
# How soon to look again while threads are there beyond what was asked for.
_SHRINK_SECONDS = 0.05


class Dispatcher(waitress.task.ThreadedTaskDispatcher):
    """Waitress's threads, joined at the end; requests that wait do not keep others from theirs.

    Args:
        threads: how many there are while no request is held up; then up to a hundred more.
    """

    def __init__(self, threads: int) -> None:
        super().__init__()
        self._least = threads
        self._sizing = threading.Lock()
        self._closed = False
        self._started: set[threading.Thread] = set()
        self._begun: dict[Any, float] = {}  # when each request that is being answered was begun
        self._waiting = 0  # how many of them wait for another process
        self._moved_at = 0.0  # when a request was begun last, or came while none waited

    def start(self) -> None:
        """Start the threads."""
        self.set_thread_count(self._least)

    def start_new_thread(self, target: Callable[[int], object], thread_no: int) -> None:
        """Start a thread, and remember it for as long as it runs."""

        def run() -> None:
            try:
                target(thread_no)
            finally:
                if not self._closed:  # `close` joins it
                    self._started.discard(threading.current_thread())

        thread = threading.Thread(target=run, name=f"monitor-http-{thread_no}", daemon=True)
        self._started.add(thread)
        thread.start()

    def add_task(self, task: Any) -> None:
        """Queue a request, and wake a thread for it, unless enough of them are awake.

        Without a word of those that wait, of which the original warns: nothing for operators.
        """
        with self.lock:
            if not self.queue:
                self._moved_at = time.monotonic()
            timed: Any = _Timed(task, self._begin, self._begun)
            self.queue.append(timed)
            # For each that waits a thread may have been woken that has not come to it yet.
            if self.active_count - self._waiting + len(self.queue) <= _AWAKE:
                self.queue_cv.notify()

    def note_wait(self, change: int) -> None:
        """Take note that the calling thread begins to wait (1), and that it goes on (-1).

        One that waits for another process is not awake: it lets the next one have a request.
        """
        if threading.current_thread() not in self._started:
            return
        with self.lock:
            self._waiting += change
            if self.queue and self.active_count - self._waiting < _AWAKE:
                self.queue_cv.notify()

    def _begin(self, task: Any) -> None:
        self._moved_at = self._begun[task] = time.monotonic()

    def fit(self) -> float | None:
        """Fit the number of threads, awake and in all, to what is held up.

        Returns:
            After how many seconds to be called again; None where that need not be soon.
        """
        now = time.monotonic()
        with self.lock:
            if self.queue and now - self._moved_at > _STALLED_SECONDS:
                self.queue_cv.notify(len(self.queue))
        with self._sizing:
            if self._closed:
                return None
            waiting, begun = len(self.queue), list(self._begun.values())
            held_up = [each for each in begun if now - each > _HELD_UP_SECONDS]
            running = len(self.threads) - self.stop_count
            if waiting and held_up:
                most = self._least + _MOST_MORE_THREADS
                self.set_thread_count(min(most, max(running, len(begun) + waiting)))
            elif not held_up and running > self._least:
                self.set_thread_count(self._least)
            if waiting:
                return _STALLED_SECONDS
            return _SHRINK_SECONDS if running > self._least else None

    def close(self) -> None:
        """Let the requests under way finish, within bounds, and drop those that wait."""
        with self._sizing:
            self._closed = True
        self.shutdown(cancel_pending=True, timeout=_CLOSE_SECONDS)
        for thread in list(self._started):
            if thread is not threading.current_thread():
                thread.join(0 if self.threads else None)


class _Timed:
    """A request that notes when its answering begins."""

    def __init__(self, task: Any, begin: Callable[[Any], None], begun: dict[Any, float]) -> None:
        self._task = task
        self._begin = begin
        self._begun = begun

    def service(self) -> None:
        self._begin(self)
        try:
            self._task.service()
        finally:
            del self._begun[self]

    def cancel(self) -> None:
        self._task.cancel()
