"""vLLM's server, on the CPU. It takes most of a minute to start, so one test does all."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable

import pytest

from monitor_plugin import State

from ..support import eventually, is_running
from .conftest import Watched
from .servers import Vllm, members


@pytest.mark.timeout(600)
def test_monitor_follows_the_server_from_its_start_to_its_stop(
    watch: Callable[..., Watched],
) -> None:
    """While it loads it refuses connections; its engine is a child, which ends with it."""
    watched = watch(Vllm)
    loading = watched.read()
    assert (loading.source, loading.rpc_error) == ("psutil", "UNAVAILABLE")
    ready = watched.await_state(State.READY, seconds=240)
    assert watched.seen == ["none", "READY"]
    assert (ready.source, ready.protocol) == ("http", "vllm")
    assert ready.status
    assert (ready.status.requests_running, ready.status.requests_waiting) == (0, 0)
    assert ready.status.kv_cache_percent == 0
    with watched.server.busy(requests=4):  # of which it works on two

        def is_full() -> bool:
            status = watched.read().status
            return (status and (status.requests_running, status.requests_waiting)) == (2, 2)

        eventually(is_full)
        assert watched.is_in(State.BUSY)
        eventually(lambda: (status := watched.read().status) and status.kv_cache_percent)
        eventually(lambda: (status := watched.read().status) and status.tokens_per_second)
    watched.await_state(State.READY, seconds=240)
    tree = members(watched.server.process.pid)
    assert len(tree) > 1
    watched.monitor.shutdown(watched.MODEL)
    eventually(lambda: not any(map(is_running, tree)))
    assert [each.cause for each in watched.exits] == ["shutdown"]


@pytest.mark.timeout(600)
def test_killed_server_is_gone(watch: Callable[..., Watched]) -> None:
    """The monitor notices the end of the server, whose engine may live on."""
    watched = watch(Vllm)
    watched.await_state(State.READY, seconds=240)
    tree = members(watched.server.process.pid)
    try:
        os.kill(watched.server.process.pid, signal.SIGKILL)
        eventually(lambda: watched.exits)
    finally:
        for pid in tree:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        eventually(lambda: not any(map(is_running, tree)))
