"""TGI's server: answers of its documentation, and answers that lie."""

from __future__ import annotations

import pytest

from monitor_plugin import State, Status
from monitor_plugin.status_protocols.tgi import Tgi

from ..recorded_servers import ModelServer, Reply, text_reply
from .support import read, replay


@pytest.mark.parametrize(
    ("state", "status"),
    [
        ("ready", Status(State.READY, None, 0, 0)),
        ("busy", Status(State.BUSY, None, 4, 7)),
        ("failed", Status(State.ERROR)),
    ],
)
def test_documented_server(server: ModelServer, state: str, status: Status) -> None:
    replay(server, "tgi", state)
    assert read(server, Tgi) == status


@pytest.mark.parametrize(("waiting", "state"), [(0, State.READY), (1, State.BUSY)])
def test_server_is_full_when_requests_wait(server: ModelServer, waiting: int, state: State) -> None:
    text = f"tgi_batch_current_size 4\ntgi_queue_size {waiting}\n"
    server.replies = {"/health": Reply(), "/metrics": text_reply(text)}
    assert read(server, Tgi, busy_when="full").state == state


def test_figures_before_the_first_request_are_unknown(server: ModelServer) -> None:
    server.replies = {"/health": Reply(), "/metrics": text_reply("tgi_request_count 0")}
    assert read(server, Tgi) == Status(State.READY)


@pytest.mark.parametrize("lie", ["-1", "NaN", "+Inf", "1e300", "1.5", "one"])
def test_lies_are_unknown(server: ModelServer, lie: str) -> None:
    text = f"tgi_batch_current_size {lie}\ntgi_queue_size {lie}\n"
    server.replies = {"/health": Reply(), "/metrics": text_reply(text)}
    assert read(server, Tgi) == Status(State.READY)


def test_server_of_embeddings_is_none(server: ModelServer) -> None:
    """Its `/info` is similar."""
    replay(server, "tgi", "ready")
    info = server.replies["info"]
    assert Tgi("tiny", "any").matches(server.get())
    body = info.body.replace(b"max_total_tokens", b"max_batch_tokens")
    server.replies["info"] = info._replace(body=body)
    assert not Tgi("tiny", "any").matches(server.get())
