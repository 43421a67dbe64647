"""MLServer, which speaks the Open Inference Protocol over HTTP and over gRPC."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest

from monitor_plugin import State

from ..support import eventually
from .conftest import Watched
from .servers import MlServer, members


class GrpcMlServer(MlServer):
    """The server at its gRPC address."""

    @property
    def address(self) -> str:
        return self.grpc_address


@pytest.mark.parametrize(
    ("kind", "source", "protocol"),
    [(MlServer, "http", "kserve-http"), (GrpcMlServer, "grpc", "kserve-grpc")],
)
def test_monitor_follows_the_server_from_its_start_to_its_stop(
    watch: Callable[..., Watched], kind: type[MlServer], source: str, protocol: str
) -> None:
    """It loads, is ready, also while it predicts, and is stopped."""
    settings = {"protocol": (protocol,)} if source == "grpc" else {}  # gRPC's is asked for by name
    watched = watch(kind, **settings)
    watched.await_state(State.UNINITIALIZED)
    assert isinstance(watched.server, MlServer)
    watched.server.loaded.touch()
    ready = watched.await_state(State.READY)
    assert (ready.source, ready.protocol) == (source, protocol)
    assert ready.status
    assert ready.status.requests_running is None
    with watched.server.busy():
        assert watched.is_in(State.READY)  # the protocol does not tell
    watched.monitor.shutdown(watched.MODEL)
    assert not members(watched.server.process.pid)
    assert [each.cause for each in watched.exits] == ["shutdown"]


def test_killed_server_is_gone(watch: Callable[..., Watched]) -> None:
    """The monitor notices the end of a server that predicts."""
    watched = watch(MlServer)
    assert isinstance(watched.server, MlServer)
    watched.server.loaded.touch()
    watched.await_state(State.READY)
    with watched.server.busy():
        os.kill(watched.server.process.pid, signal.SIGKILL)
        eventually(lambda: watched.exits)
    assert watched.monitor.backends() == []
