"""One server for all tests of the protocols."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ..recorded_servers import ModelServer
from .support import Clock


@pytest.fixture(scope="package")
def only_server() -> Iterator[ModelServer]:
    server = ModelServer()
    yield server
    server.close()


@pytest.fixture
def server(only_server: ModelServer) -> ModelServer:
    """A server that answers nothing yet."""
    only_server.replies = {}
    only_server.requests.clear()
    return only_server


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("monitor_plugin.status_protocols.load.monotonic", lambda: clock.now)
    return clock
