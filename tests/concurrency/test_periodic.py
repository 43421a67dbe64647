"""A function that is called periodically."""

from __future__ import annotations

import threading
import time

import pytest

from monitor_plugin.concurrency.periodic import PeriodicTask

from ..support import eventually


def test_periodic_task_continues_after_an_error(caplog: pytest.LogCaptureFixture) -> None:
    """An exception is logged, and later calls are made; closing ends the thread."""
    ticks: list[int] = []

    def tick() -> None:
        ticks.append(1)
        raise RuntimeError("bad tick")

    ticker = PeriodicTask("the-ticker", 0.001, tick)
    ticker.start()
    eventually(lambda: len(ticks) > 2)
    ticker.close()
    assert "bad tick" in caplog.text
    assert not [each for each in threading.enumerate() if each.name == "the-ticker"]


def test_periodic_task_uses_at_most_a_tenth_of_a_core() -> None:
    """After a call that used much of the CPU the next one waits longer."""
    began: list[float] = []

    def tick() -> None:
        began.append(time.monotonic())
        until = time.thread_time() + 0.1
        while time.thread_time() < until:
            pass

    ticker = PeriodicTask("the-ticker", 0.001, tick)
    ticker.start()
    eventually(lambda: len(began) == 2)
    ticker.close()
    assert began[1] - began[0] > 0.9


def test_periodic_task_starts_again_after_its_close() -> None:
    """It also closes when it was never started, or was closed before."""
    ticked = threading.Event()
    ticker = PeriodicTask("the-ticker", 0.001, ticked.set)
    ticker.close()
    for _ in range(2):
        ticker.start()
        assert ticked.wait(60)
        before = ticker.stopping
        ticker.close()
        ticker.close()
        assert (before, ticker.stopping) == (False, True)
        ticked.clear()
