"""etcd, which serves `grpc.health.v1`."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

from monitor_plugin import State

from ..support import eventually
from .conftest import Watched
from .servers import Etcd, members


def test_monitor_follows_the_server_from_its_start_to_its_stop(
    watch: Callable[..., Watched],
) -> None:
    """It is ready, also while a client watches it, and is stopped."""
    watched = watch(Etcd, protocol=("grpc-health",))
    ready = watched.await_state(State.READY)
    assert (ready.source, ready.protocol) == ("grpc", "grpc-health")
    with watched.server.busy():
        assert watched.is_in(State.READY)  # the protocol does not tell
    watched.monitor.shutdown(watched.MODEL)
    assert not members(watched.server.process.pid)
    assert [each.cause for each in watched.exits] == ["shutdown"]


def test_killed_server_is_gone(watch: Callable[..., Watched]) -> None:
    """The monitor notices the end of a server that a client watches."""
    watched = watch(Etcd, protocol=("grpc-health",))
    watched.await_state(State.READY)
    os.kill(watched.server.process.pid, signal.SIGKILL)
    eventually(lambda: watched.exits)
    assert watched.monitor.backends() == []
