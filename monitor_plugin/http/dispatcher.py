"""The threads that answer requests: as many as were asked for, and more while some are held up."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import waitress.task

# A request that takes this long is held up: by a hung backend or a slow hook, not by work.
_HELD_UP_SECONDS = 0.1
_MOST_MORE_THREADS = 100
_CLOSE_SECONDS = 5


class Dispatcher(waitress.task.ThreadedTaskDispatcher):
    """Waitress's threads, joined at the end; requests that wait do not keep others from theirs.

    Args:
        threads: how many there are while no request is held up; then up to a hundred more.
    """

    # The original warns of each request that waits for a thread: nothing for operators.
    queue_logger = logging.Logger("waitress.queue", logging.CRITICAL)

    def __init__(self, threads: int) -> None:
        super().__init__()
        self._least = threads
        self._sizing = threading.Lock()
        self._closed = False
        self._started: set[threading.Thread] = set()
        self._begun: dict[Any, float] = {}  # when each request that is being answered was begun

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
        """Queue a request."""
        timed: Any = _Timed(task, self._begun)
        super().add_task(timed)

    def fit(self) -> bool:
        """Fit the number of threads to what is held up; whether to be called again soon."""
        with self._sizing:
            if self._closed:
                return False
            waiting, begun = len(self.queue), list(self._begun.values())
            held_up = [each for each in begun if time.monotonic() - each > _HELD_UP_SECONDS]
            running = len(self.threads) - self.stop_count
            if waiting and held_up:
                most = self._least + _MOST_MORE_THREADS
                self.set_thread_count(min(most, max(running, len(begun) + waiting)))
            elif not held_up and running > self._least:
                self.set_thread_count(self._least)
            return waiting > 0 or running > self._least

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

    def __init__(self, task: Any, begun: dict[Any, float]) -> None:
        self._task = task
        self._begun = begun

    def service(self) -> None:
        self._begun[self] = time.monotonic()
        try:
            self._task.service()
        finally:
            del self._begun[self]

    def cancel(self) -> None:
        self._task.cancel()
