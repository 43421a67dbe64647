from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

import pytest

from monitor_plugin import Monitor

from .support import Client, Spawner

pytest_plugins = ["monitor_plugin.testing", "tests.hanging"]  # with `make_monitor` and `backend`


@pytest.fixture(autouse=True)
def log_levels() -> Iterator[None]:
    """Takes back the levels that a command in the tests' own process gives to loggers."""
    yield
    for name in ("monitor_plugin.audit", "monitor_plugin.logs"):
        logging.getLogger(name).setLevel(logging.NOTSET)


@pytest.fixture
def spawner() -> Iterator[Spawner]:
    """Starts processes, and ends them after the test."""
    spawner = Spawner()
    yield spawner
    spawner.close()


@pytest.fixture
def monitor(make_monitor: Callable[..., Monitor]) -> Monitor:
    """A started monitor on a free port, with short waits."""
    return make_monitor()


@pytest.fixture
def client(monitor: Monitor) -> Client:
    """Speaks HTTP to `monitor`."""
    return Client(monitor.url)
