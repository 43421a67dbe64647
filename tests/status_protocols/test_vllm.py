"""vLLM's server: recorded answers, several engines, sleep, and answers that lie."""

from __future__ import annotations

import pytest

from monitor_plugin import State, Status
from monitor_plugin.status_protocols.protocol import NoStatus
from monitor_plugin.status_protocols.vllm import Vllm

from ..recorded_servers import ModelServer, Reply, json_reply, text_reply
from .support import Clock, read, replay

TWO_ENGINES = """
vllm:num_requests_running{engine="0",model_name="tiny"} 1.0
vllm:num_requests_running{engine="1",model_name="tiny"} 2.0
vllm:num_requests_waiting{engine="0",model_name="tiny"} 0.0
vllm:num_requests_waiting{engine="1",model_name="tiny"} 3.0
vllm:num_requests_waiting_by_reason{engine="1",model_name="tiny",reason="capacity"} 3.0
vllm:kv_cache_usage_perc{engine="0",model_name="tiny"} 0.25
vllm:kv_cache_usage_perc{engine="1",model_name="tiny"} 0.75
"""


def metrics(text: str) -> dict[str, Reply]:
    return {"/health": Reply(), "/metrics": text_reply(text)}


@pytest.mark.parametrize(
    ("state", "status"),
    [
        ("ready", Status(State.READY, None, 0, 0, kv_cache_percent=0)),
        ("busy", Status(State.BUSY, None, 1, 0, kv_cache_percent=0.17091930167256741)),
        ("after", Status(State.READY, None, 0, 0, kv_cache_percent=0)),
    ],
)
def test_recorded_server(server: ModelServer, state: str, status: Status) -> None:
    """A reading takes two requests."""
    replay(server, "vllm", state)
    assert read(server, Vllm) == status
    assert server.requests == ["/health", "/metrics"]


def test_rate_of_tokens_is_that_of_the_counter(server: ModelServer, clock: Clock) -> None:
    protocol = Vllm("tiny", "any")
    replay(server, "vllm", "ready")
    assert protocol.read(server.get()).tokens_per_second is None
    clock.now += 4
    replay(server, "vllm", "busy")
    assert protocol.read(server.get()).tokens_per_second == 1784 / 4


def test_figures_of_several_engines(server: ModelServer) -> None:
    """Numbers of requests are added, and the use of the caches is their mean."""
    server.replies = metrics(TWO_ENGINES)
    assert read(server, Vllm) == Status(State.BUSY, None, 3, 3, kv_cache_percent=50)


def test_server_is_full_when_requests_wait(server: ModelServer) -> None:
    replay(server, "vllm", "busy")
    assert read(server, Vllm, busy_when="full").state == State.READY
    server.replies = metrics(TWO_ENGINES)
    assert read(server, Vllm, busy_when="full").state == State.BUSY


def test_kv_cache_of_older_versions(server: ModelServer) -> None:
    server.replies = metrics('vllm:gpu_cache_usage_perc{model_name="tiny"} 0.5\n')
    assert read(server, Vllm).kv_cache_percent == 50


@pytest.mark.parametrize(("awake", "state"), [(0, State.UNINITIALIZED), (1, State.READY)])
def test_sleeping_server_is_not_initialized(server: ModelServer, awake: int, state: State) -> None:
    name = "vllm:engine_sleep_state"
    server.replies = metrics(
        f'{name}{{engine="0",sleep_state="awake"}} {awake}\n'
        f'{name}{{engine="0",sleep_state="discard_all"}} 0.0\n'
    )
    assert read(server, Vllm).state == state


def test_older_server_in_development_mode_tells_whether_it_sleeps(server: ModelServer) -> None:
    """Without that mode it is asked once."""
    server.replies = metrics("vllm:num_requests_running 0")
    server.replies["/is_sleeping"] = json_reply({"is_sleeping": True})
    assert read(server, Vllm) == Status(State.UNINITIALIZED)
    del server.replies["/is_sleeping"]
    server.requests.clear()
    protocol = Vllm("tiny", "any")
    for _ in range(2):
        assert protocol.read(server.get()).state == State.READY
    assert server.requests.count("/is_sleeping") == 1


@pytest.mark.parametrize("status", [500, 503])
def test_server_whose_engine_has_died_is_an_error(server: ModelServer, status: int) -> None:
    replay(server, "vllm", "busy")
    server.replies["/health"] = Reply(status)
    assert read(server, Vllm) == Status(State.ERROR)


@pytest.mark.parametrize("reply", [Reply(503, "text/html", b"<html>"), Reply(502), Reply(404)])
def test_proxy_that_answers_tells_no_state(server: ModelServer, reply: Reply) -> None:
    server.replies = {"any-route": reply}
    with pytest.raises(NoStatus):
        read(server, Vllm)


def test_server_without_metrics_is_ready(server: ModelServer) -> None:
    """Whether it works on a request is not known."""
    server.replies = {"/health": Reply()}
    assert read(server, Vllm) == Status(State.READY)


@pytest.mark.parametrize("lie", ["-1", "NaN", "+Inf", "1e300", "one", ""])
def test_lies_are_unknown(server: ModelServer, lie: str) -> None:
    """Also if only one of the engines lies."""
    names = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
    lines = [f'vllm:{name}{{engine="{engine}"}} ' for name in names for engine in "01"]
    text = "\n".join(line + (lie if '"1"' in line else "1") for line in lines)
    server.replies = metrics(text)
    found = read(server, Vllm)
    if lie in ("one", ""):  # no sample
        assert found == Status(State.BUSY, None, 1, 1, kv_cache_percent=100)
    else:
        assert found == Status(State.READY)
