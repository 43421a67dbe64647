"""Plugins and faults of the tests of shutdowns."""

from __future__ import annotations

import threading

from monitor_plugin import Backend, State, Status, hookimpl


class StaysBusy:
    """A plugin that reports every backend as busy, and records its calls."""

    def __init__(self) -> None:
        self.calls: list[Backend] = []
        self.timeouts: list[float] = []

    @hookimpl
    def monitor_query_status(self, backend: Backend, timeout_seconds: float) -> Status:
        self.calls.append(backend)
        self.timeouts.append(timeout_seconds)
        return Status(State.BUSY)


def fail() -> None:
    raise RuntimeError("the guard's database is away")


def overrun() -> None:
    threading.Event().wait(60)
