from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from monitor_plugin import Monitor, Settings

from .support import Client, Spawner


@pytest.fixture
def spawner() -> Iterator[Spawner]:
    """Starts processes, and ends them after the test."""
    spawner = Spawner()
    yield spawner
    spawner.close()


@pytest.fixture
def make_monitor() -> Iterator[Callable[..., Monitor]]:
    """Makes started monitors on free ports, and closes them after the test.

    Settings are passed by name, and plugins as `plugins=[...]`; the waits are short unless given.
    """
    monitors: list[Monitor] = []

    def make(plugins: list[object] = [], **settings: Any) -> Monitor:  # noqa: B006 - not changed
        quick = {
            "listen": "127.0.0.1:0",
            "respawn_watch_seconds": 0.1,
            "stop_timeout_seconds": 10.0,
        }
        monitor = Monitor(Settings(**{**quick, **settings}), plugins)
        monitors.append(monitor)
        monitor.start()
        return monitor

    yield make
    for monitor in monitors:
        monitor.close()


@pytest.fixture
def monitor(make_monitor: Callable[..., Monitor]) -> Monitor:
    """A started monitor on a free port, with short waits."""
    return make_monitor()


@pytest.fixture
def client(monitor: Monitor) -> Client:
    """Speaks HTTP to `monitor`."""
    return Client(monitor.url)
