"""Counters of `Status` calls; the calls themselves are tested in `test_connection.py`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import grpc
import pytest

from monitor_plugin import Backend, Monitor, Status, hookimpl
from monitor_plugin.rpc import grpc_transport
from monitor_plugin.rpc.call import DURATION_BOUNDS, StatusCounter
from monitor_plugin.rpc.protocol import status_from_wire

from ..support import Spawner


def test_calls_are_counted_up_to_each_bound() -> None:
    """For each bound the calls that took no longer are counted; the last number counts all."""
    counter = StatusCounter()
    for seconds in (0.0005, 0.001, 0.002, 0.7, 31.0):
        counter.add(seconds, None)
    counts = counter.counts()
    at_most = dict(zip(DURATION_BOUNDS, counts.calls, strict=False))
    assert (at_most[0.001], at_most[0.005], at_most[0.5], at_most[1.0]) == (2, 3, 3, 4)
    assert (at_most[30.0], counts.calls[-1]) == (4, 5)
    assert counts.seconds == 0.0005 + 0.001 + 0.002 + 0.7 + 31.0
    assert counts.failures == {}


def test_failures_are_counted_by_code() -> None:
    """A failed call is also one of all calls."""
    counter = StatusCounter()
    for code in ("UNAVAILABLE", "INTERNAL", None, "UNAVAILABLE"):
        counter.add(0.1, code)
    assert counter.counts().failures == {"UNAVAILABLE": 2, "INTERNAL": 1}
    assert counter.counts().calls[-1] == 4


def test_a_counter_takes_under_1_kib() -> None:
    """The size does not depend on the number of calls or of codes."""
    counter = StatusCounter()
    for code in grpc.StatusCode:
        for _ in range(1000):
            counter.add(5.0, code.name)
    parts = [counter, counter.__dict__, *counter.__dict__.values()]
    assert sum(map(sys.getsizeof, parts)) < 1024


def test_a_call_has_an_outcome_also_after_an_unexpected_error(
    monitor: Monitor, spawner: Spawner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error ends one call. Otherwise the readers of all later calls would wait in vain."""
    decode, errors = status_from_wire, [RuntimeError("unexpected")]

    def fail_once(response: Any) -> Status:
        if errors:
            raise errors.pop()
        return decode(response)

    monkeypatch.setattr(grpc_transport, "status_from_wire", fail_once)
    running = spawner.backend()
    monitor.hook.monitor_backend_spawned(model="m", pid=running.pid, address=running.address)
    assert monitor.read("m").rpc_error == "INTERNAL"
    assert monitor.read("m").source == "grpc"


class StatusHook:
    @hookimpl
    def monitor_query_status(self, backend: Backend, timeout_seconds: float) -> Status:
        return Status(2)


def test_a_status_from_a_hook_is_no_call(
    make_monitor: Callable[..., Monitor], spawner: Spawner
) -> None:
    """Nothing is counted where a hook answers."""
    monitor = make_monitor(plugins=[StatusHook()])
    process = spawner.sleeper()
    monitor.hook.monitor_backend_spawned(model="m", pid=process.pid, address="127.0.0.1:1")
    reading = monitor.read("m")
    assert reading.source == "hook"
    assert monitor._services.status_client.counts(reading.backend) is None
