"""What is done again and again in the background."""

from __future__ import annotations

import threading

import pytest

from monitor_plugin.ticker import Ticker

from .support import eventually


def test_a_ticker_goes_on_after_an_error(caplog: pytest.LogCaptureFixture) -> None:
    """What one tick raises is logged, and later ticks come; closing ends the thread."""
    ticks: list[int] = []

    def tick() -> None:
        ticks.append(1)
        raise RuntimeError("bad tick")

    ticker = Ticker("the-ticker", 0.001, tick)
    ticker.start()
    eventually(lambda: len(ticks) > 2)
    ticker.close()
    assert "bad tick" in caplog.text
    assert not [each for each in threading.enumerate() if each.name == "the-ticker"]
