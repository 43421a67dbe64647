"""Closing several parts, some of which fail."""

from __future__ import annotations

import logging

import pytest

from monitor_plugin.concurrency.closing import close_all

from ..support import logged


class Part:
    """A part that records its close, and then raises."""

    def __init__(self, closed: list[str], name: str, error: BaseException | None = None) -> None:
        self._closed, self._name, self._error = closed, name, error

    def close(self) -> None:
        self._closed.append(self._name)
        if self._error:
            raise self._error


def test_close_all_closes_every_part_and_logs_errors(caplog: pytest.LogCaptureFixture) -> None:
    """The order is that of the arguments; each error is logged with the name of its part."""
    closed: list[str] = []
    errors = [OSError("first"), None, RuntimeError("last")]
    parts = [Part(closed, name, error) for name, error in zip("abc", errors, strict=True)]
    with caplog.at_level(logging.ERROR):
        close_all(*(part.close for part in parts))
    assert closed == ["a", "b", "c"]
    assert logged(caplog) == ["Part.close failed; the other parts are closed nevertheless"] * 2
    assert "OSError: first" in caplog.text
    assert "RuntimeError: last" in caplog.text


def test_close_all_raises_an_interrupt_after_all_calls() -> None:
    """Ctrl-C during a close neither keeps parts open nor is lost."""
    closed: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        close_all(Part(closed, "a", KeyboardInterrupt()).close, Part(closed, "b").close)
    assert closed == ["a", "b"]
