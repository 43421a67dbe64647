"""SGLang's server: answers of its documentation, its slow health route, and answers that lie."""

from __future__ import annotations

import pytest

from monitor_plugin import State, Status
from monitor_plugin.status_protocols import sglang
from monitor_plugin.status_protocols.protocol import Answer, Get, NoStatus
from monitor_plugin.status_protocols.sglang import Sglang

from ..recorded_servers import ModelServer, Reply, json_reply, recorded, text_reply
from .support import read, replay

IDLE = Status(State.READY, None, 0, 0, 0, 0)
BUSY = Status(State.BUSY, None, 162, 2826, 86.50814177726902, 28.000000000000004)


@pytest.mark.parametrize(("state", "status"), [("ready", IDLE), ("busy", BUSY)])
def test_documented_server(server: ModelServer, state: str, status: Status) -> None:
    """By its metrics, and without them by its route of loads. A reading takes two requests."""
    replay(server, "sglang", state)
    assert read(server, Sglang) == status
    assert server.requests == ["/ready", "/metrics"]
    del server.replies["metrics"]
    assert read(server, Sglang) == status
    assert "/health" not in server.requests


@pytest.mark.parametrize("absent", ["", "ready"])
def test_loading_server_is_not_initialized(server: ModelServer, absent: str) -> None:
    """Its metrics are served already."""
    server.replies = {**recorded("sglang", "ready"), **recorded("sglang", "loading")}
    server.replies.pop(absent, None)
    assert read(server, Sglang) == Status(State.UNINITIALIZED)


def test_older_server_that_becomes_unhealthy_is_an_error(server: ModelServer) -> None:
    """A 503 of `/health` means that it starts, until it was healthy."""
    replay(server, "sglang", "ready")
    del server.replies["ready"]
    protocol = Sglang("tiny", "any")
    states = []
    for status in (503, 200, 503, 500):
        server.replies["/health"] = Reply(status)
        states.append(protocol.read(server.get()).state)
    assert states == [State.UNINITIALIZED, State.READY, State.ERROR, State.ERROR]


def test_slow_health_route_is_not_requested_again(
    server: ModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It generates a token. Also an answer that comes too late was slow."""
    replay(server, "sglang", "ready")
    del server.replies["ready"]
    now = 0.0
    monkeypatch.setattr(sglang, "monotonic", lambda: now)

    def reading(is_late: bool = False) -> Get:
        get = server.get()

        def slow_get(path: str) -> Answer:
            nonlocal now
            if path == "/health":
                now += 1.0
                if is_late:
                    raise NoStatus("DEADLINE_EXCEEDED", "late", answered=False)
            return get(path)

        return slow_get

    protocol = Sglang("tiny", "any")
    with pytest.raises(NoStatus):
        protocol.read(reading(is_late=True))
    assert protocol.read(reading()) == IDLE
    protocol = Sglang("tiny", "any")
    assert protocol.read(reading()) == protocol.read(reading()) == IDLE
    assert server.requests.count("/health") == 1


def test_server_is_full_when_requests_wait(server: ModelServer) -> None:
    replay(server, "sglang", "ready")
    server.replies["metrics"] = text_reply("sglang:num_running_reqs 5\nsglang:num_queue_reqs 0")
    assert read(server, Sglang, busy_when="full").state == State.READY
    replay(server, "sglang", "busy")
    assert read(server, Sglang, busy_when="full").state == State.BUSY


def test_figures_of_several_ranks(server: ModelServer) -> None:
    """Data-parallel ranks are added up; tensor-parallel ones tell the same figures."""
    replay(server, "sglang", "ready")
    server.replies["metrics"] = text_reply(
        "\n".join(
            f'sglang:{name}{{dp_rank="{dp}",tp_rank="{tp}"}} {value}'
            for name, values in {
                "num_running_reqs": (1, 2),
                "num_queue_reqs": (0, 1),
                "gen_throughput": (10.5, 20),
                "token_usage": (0.25, 0.75),
            }.items()
            for dp, value in enumerate(values)
            for tp in range(2)
        )
    )
    expected = Status(State.BUSY, None, 3, 1, 30.5, 50)
    assert read(server, Sglang) == expected
    del server.replies["metrics"]
    loads = [
        {"num_running_reqs": 1, "num_waiting_reqs": 0, "gen_throughput": 10.5, "token_usage": 0.25},
        {"num_running_reqs": 2, "num_waiting_reqs": 1, "gen_throughput": 20, "token_usage": 0.75},
    ]
    server.replies["v1-loads"] = json_reply({"loads": loads})
    assert read(server, Sglang) == expected


def test_server_without_metrics_and_loads_is_ready(server: ModelServer) -> None:
    """Whether it works on a request is not known."""
    replay(server, "sglang", "ready")
    del server.replies["metrics"], server.replies["v1-loads"]
    protocol = Sglang("tiny", "any")
    for _ in range(2):
        assert protocol.read(server.get()) == Status(State.READY)
    assert server.requests.count("/metrics") == 1


@pytest.mark.parametrize("lie", [None, True, "1", -1, 1e300, [], {}])
def test_lies_are_unknown(server: ModelServer, lie: object) -> None:
    server.replies = {"/ready": Reply()}
    names = ("num_running_reqs", "num_waiting_reqs", "gen_throughput", "token_usage")
    for loads in (lie, [lie], [dict.fromkeys(names, lie), dict.fromkeys(names, 1)]):
        server.replies["/v1/loads"] = json_reply({"loads": loads})
        assert read(server, Sglang) == Status(State.READY)
