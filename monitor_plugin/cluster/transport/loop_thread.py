"""An event loop in a thread of its own, on which other threads have things done."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, InvalidStateError
from typing import Any, TypeVar

from ...domain.errors import NodeUnreachable

T = TypeVar("T")

# What a task may still do once it is told to end.
_END_SECONDS = 3.0


class LoopThread:
    """Runs one coroutine for as long as it is open, and others that end with it.

    Args:
        name: the thread's.
        main: makes that coroutine; it is cancelled at the end.
    """

    def __init__(self, name: str, main: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._main = main
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._begun: dict[Future[Any], Coroutine[Any, Any, Any]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._runs = False

    def start(self) -> None:
        """Start the thread."""
        self._runs = True
        self._thread.start()

    def close(self) -> None:
        """End the thread; who waits for something to be done is told that it will not be."""
        if self._runs:
            self._runs = False
            self.call_soon(self._loop.stop)
            self._thread.join()
        elif not self._loop.is_closed():
            self._loop.close()
        self._give_up()

    def call_soon(self, function: Callable[[], object]) -> None:
        """Have something called on the loop, from any thread; without waiting."""
        with contextlib.suppress(RuntimeError):  # it is closed
            self._loop.call_soon_threadsafe(function)

    def spawn(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        """Run something on the loop that ends with it; to be called on the loop."""
        task = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run something on the loop and wait for it, from another thread: see `begin`."""
        return self.begin(coroutine).result()

    def begin(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Run something on the loop, from another thread.

        Returns:
            A future, which raises `NodeUnreachable` where the loop does not run, or ends meanwhile.
        """
        future: Future[T] = Future()
        self._begun[future] = coroutine
        future.add_done_callback(lambda done: self._begun.pop(done, None))
        self.call_soon(lambda: self.spawn(_settle(future, coroutine)))
        if not self._runs:
            self._give_up()
        return future

    def _give_up(self) -> None:
        if self._thread.is_alive():
            return  # which gives up itself, at its end
        for future, coroutine in list(self._begun.items()):
            coroutine.close()
            _fail(future)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self.spawn(self._main())
            self._loop.run_forever()
        finally:
            # Twice, as what is cancelled may have more to do, which ends soon.
            for _ in range(2):
                pending = asyncio.all_tasks(self._loop)
                for task in pending:
                    task.cancel()
                if pending:
                    wait = asyncio.wait(pending, timeout=_END_SECONDS)
                    for task in self._loop.run_until_complete(wait)[0]:
                        task.cancelled() or task.exception()
            self._loop.close()


async def _settle(future: Future[T], coroutine: Coroutine[Any, Any, T]) -> None:
    try:
        result = await coroutine
    except asyncio.CancelledError:
        _fail(future)
    except Exception as error:
        with contextlib.suppress(InvalidStateError):
            future.set_exception(error)
    else:
        with contextlib.suppress(InvalidStateError):
            future.set_result(result)


def _fail(future: Future[Any]) -> None:
    with contextlib.suppress(InvalidStateError):
        future.set_exception(NodeUnreachable("the monitor does not run, and asks no other node"))
