"""An event loop in a thread of its own."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, InvalidStateError
from typing import Any, TypeVar

T = TypeVar("T")

_logger = logging.getLogger(__name__)

# How long cancelled tasks may take to end.
_CANCEL_SECONDS = 3.0


class LoopThread:
    """Runs coroutines on an event loop in a thread, until it is closed.

    Args:
        name: the name of the thread.
        main: makes the coroutine that runs from the start; `close` cancels it.
        closed: makes the error of a coroutine that the thread cannot run, or not to its end.
    """

    def __init__(
        self,
        name: str,
        main: Callable[[], Coroutine[Any, Any, None]],
        closed: Callable[[], Exception],
    ) -> None:
        self._name = name
        self._main = main
        self._closed = closed
        self._thread: threading.Thread
        self._loop: asyncio.AbstractEventLoop
        self._lock = threading.Lock()
        self._is_open = False
        self._futures: set[Future[Any]] = set()
        self._tasks: set[asyncio.Task[Any]] = set()

    def start(self) -> None:
        """Start the thread.

        Raises:
            OSError, RuntimeError: the system has no descriptor or no thread left. `start` may be
                called again.
        """
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
        self._is_open = True
        try:
            self._thread.start()
        except RuntimeError:
            self._is_open = False
            self._loop.close()
            raise

    def close(self) -> None:
        """End the thread. The futures of unfinished coroutines raise the error of `closed`."""
        with self._lock:
            was_open, self._is_open = self._is_open, False
        if was_open:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Run a coroutine on the loop, from any thread.

        Returns:
            A future. It raises the error of `closed` if the thread does not run, or ends before
            the coroutine does.
        """
        with self._lock:
            if self._is_open:
                future = asyncio.run_coroutine_threadsafe(self._until_closed(coroutine), self._loop)
                self._futures.add(future)
                future.add_done_callback(self._futures.discard)
                return future
        coroutine.close()
        future = Future()
        future.set_exception(self._closed())
        return future

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine as `submit` does, and return its result. Blocks the calling thread."""
        return self.submit(coroutine).result()

    def spawn(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        """Run a coroutine in the background, and log its error. Call this on the loop only."""
        task = self._loop.create_task(self._log_error(coroutine))
        self._tasks.add(task)  # the loop has weak references only
        task.add_done_callback(self._tasks.discard)

    def _run(self) -> None:
        try:
            self.spawn(self._main())
            self._loop.run_forever()
            self._loop.run_until_complete(_cancel_tasks())
        finally:
            self._loop.close()
            for future in list(self._futures):  # of tasks that ignored their cancellation
                with contextlib.suppress(InvalidStateError):
                    future.set_exception(self._closed())

    async def _log_error(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        try:
            await coroutine
        except Exception:
            _logger.exception("a task of thread %s failed", self._name)

    async def _until_closed(self, coroutine: Coroutine[Any, Any, T]) -> T:
        try:
            return await coroutine
        except asyncio.CancelledError:
            raise self._closed() from None


async def _cancel_tasks() -> None:
    await asyncio.sleep(0)  # `_until_closed` handles a cancellation only in a task that has started
    for _ in range(2):  # a task may ignore the first: nats-py does while it flushes
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=_CANCEL_SECONDS)
