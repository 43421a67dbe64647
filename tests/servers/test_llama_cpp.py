"""llama.cpp's server, and its router of several models."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from monitor_plugin import State
from monitor_plugin.domain.models import Reading

from ..integration.supervisord_host import Host, program
from ..support import eventually, is_running
from .conftest import Watched
from .servers import LlamaCpp, LlamaRouter, members


def test_monitor_follows_the_server_from_its_start_to_its_stop(
    watch: Callable[..., Watched],
) -> None:
    """It loads, is ready, works on a request, has nothing to do, and is stopped."""
    watched = watch(LlamaCpp)
    ready = watched.await_state(State.READY)
    assert watched.seen in (["none", "UNINITIALIZED", "READY"], ["UNINITIALIZED", "READY"])
    assert (ready.source, ready.protocol, ready.status_error) == ("http", "llama.cpp", None)
    assert ready.status
    assert (ready.status.requests_running, ready.status.requests_waiting) == (0, 0)
    assert ready.memory_source in ("rss", "pss")
    with watched.server.busy():
        busy = watched.await_state(State.BUSY)
        assert busy.status
        assert (busy.status.requests_running, busy.status.requests_waiting) == (1, 0)
        eventually(lambda: tokens_per_second(watched.read()))
    idle = watched.await_state(State.READY)
    assert idle.status
    assert not idle.status.has_requests
    watched.monitor.shutdown(watched.MODEL)
    assert watched.monitor.backends() == []
    assert not members(watched.server.process.pid)
    assert [each.cause for each in watched.exits] == ["shutdown"]


def tokens_per_second(reading: Reading) -> float:
    return (reading.status and reading.status.tokens_per_second) or 0.0


def test_server_with_a_free_slot_is_not_full(watch: Callable[..., Watched]) -> None:
    """With `busy_when=full` it is BUSY once each of its slots works on a request."""
    watched = watch(LlamaCpp, slots=2, busy_when="full")
    watched.await_state(State.READY)
    with watched.server.busy():
        eventually(lambda: running(watched.read()) == 1)
        assert watched.is_in(State.READY)
        with watched.server.busy():
            watched.await_state(State.BUSY)


def running(reading: Reading) -> int | None:
    return reading.status.requests_running if reading.status else None


def test_request_without_a_free_slot_waits(watch: Callable[..., Watched]) -> None:
    """What the server defers is a request that waits."""
    watched = watch(LlamaCpp, slots=1)
    watched.await_state(State.READY)
    with watched.server.busy(requests=2):

        def waits() -> bool:
            status = watched.read().status
            return (status and (status.requests_running, status.requests_waiting)) == (1, 1)

        eventually(waits)


def test_killed_server_is_gone(watch: Callable[..., Watched]) -> None:
    """The monitor notices the end of a server that was busy, and its signal."""
    watched = watch(LlamaCpp)
    watched.await_state(State.READY)
    with watched.server.busy():
        watched.await_state(State.BUSY)
        os.kill(watched.server.process.pid, signal.SIGKILL)
        eventually(lambda: watched.exits)
    assert watched.monitor.backends() == []


def test_reading_delays_the_end_of_the_server_by_seconds_only(
    watch: Callable[..., Watched],
) -> None:
    """A request that comes while the server ends gets no answer, and the server waits for it."""
    watched = watch(LlamaCpp, status_timeout_seconds=1.0)
    watched.await_state(State.READY)
    process = watched.server.process
    os.kill(process.pid, signal.SIGSTOP)
    assert watched.read().rpc_error == "DEADLINE_EXCEEDED"  # the request goes on
    process.terminate()
    os.kill(process.pid, signal.SIGCONT)
    eventually(lambda: process.poll() is not None, seconds=20)
    assert process.returncode == 0


def test_wrong_protocol_says_what_is_wrong(watch: Callable[..., Watched]) -> None:
    """A server that was registered for gRPC is not read, and the reading says why."""
    watched = watch(GrpcAddress)
    watched.server.await_ready()
    reading = watched.read()
    assert reading.source == "psutil"
    assert reading.status_error
    assert "http://" in reading.status_error


class GrpcAddress(LlamaCpp):
    """The server at an address without a scheme."""

    @property
    def address(self) -> str:
        return self.grpc_address


def test_router_starts_a_model_only_on_demand(watch: Callable[..., Watched]) -> None:
    """To ask the router for the state of a model does not load the model; a request does."""
    watched = watch(LlamaRouter)
    watched.await_state(State.UNINITIALIZED)
    for _ in range(5):
        assert watched.is_in(State.UNINITIALIZED)
    assert len(members(watched.server.process.pid)) == 1
    with watched.server.busy():
        watched.await_state(State.BUSY)
    assert len(members(watched.server.process.pid)) == 2  # the router, and the model's server
    watched.await_state(State.READY)
    watched.monitor.shutdown(watched.MODEL)
    assert not members(watched.server.process.pid)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[tuple[Host, LlamaCpp]]:
    """A supervisord with a monitor, and llama.cpp's server as its only program."""
    server = LlamaCpp(tmp_path)
    command = " ".join(server.command())
    variables = f'environment=MONITOR_MODEL="tiny",MONITOR_ADDRESS="{server.address}"'
    host = Host(
        tmp_path / "host",
        program("llama", command, variables, "startsecs=1", f"stderr_logfile={server.log}"),
        flags="--reading-max-age-seconds 0",
    )
    yield host.start(), server
    host.close()


def test_supervisord_starts_and_stops_the_server(host: tuple[Host, LlamaCpp]) -> None:
    """Loading, ready, busy, stopped, and started again, as a client of the monitor sees it."""
    supervisord, server = host
    seen: list[str] = []

    def state() -> str | None:
        try:
            answer = supervisord.client.request("GET", "/backends?model=tiny").json
        except OSError:
            return None
        found = [each["state_name"] for each in answer["backends"]]
        if found and found[0] not in seen:
            seen.append(found[0])
        return found[0] if found else None

    eventually(lambda: state() == "ready")
    first = supervisord.pid("llama")
    with server.busy():
        eventually(lambda: state() == "busy")
    eventually(lambda: state() == "ready")
    assert supervisord.client.shutdown("tiny").status == 200
    assert supervisord.state("llama") == "STOPPED"
    assert not is_running(first)
    assert state() is None
    seen.clear()
    with ThreadPoolExecutor() as pool:  # a start ends once the model is loaded
        start = pool.submit(supervisord.client.request, "POST", "/backend/load", {"model": "tiny"})
        eventually(lambda: state() == "ready")
    assert start.result().status == 200
    assert "uninitialized" in seen
    assert supervisord.pid("llama") != first
