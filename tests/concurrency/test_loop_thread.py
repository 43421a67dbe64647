"""Coroutines on an event loop in a thread of its own."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
import time
from collections.abc import Iterator

import pytest

from monitor_plugin.concurrency import loop_thread
from monitor_plugin.concurrency.loop_thread import LoopThread

from ..support import descriptors, eventually, logged, refuse_thread


class Closed(Exception):
    """The thread does not run."""


@pytest.fixture
def thread() -> Iterator[LoopThread]:
    """A loop thread that runs."""
    thread = LoopThread("test", lambda: asyncio.sleep(0), Closed)
    thread.start()
    yield thread
    thread.close()


def test_loop_thread_returns_results_and_errors(thread: LoopThread) -> None:
    """`run` gives what the coroutine returns or raises."""

    async def divide(number: int) -> float:
        return 1 / number

    assert thread.run(divide(2)) == 0.5
    with pytest.raises(ZeroDivisionError):
        thread.run(divide(0))


def test_loop_thread_ends_every_caller_when_it_closes(
    thread: LoopThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also callers of coroutines that ignore their cancellation, and callers that come late."""
    monkeypatch.setattr(loop_thread, "_CANCEL_SECONDS", 0.05)
    may_end = threading.Event()

    async def ignore_cancellation() -> None:
        while not may_end.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0.01)

    futures = [thread.submit(asyncio.sleep(1000)), thread.submit(ignore_cancellation())]

    def submit_many() -> None:
        futures.extend(thread.submit(asyncio.sleep(1000)) for _ in range(1000))

    submitting = threading.Thread(target=submit_many)
    submitting.start()
    thread.close()
    submitting.join()
    futures.append(thread.submit(asyncio.sleep(1000)))
    deadline = time.monotonic() + 30
    for future in futures:
        with pytest.raises(Closed):
            future.result(max(0, deadline - time.monotonic()))
    may_end.set()
    futures.clear()
    gc.collect()  # asyncio logs here, and not at the end of all tests, that a task did not end


def test_loop_thread_logs_the_error_of_a_background_task(
    thread: LoopThread, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing waits for the result of such a task."""

    async def fail() -> None:
        raise ValueError("unexpected")

    async def spawn() -> None:
        thread.spawn(fail())

    thread.run(spawn())
    eventually(lambda: logged(caplog) == ["a task of thread test failed"])
    assert "ValueError: unexpected" in caplog.text


def test_loop_thread_that_cannot_start_may_be_started_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A failed start leaves no loop open, and nothing waits for the thread."""
    thread = LoopThread("test", lambda: asyncio.sleep(0), Closed)
    before = descriptors()
    with monkeypatch.context() as patch:
        refuse_thread(patch, "test")
        with pytest.raises(RuntimeError, match="can't start new thread"):
            thread.start()
    assert not descriptors() - before
    with pytest.raises(Closed):
        thread.run(asyncio.sleep(0))
    thread.start()
    assert thread.run(asyncio.sleep(0, "awake")) == "awake"
    thread.close()


def test_loop_thread_that_never_started_refuses_coroutines() -> None:
    """Nothing waits for a thread that does not run, and closing it does nothing."""
    thread = LoopThread("test", lambda: asyncio.sleep(0), Closed)
    with pytest.raises(Closed):
        thread.run(asyncio.sleep(0))
    thread.close()
