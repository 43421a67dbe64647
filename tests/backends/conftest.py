"""A monitor whose hooks record registrations and exits."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from monitor_plugin import (
    Backend,
    BackendExit,
    Monitor,
    hookimpl,
)
from monitor_plugin.backends.registry import Record


def make_record(model: str, pid: int, address: str | None = None) -> Record:
    """Make the record of a backend without a process; the registry uses its control group alone."""
    address = address or f"127.0.0.1:{pid}"
    unused: Any = None
    oom: Any = SimpleNamespace(group=None)
    return Record(Backend(model, pid, address, 1.0), address, unused, unused, unused, oom)


class Recorder:
    """A plugin that records the events of backends."""

    def __init__(self) -> None:
        self.registered: list[Backend] = []
        self.gone: list[tuple[Backend, BackendExit]] = []
        self.events: list[tuple[str, int]] = []  # of both kinds, with the PID

    @hookimpl
    def monitor_backend_registered(self, backend: Backend) -> None:
        self.events.append(("registered", backend.pid))
        self.registered.append(backend)

    @hookimpl
    def monitor_backend_gone(self, backend: Backend, exit: BackendExit) -> None:
        self.events.append(("gone", backend.pid))
        self.gone.append((backend, exit))


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def monitor(make_monitor: Callable[..., Monitor], recorder: Recorder) -> Monitor:
    return make_monitor(plugins=[recorder])
