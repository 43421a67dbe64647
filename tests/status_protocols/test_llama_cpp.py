"""llama.cpp's server: recorded answers, a router, and answers that lie."""

from __future__ import annotations

import json
from typing import Any

import pytest

from monitor_plugin import State, Status
from monitor_plugin.status_protocols.llama_cpp import LlamaCpp
from monitor_plugin.status_protocols.protocol import NoStatus

from ..recorded_servers import ModelServer, Reply, json_reply, text_reply
from .support import Clock, read, replay

NOT_SUPPORTED = json_reply({"error": {"code": 501, "type": "not_supported_error"}}, 501)
OK = json_reply({"status": "ok"})


def slots(*working: bool) -> Reply:
    return json_reply([{"id": n, "is_processing": each} for n, each in enumerate(working)])


def metrics(running: object = 0, waiting: object = 0, tokens: object = 0) -> Reply:
    return text_reply(
        f"llamacpp:requests_processing {running}\nllamacpp:requests_deferred {waiting}\n"
        f"llamacpp:tokens_predicted_total {tokens}\n"
    )


@pytest.mark.parametrize(
    ("state", "status"),
    [
        ("loading", Status(State.UNINITIALIZED)),
        ("ready", Status(State.READY, None, 0, 0)),
        ("busy", Status(State.BUSY, None, 1, 0)),
        ("after", Status(State.READY, None, 0, 0)),
    ],
)
def test_recorded_server(server: ModelServer, state: str, status: Status) -> None:
    replay(server, "llama.cpp", state)
    assert read(server, LlamaCpp) == status


def test_server_with_a_key_is_known_without_it(server: ModelServer) -> None:
    """Otherwise it would pass for a server of OpenAI's API, which is never BUSY."""
    no_key = json_reply({"error": {"message": "Invalid API Key", "code": 401}}, 401)
    replay(server, "llama.cpp", "ready")
    server.replies |= {"any-route": no_key, "props": no_key, "metrics": no_key, "slots": no_key}
    assert LlamaCpp("tiny", "any").matches(server.get())
    with pytest.raises(NoStatus, match="grpc_token_file"):
        read(server, LlamaCpp)
    server.replies["v1-models"] = no_key
    assert not LlamaCpp("tiny", "any").matches(server.get())


def test_reading_takes_few_requests(server: ModelServer) -> None:
    """`/slots`, which keeps a server awake, is not requested while `/metrics` says it is idle."""
    protocol = LlamaCpp("tiny", "any")
    for state, paths in {
        "ready": ["/health", "/metrics", "/props"],
        "busy": ["/metrics", "/slots"],
        "after": ["/health", "/metrics", "/props"],
    }.items():
        replay(server, "llama.cpp", state)
        protocol.read(server.get())
        if state != "ready":  # the first one
            assert sorted(server.requests) == paths
        server.requests.clear()


def test_server_is_full_when_all_slots_work_or_requests_wait(server: ModelServer) -> None:
    replay(server, "llama.cpp", "busy")
    assert read(server, LlamaCpp, busy_when="full").state == State.READY
    server.replies |= {"metrics": metrics(4), "slots": slots(True, True, True, True)}
    assert read(server, LlamaCpp, busy_when="full").state == State.BUSY
    server.replies |= {"metrics": metrics(4), "slots": NOT_SUPPORTED}  # total_slots: 4
    assert read(server, LlamaCpp, busy_when="full").state == State.BUSY
    server.replies |= {"metrics": metrics(1, 1), "slots": slots(True, False)}
    assert read(server, LlamaCpp, busy_when="full").state == State.BUSY


def test_server_without_metrics_tells_by_its_slots(server: ModelServer) -> None:
    replay(server, "llama.cpp", "ready")
    server.replies["metrics"] = NOT_SUPPORTED
    assert read(server, LlamaCpp) == Status(State.READY, None, 0)
    server.replies["slots"] = slots(True, False)
    assert read(server, LlamaCpp) == Status(State.BUSY, None, 1)
    assert read(server, LlamaCpp, busy_when="full") == Status(State.READY, None, 1)


def test_server_without_metrics_and_slots_is_ready(server: ModelServer) -> None:
    """What it does not serve is requested once."""
    replay(server, "llama.cpp", "ready")
    server.replies |= {"metrics": NOT_SUPPORTED, "slots": NOT_SUPPORTED}
    protocol = LlamaCpp("tiny", "any")
    for _ in range(2):
        assert protocol.read(server.get()) == Status(State.READY)
    assert server.requests.count("/slots") == server.requests.count("/metrics") == 1


def test_sleeping_server_is_not_initialized_and_not_woken(server: ModelServer) -> None:
    replay(server, "llama.cpp", "ready")
    props = json.loads(server.replies["props"].body)
    for reply in (metrics(), NOT_SUPPORTED):
        server.replies |= {"props": json_reply({**props, "is_sleeping": True}), "metrics": reply}
        assert read(server, LlamaCpp) == Status(State.UNINITIALIZED)
    assert "/slots" not in server.requests


@pytest.mark.parametrize("path", ["/health", "/metrics", "/props"])
def test_answer_500_is_an_error(server: ModelServer, path: str) -> None:
    replay(server, "llama.cpp", "ready")
    server.replies[path] = json_reply({"error": {"code": 500}}, 500)
    assert read(server, LlamaCpp) == Status(State.ERROR)


def test_health_that_says_loading_suffices(server: ModelServer) -> None:
    """Also in the words of builds before June 2024."""
    replay(server, "llama.cpp", "ready")
    server.replies["/health"] = json_reply({"status": "loading model"}, 503)
    assert read(server, LlamaCpp) == Status(State.UNINITIALIZED)


def test_proxy_that_answers_503_tells_no_state(server: ModelServer) -> None:
    server.replies = {"any-route": Reply(503, "text/html", b"Loading model")}
    with pytest.raises(NoStatus) as caught:
        read(server, LlamaCpp)
    assert caught.value.rpc_error == "UNAVAILABLE"


def test_rate_of_tokens_counts_requests_that_run(server: ModelServer, clock: Clock) -> None:
    """`tokens_predicted_total` alone would stay at 100 until the request has ended."""
    protocol = LlamaCpp("tiny", "any")
    rates = []
    for running, finished, decoded in [(0, 100, 0), (1, 100, 20), (1, 100, 60), (0, 200, 0)]:
        slot = {"is_processing": True, "next_token": [{"n_decoded": decoded}]}
        server.replies = {
            "health": OK,
            "metrics": metrics(running, 0, finished),
            "slots": json_reply([slot, {"is_processing": False}]),
        }
        rates.append(protocol.read(server.get()).tokens_per_second)
        clock.now += 2
    assert rates == [None, 10, 20, 20]


def test_kv_cache_of_older_builds(server: ModelServer) -> None:
    server.replies = {"health": OK, "metrics": text_reply("llamacpp:kv_cache_usage_ratio 0.25")}
    assert read(server, LlamaCpp) == Status(State.READY, None, kv_cache_percent=25)


@pytest.mark.parametrize("lie", ["-1", "NaN", "+Inf", "1e300", "0.5", "one", ""])
def test_lies_of_metrics_are_unknown(server: ModelServer, lie: str) -> None:
    server.replies = {"health": OK, "metrics": metrics(lie, lie, lie)}
    assert read(server, LlamaCpp) == Status(State.READY)


@pytest.mark.parametrize("lie", [None, 1, "true", [], {}, -1])
def test_lies_of_slots_are_unknown(server: ModelServer, lie: object) -> None:
    server.replies = {"health": OK, "slots": json_reply([{"is_processing": lie}])}
    assert read(server, LlamaCpp) == Status(State.READY)
    server.replies["slots"] = json_reply(lie)
    assert read(server, LlamaCpp) == Status(State.READY)


@pytest.mark.once
def test_million_slots_are_read(server: ModelServer) -> None:
    body = b"[" + b'{"is_processing":1},' * 200_000 + b"{}]"
    server.replies = {"health": OK, "slots": Reply(200, "application/json", body)}
    assert read(server, LlamaCpp) == Status(State.READY)
    server.replies["slots"] = Reply(200, "application/json", b"[" + b"{}," * 1_000_000 + b"{}]")
    assert read(server, LlamaCpp) == Status(State.READY)


ROUTER = {"role": "router"}


def router(*models: dict[str, Any]) -> dict[str, Reply]:
    return {"health": OK, "props": json_reply(ROUTER), "models": json_reply({"data": models})}


def model(name: object, state: object, **fields: Any) -> dict[str, Any]:
    return {"id": name, "status": {"value": state, **fields}}


@pytest.mark.parametrize(
    ("state", "name", "status"),
    [
        ("ready", "tiny", Status(State.UNINITIALIZED)),
        ("ready", "my router", Status(State.READY)),
        ("busy", "tiny", Status(State.BUSY, None, 1, 0)),
        ("busy", "other", Status(State.UNINITIALIZED)),
        ("busy", "my router", Status(State.BUSY, None, 1, 0)),
        ("after", "tiny", Status(State.READY, None, 0, 0)),
    ],
)
def test_recorded_router(server: ModelServer, state: str, name: str, status: Status) -> None:
    """It tells of one model, or of the loaded ones together."""
    replay(server, "llama.cpp-router", state)
    assert read(server, LlamaCpp, name) == status


@pytest.mark.parametrize("state", ["unloaded", "loading", "downloading", "sleeping", "x", None, 5])
def test_model_of_a_router_that_is_not_loaded_is_not_loaded_by_the_reading(
    server: ModelServer, state: object
) -> None:
    server.replies = router(model("tiny", state))
    assert read(server, LlamaCpp) == Status(State.UNINITIALIZED)
    assert server.requests == ["/props", "/models"]


def test_requests_to_a_router_name_the_model_and_load_none(server: ModelServer) -> None:
    """The backend has an alias of the model."""
    server.replies = router({**model("a/b c", "loaded"), "aliases": ["tiny"]})
    server.replies["/metrics?model=a%2Fb%20c&autoload=false"] = metrics(2, 1)
    assert read(server, LlamaCpp) == Status(State.BUSY, None, 2, 1)
    assert all(each.endswith("&autoload=false") for each in server.requests[2:])


def test_model_of_a_router_that_failed_is_an_error(server: ModelServer) -> None:
    server.replies = router(model("tiny", "unloaded", failed=True, exit_code=1))
    assert read(server, LlamaCpp) == Status(State.ERROR)


def test_router_as_a_whole_is_busy_or_full_by_its_loaded_models(server: ModelServer) -> None:
    server.replies = router(model("a", "loaded"), model("b", "loaded"), model("c", "unloaded"))
    server.replies |= {"metrics-model-a": metrics(1), "slots-model-a": slots(True)}
    server.replies |= {"metrics-model-b": metrics(0, 0)}
    assert read(server, LlamaCpp, "all") == Status(State.BUSY, None, 1, 0)
    assert read(server, LlamaCpp, "all", "full") == Status(State.READY, None, 1, 0)
    server.replies |= {"metrics-model-b": metrics(1), "slots-model-b": slots(True)}
    assert read(server, LlamaCpp, "all", "full") == Status(State.BUSY, None, 2, 0)


def test_router_with_endless_models_is_asked_for_none_of_them(server: ModelServer) -> None:
    server.replies = router(*(model(n, "loaded") for n in range(10_000)))
    assert read(server, LlamaCpp, "all") == Status(State.READY)
    assert server.requests == ["/props", "/models"]


@pytest.mark.parametrize("lie", [None, 5, "text", {"data": "text"}, {"data": [[], 5, {}]}])
def test_lies_of_a_router_tell_of_no_model(server: ModelServer, lie: object) -> None:
    server.replies = {"props": json_reply(ROUTER), "models": json_reply(lie)}
    assert read(server, LlamaCpp) == Status(State.READY)
