"""Servers of the Open Inference Protocol over HTTP."""

from __future__ import annotations

import pytest

from monitor_plugin import State, Status
from monitor_plugin.status_protocols.kserve_http import KserveHttp
from monitor_plugin.status_protocols.protocol import NoStatus

from ..recorded_servers import ModelServer, Reply, json_reply
from .support import read, replay


@pytest.mark.parametrize(
    ("state", "model", "status"),
    [
        ("ready", "tiny", State.READY),
        ("loading", "tiny", State.UNINITIALIZED),
        ("ready", "unknown", State.UNINITIALIZED),
    ],
)
def test_recorded_server(server: ModelServer, state: str, model: str, status: State) -> None:
    replay(server, "mlserver", state)
    assert read(server, KserveHttp, model) == Status(status)


@pytest.mark.parametrize(
    ("reply", "state"),
    [
        (Reply(), State.READY),
        (json_reply({"name": "a/b c", "ready": True}), State.READY),
        (json_reply({"name": "a/b c", "ready": False}), State.UNINITIALIZED),
        (Reply(400), State.UNINITIALIZED),
        (Reply(503), State.UNINITIALIZED),
        (json_reply({"error": "no such model"}, 404), State.UNINITIALIZED),
        (json_reply({"detail": "Not Found"}, 404), State.READY),
        (Reply(500), State.ERROR),
    ],
)
def test_state_is_that_of_the_model(server: ModelServer, reply: Reply, state: State) -> None:
    """The name of the model is encoded. A server that has no route of models tells for itself."""
    server.replies = {"/v2/health/ready": Reply(), "/v2/models/a%2Fb%20c/ready": reply}
    assert read(server, KserveHttp, "a/b c") == Status(state)


@pytest.mark.parametrize("status", [400, 500, 503])
def test_state_of_a_server_that_is_not_ready_needs_one_request(
    server: ModelServer, status: int
) -> None:
    server.replies = {"/v2/health/ready": Reply(status)}
    expected = State.ERROR if status == 500 else State.UNINITIALIZED
    assert read(server, KserveHttp) == Status(expected)
    assert server.requests == ["/v2/health/ready"]


@pytest.mark.parametrize("reply", [Reply(404), Reply(503, "text/html", b"<html>"), Reply(302)])
def test_other_answers_give_no_status(server: ModelServer, reply: Reply) -> None:
    server.replies = {"any-route": reply}
    with pytest.raises(NoStatus):
        read(server, KserveHttp)
