"""Any server with OpenAI's list of models."""

from __future__ import annotations

import pytest

from monitor_plugin import State, Status
from monitor_plugin.status_protocols.openai import OpenAi
from monitor_plugin.status_protocols.protocol import NoStatus

from ..recorded_servers import ModelServer, Reply, json_reply, recorded
from .support import read


@pytest.mark.parametrize("folder", ["llama.cpp", "vllm", "sglang", "tgi", "ollama"])
def test_server_with_a_model_is_ready(server: ModelServer, folder: str) -> None:
    server.replies = {"/v1/models": recorded(folder, "ready")["v1-models"]}
    assert read(server, OpenAi) == Status(State.READY)


@pytest.mark.parametrize("lie", [None, 5, [], {}, {"data": []}, {"data": "x"}, {"data": [5]}])
def test_server_without_a_model_is_not_initialized(server: ModelServer, lie: object) -> None:
    server.replies = {"/v1/models": json_reply(lie)}
    assert read(server, OpenAi) == Status(State.UNINITIALIZED)


@pytest.mark.parametrize(
    ("reply", "rpc_error"),
    [
        (json_reply({}, 401), "UNAUTHENTICATED"),
        (json_reply({}, 404), "UNIMPLEMENTED"),
        (json_reply({}, 503), "UNAVAILABLE"),
        (Reply(200, "text/html", b"<html>"), "INTERNAL"),
        (Reply(500, "text/html", b"<html>"), "INTERNAL"),
        (Reply(200, "application/json", b'{"data": ['), "INTERNAL"),
    ],
)
def test_other_answers_give_no_status(server: ModelServer, reply: Reply, rpc_error: str) -> None:
    server.replies = {"/v1/models": reply}
    with pytest.raises(NoStatus) as caught:
        read(server, OpenAi)
    assert caught.value.rpc_error == rpc_error


def test_answer_500_is_an_error(server: ModelServer) -> None:
    server.replies = {"/v1/models": json_reply({"error": {}}, 500)}
    assert read(server, OpenAi) == Status(State.ERROR)
