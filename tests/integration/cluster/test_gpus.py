"""The GPUs of all nodes, also where a node is of an older version, or invalid."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from monitor_plugin import Monitor
from monitor_plugin.api.results import Response
from monitor_plugin.cluster.transport.messages import Reply, Request, pack

from ...gpus import GpuFile, make_gpu
from ...support import Client, eventually
from .conftest import MakeRogue, NatsServer
from .rogue import announce_rogue, reply_with


@pytest.fixture
def make_node_with_gpus(
    nats: NatsServer, make_monitor: Callable[..., Monitor], tmp_path: Path
) -> Callable[..., Monitor]:
    """Starts nodes, each with one GPU of as many bytes as a test wants."""

    def make(name: str, total: int) -> Monitor:
        file = GpuFile(tmp_path / f"{name}.json")
        file.write(make_gpu({}, total=total))
        return make_monitor([file], gpu="off", cluster=nats.url, node=name)

    return make


def get(monitor: Monitor, path: str) -> Any:
    answer = Client(monitor.url).request("GET", path)
    assert answer.status == 200, answer.body
    return answer.json


def test_any_node_lists_the_gpus_of_all_nodes(make_node_with_gpus: Callable[..., Monitor]) -> None:
    a, b = make_node_with_gpus("a", 1000), make_node_with_gpus("b", 2000)

    def listed(monitor: Monitor, path: str) -> list[tuple[str, int]]:
        return [(each["node"], each["total"]) for each in get(monitor, path)["gpus"]]

    for monitor in a, b:
        for path in "/gpus", "/backends", "/v1/backends":
            eventually(lambda m=monitor, p=path: listed(m, p) == [("a", 1000), ("b", 2000)])  # type: ignore[misc]
        assert listed(monitor, "/gpus?node=b") == [("b", 2000)]
    answer = Client(a.url).request("GET", "/gpus")
    assert answer.headers["X-Monitor-Node"] == "a, b"
    assert answer.json["nodes"] == [
        {"node": "a", "url": a.url, "error": None},
        {"node": "b", "url": b.url, "error": None},
    ]
    assert answer.json["cluster_error"] is None
    assert Client(a.url).request("GET", "/gpus?node=nowhere").status == 400
    assert Client(a.url).request("GET", "/gpus?node=no.*").status == 400


OLD = b'{"backends":[],"ended":[],"refused":[],"machine":null}'
GPU = b'{"backends":[],"ended":[],"machine":null,"gpus":[{"node":"%s","component":"%s"}]}'


@pytest.mark.parametrize(
    ("body", "words", "hides_backends"),
    [
        (OLD, "older version", False),
        (GPU % (b"rogue", b"vram:x"), None, False),
        (GPU % (b"a", b"vram:x"), "cannot be understood", True),
        (GPU % (b"rogue", b"\xff"), "cannot be understood", True),
        (b'{"backends":[],"ended":[],"machine":null,"gpus":[5]}', "cannot be understood", True),
        (b"[]", "cannot be understood", True),
    ],
    ids=["an older version", "good", "another's", "no UTF-8", "no GPU", "another form"],
)
def test_list_without_usable_gpus_hides_no_other(
    body: bytes,
    words: str | None,
    hides_backends: bool,
    nats: NatsServer,
    make_node_with_gpus: Callable[..., Monitor],
    make_rogue: MakeRogue,
) -> None:
    """A node of an older version is named; its backends are listed as before."""
    monitor = make_node_with_gpus("a", 1000)
    rogue = announce_rogue(make_rogue(nats.url), monitor)
    reply = pack(Reply("rogue", "1", answer=Response(200, body)))
    rogue.subscribe("monitor.read.node.rogue", reply_with(reply))
    answer = get(monitor, "/gpus")
    expected = ["a"] if words else ["a", "rogue"]
    assert [each["node"] for each in answer["gpus"]] == expected
    errors = {each["node"]: each["error"] for each in answer["nodes"]}
    assert errors["a"] is None
    assert errors["rogue"] is None if words is None else words in errors["rogue"]
    listed = get(monitor, "/backends")
    assert [each["node"] for each in listed["gpus"]] == expected
    assert [bool(each["error"]) for each in listed["nodes"]] == [False, hides_backends]


def test_older_node_lists_no_backend_for_a_list_of_gpus(
    nats: NatsServer, make_node_with_gpus: Callable[..., Monitor], make_rogue: MakeRogue
) -> None:
    """It does not know the field `gpus_only`, and gets a request for an empty page of backends."""
    monitor = make_node_with_gpus("a", 1000)
    rogue = announce_rogue(make_rogue(nats.url), monitor)
    reply = pack(Reply("rogue", "1", answer=Response(200, OLD)))
    rogue.subscribe("monitor.read.node.rogue", reply_with(reply))
    get(monitor, "/gpus")
    request = msgspec.msgpack.decode(rogue.received[-1].data, type=Request)
    assert request.operation == "backends"
    assert (request.fresh, request.limit, request.after_pid) == (False, 0, 0)


def test_openapi_description_of_a_cluster_has_the_nodes_of_gpus(
    make_node_with_gpus: Callable[..., Monitor],
) -> None:
    document = get(make_node_with_gpus("a", 1), "/openapi.json")
    assert "ClusterGpusAnswer" in json.dumps(document["paths"]["/gpus"])
