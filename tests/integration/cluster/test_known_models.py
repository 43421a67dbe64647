"""The models that hosts can run, in the lists of a cluster."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

from monitor_plugin import Monitor, hookimpl
from monitor_plugin.api.results import Response
from monitor_plugin.cluster.transport.messages import Reply, pack

from ...support import Answer, Client, Spawner, eventually, load_sleeper
from .conftest import MakeHost, MakeLocal, MakeRogue, NatsServer, NodeClient
from .rogue import announce_rogue, reply_with


def models_of(node: NodeClient, path: str = "/backends") -> list[tuple[str, str, str]]:
    """Return the node, the name and the state of each listed model of which no backend runs."""
    listed = node.get(path).json["models"]
    return [(each["node"], each["model"], each["state"]) for each in listed]


def test_lists_have_the_models_of_every_node_without_a_backend(
    nats: NatsServer, make_host: MakeHost, make_local: MakeLocal
) -> None:
    """A model that runs on one node is listed for another node that merely knows it."""
    a = make_host("a", nats.url, {"both": "", "mine": ""})
    b = make_host("b", nats.url, {"both": "", "other": ""})
    c = make_local("c", nats.url, "both:")
    for node in (a, c):
        eventually(partial(node.lists, "a", "b", "c"))
    expected = [("a", "both"), ("a", "mine"), ("b", "both"), ("b", "other")]
    for node in (a, b, c):
        assert models_of(node) == [(*each, "stopped") for each in expected]
    assert models_of(c, "/backends?node=b&model=other") == [("b", "other", "stopped")]
    item = c.get("/backends?node=b&model=other").json["models"][0]
    assert item == {
        "model": "other", "state": "stopped", "detail": None, "can_start": True, "node": "b"
    }  # fmt: skip
    b.monitor.start_model("both")
    assert ("b", "both", "running") not in models_of(a)
    assert ("a", "both", "stopped") in models_of(b)


def test_each_model_without_a_backend_is_on_one_page(
    nats: NatsServer, make_host: MakeHost, make_local: MakeLocal
) -> None:
    """The models of a node are on the first page that has the node."""
    a = make_host("a", nats.url, {"x": "", "y": "", "z": "--no-status"})
    a.monitor.start_model("z")
    backends = ["m1", "m2", "m3"]
    b = make_local("b", nats.url, *backends)
    eventually(partial(b.lists, "a", "b"))
    found: list[tuple[str, str, str]] = []
    pages = 0
    after: str | None = ""
    while after is not None:
        answer = b.get(f"/backends?limit=2&after={after}").json
        found += [(each["node"], each["model"], each["state"]) for each in answer["models"]]
        after = answer["next"]
        pages += 1
    assert pages > 1
    assert sorted(found) == [("a", "x", "stopped"), ("a", "y", "stopped")]


def test_lists_of_an_older_peer_have_no_models(
    nats: NatsServer, make_host: MakeHost, make_rogue: MakeRogue
) -> None:
    """Lists without `models`, and ends without `id` and `last_output`, are merged."""
    a = make_host("a", nats.url, {"x": ""})
    end = {
        "model": "m", "pid": 1, "created_at": "2026-01-01T00:00:00Z", "cause": "exited",
        "ended_at": "2026-01-02T00:00:00Z", "left_behind": None, "node": "rogue",
    }  # fmt: skip
    old = {"backends": [], "ended": [end], "machine": None, "refused": [], "gpus": []}
    body = json.dumps(old).encode()
    reply = pack(Reply("rogue", "1", answer=Response(200, body)))
    rogue = make_rogue(nats.url)
    rogue.subscribe("monitor.read.node.rogue", reply_with(reply))
    announce_rogue(rogue, a.monitor)
    listed = a.get("/backends").json
    assert [each["error"] for each in listed["nodes"]] == [None, None]
    assert [each["node"] for each in listed["ended"]] == ["rogue"]
    assert [each["model"] for each in listed["models"]] == ["x"]


def test_list_with_models_of_another_node_is_refused(
    nats: NatsServer, make_host: MakeHost, make_rogue: MakeRogue
) -> None:
    """No peer can list models in the name of another node."""
    a = make_host("a", nats.url, {"x": ""})
    item = {"model": "m", "state": "stopped", "node": "a"}
    body = json.dumps({"backends": [], "ended": [], "machine": None, "models": [item]}).encode()
    reply = pack(Reply("rogue", "1", answer=Response(200, body)))
    rogue = make_rogue(nats.url)
    rogue.subscribe("monitor.read.node.rogue", reply_with(reply))
    announce_rogue(rogue, a.monitor)
    listed = a.get("/backends").json
    assert "cannot be understood" in listed["nodes"][1]["error"]
    assert [each["model"] for each in listed["models"]] == ["x"]


class LastWords:
    """A host that keeps the logs of its programs."""

    def __init__(self, words: str) -> None:
        self._words = words

    @hookimpl
    def monitor_read_log(self) -> bytes:
        """Return the same end for each log."""
        return self._words.encode()


def test_only_admins_get_the_last_output_of_any_node(
    nats: NatsServer, make_monitor: Callable[..., Monitor], spawner: Spawner, tmp_path: Path
) -> None:
    """The role counts for each request, so that no list for an admin is given to a reader."""
    words = "the last words of node "
    (tmp_path / "tokens").write_text("read:dashboard:reader-secret\nadmin:ops:admin-secret\n")
    urls = {}
    for name in ("a", "b"):
        settings = {"cluster": nats.url, "token_file": str(tmp_path / "tokens")}
        monitor = make_monitor(node=name, plugins=[LastWords(words + name)], **settings)
        urls[name] = monitor.url
        sleeper = load_sleeper(monitor, spawner)
        sleeper.kill()
        sleeper.wait()

    def get(secret: str, path: str) -> Answer:
        headers = {"Authorization": f"Bearer {secret}"}
        answer = Client(urls["a"]).request("GET", path, None, headers)
        if secret == "reader-secret":
            assert words not in answer.body.decode(), path
        return answer

    def list_as(secret: str, query: str) -> list[tuple[str, str | None]]:
        ended = get(secret, f"/backends{query}").json["ended"]
        return sorted((each["node"], each["last_output"]) for each in ended)

    eventually(
        lambda: [each for _, each in list_as("admin-secret", "")] == [words + "a", words + "b"]
    )
    for query in ("", "?fresh=false", "?limit=5", "?node=b"):
        nodes = ["b"] if "node" in query else ["a", "b"]
        for _ in range(2):
            assert list_as("admin-secret", query) == [(name, words + name) for name in nodes]
            assert list_as("reader-secret", query) == [(name, None) for name in nodes]
    for path in ("/events", "/backend/log?model=m", "/backend/log?model=m&node=b"):
        get("reader-secret", path)
