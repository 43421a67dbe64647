"""Loads and restarts of models on other nodes: real NATS, nodes, hosts and backends."""

from __future__ import annotations

from functools import partial
from typing import Any

from ...support import Answer, eventually
from .conftest import MakeHost, MakeLocal, NatsServer, NodeClient

LOADED = {"loaded": ["m"], "message": "model loaded"}
RESTARTED = {"loaded": ["m"], "message": "model restarted"}


def load(node: NodeClient, model: str = "m", **fields: Any) -> Answer:
    """Load a model."""
    return node.client.request("POST", "/backend/load", {"model": model, **fields}, timeout=120)


def restart(node: NodeClient, model: str = "m", **fields: Any) -> Answer:
    """Restart a model."""
    return node.client.request("POST", "/backend/restart", {"model": model, **fields}, timeout=120)


def message_of(answer: Answer, status: int, type: str) -> str:
    """Check the status and the envelope of a failed start; return its message."""
    assert (answer.status, answer.json["error"]["type"]) == (status, type), answer.json
    assert answer.json["loaded"] == []
    assert answer.json["message"] == answer.json["error"]["message"]
    return str(answer.json["message"])


def test_any_node_loads_and_restarts_a_model_of_another(
    nats: NatsServer, make_host: MakeHost, make_local: MakeLocal
) -> None:
    """The answer names the node that knows the model, and every node knows the result at once."""
    a = make_local("a", nats.url)
    b = make_host("b", nats.url, {"m": "", "org/other model": "--no-status"})
    c = make_host("c", nats.url, {"x": ""})
    for node in (a, b, c):
        eventually(partial(node.lists, "a", "b", "c"))
    for node, model in ((a, "m"), (c, "org/other model")):
        answer = load(node, model)
        assert answer.json == {"loaded": [model], "message": "model loaded"}
        assert (answer.status, answer.headers["X-Monitor-Node"]) == (200, "b")
        assert node.client.monitor(model).headers["X-Monitor-Node"] == "b"
    assert b.host.started == ["m", "org/other model"]
    again = load(c)
    assert (again.status, again.json, again.headers["X-Monitor-Node"]) == (200, LOADED, "b")
    before = a.get("/backends?model=m").json["backends"][0]["pid"]
    answer = restart(c)
    assert (answer.status, answer.json) == (200, RESTARTED)
    assert answer.headers["X-Monitor-Node"] == "b"
    assert a.get("/backends?model=m").json["backends"][0]["pid"] != before
    assert b.host.started == ["m", "org/other model", "m"]
    assert a.client.shutdown("m").status == 200
    answer = restart(a)
    assert (answer.status, answer.json) == (200, RESTARTED)
    assert c.host.started == []
