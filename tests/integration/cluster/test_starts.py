"""Loads and restarts of models on other nodes: real NATS, nodes, hosts and backends."""

from __future__ import annotations

import json
import logging
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from monitor_plugin import ModelNotLoaded, Monitor, hookimpl
from monitor_plugin.api.errors import error_response
from monitor_plugin.api.results import stopped_response
from monitor_plugin.cluster.transport.messages import (
    Announcement,
    Caller,
    Reply,
    Request,
    pack,
    unpack,
)

from ...support import Answer, eventually
from .conftest import MakeHost, MakeLocal, MakeNode, MakeRogue, NatsServer, NodeClient
from .rogue import Rogue, cluster_node, encode_request, reply_with

HOST = "tests.integration.cluster.starting_host"
LOADED = {"loaded": ["m"], "message": "model loaded"}
RESTARTED = {"loaded": ["m"], "message": "model restarted"}


def load(asked: NodeClient, model: str = "m", /, **fields: Any) -> Answer:
    """Load a model."""
    return asked.client.request("POST", "/backend/load", {"model": model, **fields}, timeout=120)


def restart(asked: NodeClient, model: str = "m", /, **fields: Any) -> Answer:
    """Restart a model."""
    return asked.client.request("POST", "/backend/restart", {"model": model, **fields}, timeout=120)


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


def test_a_model_is_started_on_the_node_that_is_asked_if_that_knows_it(
    nats: NatsServer, make_host: MakeHost, make_local: MakeLocal
) -> None:
    """If only other nodes know it, and several do, the client has to say which."""
    a, b = (make_host(name, nats.url, {"m": ""}) for name in "ab")
    c = make_local("c", nats.url)
    for node in (a, b, c):
        eventually(partial(node.lists, "a", "b", "c"))
    message = message_of(load(c), 400, "invalid_request")
    assert "the nodes a, b know model 'm'" in message
    assert "by node=NAME" in message
    assert "the nodes a, b" in message_of(restart(c), 400, "invalid_request")
    assert load(b).headers["X-Monitor-Node"] == "b"
    # A node that has the model is not asked to start it, nor is another one that knows it.
    for node in (a, c):
        assert load(node).headers["X-Monitor-Node"] == "b"
    assert (a.host.started, b.host.started) == ([], ["m"])
    assert load(c, node="a").headers["X-Monitor-Node"] == "a"
    assert (a.host.started, b.host.started) == (["m"], ["m"])
    in_query = ("POST", "/backend/load?node=b", {"model": "m"})
    assert c.client.request(*in_query).headers["X-Monitor-Node"] == "b"


def test_a_restart_is_done_on_every_node_that_has_the_model(
    nats: NatsServer, make_host: MakeHost, make_local: MakeLocal
) -> None:
    """A PID belongs to one node. If a node fails, the error says where the restart was done."""
    a, b = (make_host(name, nats.url, {"m": ""}) for name in "ab")
    c = make_local("c", nats.url)
    for node in (a, b, c):
        eventually(partial(node.lists, "a", "b", "c"))
    for node in (a, b):
        assert load(c, node=node.name).status == 200
    answer = restart(c)
    assert (answer.status, answer.json) == (200, RESTARTED)
    assert answer.headers["X-Monitor-Node"] == "a, b"
    assert (a.host.started, b.host.started) == (["m"] * 2, ["m"] * 2)
    (pid,) = [each["pid"] for each in c.get("/backends?node=b").json["backends"]]
    message = message_of(restart(c, pid=pid), 400, "invalid_request")
    assert "on the nodes a, b" in message
    assert restart(c, pid=pid, node="b").status == 200
    assert (a.host.started, b.host.started) == (["m"] * 2, ["m"] * 3)
    b.host.programs["m"] = "refuse"
    message = message_of(restart(c), 500, "start_failed")
    assert "node 'b': " in message
    assert "this program is not to be started" in message
    assert "it was restarted on a" in message


def test_a_model_that_no_node_knows_is_not_started(
    nats: NatsServer, make_host: MakeHost, make_local: MakeLocal
) -> None:
    """The error has the fields of a failed load. An unknown node is named, with those known."""
    a, b = make_host("a", nats.url, {"x": ""}), make_local("b", nats.url)
    eventually(lambda: a.lists("a", "b") and b.lists("a", "b"))
    for ask in (load, restart):
        for node in (a, b):
            message = message_of(ask(node), 500, "start_failed")
            assert "no host of any node knows how to start it" in message
            assert ask(node, node="b").json["loaded"] == []
        assert "there is no node 'z'" in message_of(ask(a, node="z"), 400, "invalid_request")
        message_of(ask(a, node="*"), 400, "invalid_request")
    assert a.host.started == []


class Unlisted:
    """A host that starts models, and does not list them."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    @hookimpl
    def monitor_start_model(self, model: str) -> None:
        """Note the model, and know none."""
        self.asked.append(model)


def test_a_host_that_lists_no_models_is_asked_if_no_other_one_knows_the_model(
    nats: NatsServer, make_host: MakeHost, make_monitor: Callable[..., Monitor]
) -> None:
    """Such a host may know the model. A host that lists the model comes first."""
    unlisted = Unlisted()
    a = NodeClient("a", make_monitor(node="a", cluster=nats.url, plugins=[unlisted]).url)
    b = make_host("b", nats.url, {"m": ""})
    eventually(lambda: a.lists("a", "b") and b.lists("a", "b"))
    for node in (a, b):
        message = message_of(load(node, "other"), 500, "start_failed")
        assert "no host of this monitor knows how to start it" in message
    assert unlisted.asked == ["other", "other"]
    assert load(a).headers["X-Monitor-Node"] == "b"
    assert unlisted.asked == ["other", "other"]


def test_only_the_client_gets_the_last_output_of_a_failed_start(
    nats: NatsServer,
    make_host: MakeHost,
    make_node: MakeNode,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Both nodes audit the start. No audit and no other log has a line of the program."""
    caplog.set_level(logging.DEBUG)
    b = make_host("b", nats.url, {"m": "die", "fine": ""})
    edge = make_node("edge", nats.url, token="the-edge-token")
    sent = {"Authorization": "Bearer the-edge-token"}
    eventually(lambda: b.lists("b", "edge"))

    def ask(path: str, **fields: Any) -> Answer:
        return edge.client.request("POST", path, fields, sent, timeout=120)

    eventually(lambda: ask("/backend/load", model="fine").status == 200)
    assert ask("/v1/backend/restart", model="fine", force=True).status == 200
    answer = ask("/backend/load", model="m")
    message = message_of(answer, 500, "start_failed")
    assert "the secret last words" in message
    for log in (caplog.text, edge.log):
        assert "the secret last words" not in log
    audit = [each for each in caplog.records if each.name == "monitor_plugin.audit"]
    lines = [json.loads(each.getMessage()) for each in audit]
    found = [(each["what"], each["model"], each["outcome"]) for each in lines]
    assert found == [
        ("POST /backend/load", "fine", "loaded"),
        ("POST /backend/restart", "fine", "restarted"),
        ("POST /backend/load", "m", "start_failed"),
    ]
    assert {(each["who"], each["from"]) for each in lines} == {("token", "node edge (127.0.0.1)")}
    assert [each.get("force") for each in lines] == [None, True, None]


def test_a_slow_start_has_a_known_outcome_and_holds_up_nothing_else(
    nats: NatsServer, make_host: MakeHost, make_local: MakeLocal
) -> None:
    """The starting node says every second that it works on it, so a short timeout is enough.

    Meanwhile it stops other models and answers readings; starts beyond its limit are refused.
    """
    slow = ["m1", "m2", "m3", "m4"]
    programs = {**dict.fromkeys([*slow, "more", "other"], "")}
    b = make_host("b", nats.url, programs, http_threads=16, start_timeout_seconds=120.0)
    a = make_local("a", nats.url, cluster_timeout_seconds=3.0, http_threads=64)
    eventually(lambda: a.lists("a", "b") and b.lists("a", "b"))
    assert load(a, "other").status == 200
    b.host.hold.clear()
    with ThreadPoolExecutor(len(slow)) as pool:
        starts = [pool.submit(load, a, model) for model in slow]
        try:
            operations = b.monitor._services.operations
            eventually(lambda: sorted(operations.starting()) == slow)
            refused = load(a, "more")
            message_of(refused, 503, "too_many_starts")
            assert refused.headers["Retry-After"] == "5"
            for _ in range(10):
                assert a.client.monitor("other").status == 200
                assert a.lists("a", "b")
            assert a.client.shutdown("other").status == 200
            wait(starts, timeout=4.0)  # longer than the cluster's timeout
            assert not any(each.done() for each in starts)
        finally:
            b.host.hold.set()
        assert [each.result().status for each in starts] == [200] * len(slow)
    assert sorted(b.host.started) == sorted(["other", *slow])


def test_starts_of_several_nodes_share_one_start(
    nats: NatsServer, make_host: MakeHost, make_local: MakeLocal
) -> None:
    """A node that is asked during a start waits for it, also if it knows the model itself."""
    b = make_host("b", nats.url, {"m": ""})
    knows = make_host("knows", nats.url, {"m": ""})
    others = [make_local(name, nats.url) for name in "ac"]
    for node in (b, knows, *others):
        eventually(partial(node.lists, "a", "b", "c", "knows"))
    b.host.hold.clear()
    with ThreadPoolExecutor(5) as pool:
        first = pool.submit(load, others[0], node="b")
        operations = b.monitor._services.operations
        eventually(lambda: operations.is_starting("m"))
        more = [pool.submit(load, each) for each in (knows, b, *others)]
        eventually(lambda: operations._callers["m"] == 5)
        b.host.hold.set()
        for each in (first, *more):
            answer = each.result()
            assert (answer.status, answer.json) == (200, LOADED)
            assert answer.headers["X-Monitor-Node"] == "b"
    assert (b.host.started, knows.host.started) == (["m"], [])


def test_only_one_of_several_nodes_starts_a_model_that_they_know(
    nats: NatsServer, make_host: MakeHost
) -> None:
    """Both nodes get a load before either has begun a start; this is tried many times."""
    nodes = [make_host(name, nats.url, {"m": "--no-status"}) for name in "abc"]
    for node in nodes:
        eventually(partial(node.lists, "a", "b", "c"))
    with ThreadPoolExecutor(len(nodes)) as pool:
        for number in range(1, 6):
            answers = list(pool.map(load, nodes))
            assert [each.json for each in answers] == [LOADED] * len(nodes)
            assert len({each.headers["X-Monitor-Node"] for each in answers}) == 1
            assert sum(len(node.host.started) for node in nodes) == number
            assert nodes[0].client.shutdown("m").status == 200


def test_a_node_waits_for_another_that_has_not_decided_whether_it_starts_a_model(
    nats: NatsServer, make_host: MakeHost, make_rogue: MakeRogue
) -> None:
    """Node b asked a before a was asked itself, and so does not know that a would start it.

    Both wait for the offer of a third node, which never answers.
    """
    a, b = (make_host(name, nats.url, {"m": ""}) for name in "ab")
    rogue = make_rogue(nats.url)
    rogue.subscribe("monitor.shutdown.>")
    announcement = pack(Announcement("rogue", "1", 1, None, []))
    parts = {each.name: cluster_node(each.monitor) for each in (a, b)}

    def are_known() -> bool:
        rogue.publish("monitor.nodes.rogue", announcement)
        return all(len(each.directory) == 2 for each in parts.values())

    eventually(are_known)

    def waits(name: str) -> bool:
        is_claimed = "m" in parts[name].service._local_node._claims
        return is_claimed and len(parts[name].link.requests) == 1

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(load, b)
        eventually(partial(waits, "b"))
        second = pool.submit(load, a)
        for started in (first, second):
            answer = started.result()
            assert (answer.json, answer.headers["X-Monitor-Node"]) == (LOADED, "b")
    assert (a.host.started, b.host.started) == ([], ["m"])


@pytest.mark.parametrize("force", [False, True], ids=["waiting", "by force"])
def test_another_node_stops_a_model_that_is_being_started(
    nats: NatsServer, make_host: MakeHost, make_local: MakeLocal, force: bool
) -> None:
    """The shutdown waits for the start that came before; by force, it ends the start."""
    b = make_host("b", nats.url, {"m": ""}, hook_timeout_seconds=2.0)
    a, c = (make_local(name, nats.url) for name in "ac")
    for node in (a, b, c):
        eventually(partial(node.lists, "a", "b", "c"))
    link = cluster_node(b.monitor).link
    before = link.subscription_count
    b.host.hold.clear()
    with ThreadPoolExecutor(2) as pool:
        try:
            start = pool.submit(load, a)
            eventually(lambda: b.host.asked and link.subscription_count == before + 1)
            stop = pool.submit(c.client.shutdown, "m", force=force)
            if force:
                message = message_of(start.result(), 500, "start_failed")
                assert "a shutdown by force" in message
            else:
                assert not wait([stop], timeout=1.0).done
        finally:
            b.host.hold.set()
        if force:  # what the host does is not undone
            eventually(lambda: b.reads("m"))
        else:
            assert start.result().status == 200
            assert stop.result().json == {"message": "model stopped"}
            assert c.client.monitor("m").json["error"]["type"] == "model_not_loaded"
            eventually(lambda: link.subscription_count == before)


def test_a_node_without_nats_starts_its_own_models(nats: NatsServer, make_host: MakeHost) -> None:
    """A model that another node had when it was last heard of is started by name of the node only.

    Whether another node knows a model that this one does not know is unknown.
    """
    a = make_host("a", nats.url, {"m": "", "mine": ""})
    b = make_host("b", nats.url, {"m": ""})
    eventually(lambda: a.lists("a", "b") and b.lists("a", "b"))
    assert load(b).headers["X-Monitor-Node"] == "b"
    assert a.client.monitor("m").status == 200
    nats.kill()
    eventually(lambda: not cluster_node(a.monitor).link.connected)
    assert load(a, "mine").json["loaded"] == ["mine"]
    for ask in (load, restart):
        message = message_of(ask(a), 504, "node_unreachable")
        assert "node 'b' cannot be asked" in message
        assert "node=NAME" in message
        assert "'b'" in message_of(ask(a, "unknown"), 504, "node_unreachable")
        message_of(ask(a, node="b"), 504, "node_unreachable")
    assert a.host.started == ["mine"]
    assert load(a, node="a").json == LOADED
    alone = make_host("alone", nats.url, {"x": ""})
    assert load(alone, "x").json["loaded"] == ["x"]
    assert "not connected to NATS" in message_of(load(alone), 504, "node_unreachable")


def test_a_node_that_dies_during_a_start_has_an_unknown_outcome(
    nats: NatsServer, make_node: MakeNode, make_local: MakeLocal, tmp_path: Path
) -> None:
    """The error names the node and what to ask. Once the node is back, a load starts the model."""
    starts = tmp_path / "starts"
    host: dict[str, Any] = {"program": HOST, "environment": {"STARTS": str(starts)}}
    a = make_local("a", nats.url, cluster_timeout_seconds=3.0)
    b = make_node("b", nats.url, "m:--hang-status", **host)
    eventually(lambda: a.lists("a", "b"))
    with ThreadPoolExecutor(1) as pool:
        start = pool.submit(load, a)
        eventually(lambda: len(a.get("/backends?fresh=false").json["backends"]) == 1)
        b.signal(signal.SIGKILL)
        message = message_of(start.result(60), 504, "outcome_unknown")
    for part in ("'b' was told to start model 'm'", "may have started it or not", "node=b"):
        assert part in message
    # The peer had the model: it is not started elsewhere, nor again, without the client's word.
    refused = load(a)
    assert "'b'" in message_of(refused, 504, "node_unreachable")
    assert starts.read_text() == "m\n"
    make_node("b", nats.url, "m:", **host)
    eventually(lambda: load(a).status == 200)
    assert starts.read_text() == "m\nm\n"


def ask_as_rogue(rogue: Rogue, subject: str, data: bytes, node: str = "rogue") -> Reply:
    """Send a request as a node, and return the reply that is not of kind `working`."""
    before = len(rogue.received)
    rogue.publish(subject, data, f"monitor.reply.{node}.1.2")

    def find() -> Reply | None:
        replies = [unpack(each.data, Reply) for each in rogue.received[before:]]
        return next((each for each in replies if each and each.kind != "working"), None)

    reply = eventually(find)
    assert reply is not None
    return reply


def test_an_offer_starts_a_model_once_and_only_for_its_requester(
    nats: NatsServer, make_host: MakeHost, make_rogue: MakeRogue
) -> None:
    """A request that comes late or twice, or without an offer of its kind, starts nothing."""
    b = make_host("b", nats.url, {"m": "", "n": ""})
    cluster = cluster_node(b.monitor)
    eventually(lambda: cluster.link.subscription_count == 5)
    now = f"monitor.shutdown.now.b.{cluster.service._local_node.run}"
    rogue = make_rogue(nats.url)
    rogue.subscribe("monitor.reply.>")

    def offer(action: str | None) -> Reply:
        data = encode_request("offer", "m", action=action)
        return ask_as_rogue(rogue, "monitor.shutdown.node.b", data)

    def start(operation: str, model: str = "m", **more: Any) -> str | None:
        node = more.setdefault("node", "rogue")
        answer = ask_as_rogue(rogue, now, encode_request(operation, model, **more), node).answer
        assert answer is not None
        return answer.outcome

    made = offer("load")
    assert (made.kind, made.state) == ("offer", "startable")
    key = made.offer
    assert key
    for refused in (
        start("load"),
        start("load", offer="0123456789abcdef"),
        start("load", offer=key, node="other"),
        start("load", "n", offer=key),
        start("restart", offer=key),
        start("shutdown", offer=key),
    ):
        assert refused == "node_unreachable"
    assert b.host.started == []
    assert start("load", offer=key) == "loaded"
    assert start("load", offer=key) == "node_unreachable"
    assert offer("restart").state == "loaded"
    # Who may only publish on the subject of one model can stop it, and not restart it.
    rogue.publish(
        "monitor.shutdown.model.m",
        encode_request("offer", "m", action="restart"),
        "monitor.reply.rogue.1.3",
    )
    assert offer(None).kind == "offer"
    assert not [each for each in rogue.received if ".1.3." in each.subject]
    # The offer of a shutdown is not one of a restart.
    assert start("restart", offer=offer(None).offer) == "node_unreachable"
    assert b.host.started == ["m"]


def test_starts_are_served_on_the_subjects_of_shutdowns_only(
    nats: NatsServer, make_host: MakeHost, make_rogue: MakeRogue
) -> None:
    """NATS' permissions are those of subjects, so that no reader can start a model."""
    b = make_host("b", nats.url, {"m": ""})
    cluster = cluster_node(b.monitor)
    eventually(lambda: cluster.link.subscription_count == 5)
    now = f"monitor.shutdown.now.b.{cluster.service._local_node.run}"
    rogue = make_rogue(nats.url)
    rogue.subscribe("monitor.reply.>")
    to = "monitor.reply.rogue.1.2"
    reader = Caller("rogue", "dashboard", "read", "here")
    for operation in ("load", "restart"):
        for subject in ("monitor.read.node.b", "monitor.shutdown.node.b"):
            rogue.publish(subject, encode_request(operation, "m"), to)
        offer = Request("offer", Caller("rogue", "ops", "admin", "here"), "m", action=operation)
        rogue.publish("monitor.read.node.b", pack(offer), to)
        rogue.publish("monitor.shutdown.node.b", pack(replace(offer, caller=reader)), to)
        rogue.publish(now, pack(Request(operation, reader, "m")), to)
    end = encode_request("offer", "m", action="load")
    rogue.publish("monitor.shutdown.node.b", end, "monitor.reply.rogue.1.end")
    last = "monitor.reply.rogue.1.end.b"
    eventually(lambda: last in [each.subject for each in rogue.received])
    assert {each.subject for each in rogue.received} == {last}
    assert b.host.started == []


NOT_LOADED = pack(Reply("rogue", "1", answer=error_response(ModelNotLoaded("m"))))
STOP_OFFER = pack(Reply("rogue", "1", "offer", offer="key"))


@pytest.mark.parametrize(
    ("reply", "has_model"),
    [(NOT_LOADED, False), (STOP_OFFER, True)],
    ids=["without the model", "with the model"],
)
def test_an_older_peer_starts_nothing_and_is_named(
    nats: NatsServer, make_host: MakeHost, make_rogue: MakeRogue, reply: bytes, has_model: bool
) -> None:
    """It takes the request for one of a shutdown, and offers that, which is not accepted.

    A model that it does not have is started on another node.
    """
    a = make_host("a", nats.url, {"m": "", "other": ""})
    rogue = make_rogue(nats.url)
    rogue.subscribe("monitor.shutdown.node.rogue", reply_with(reply))
    rogue.subscribe("monitor.shutdown.now.rogue.1")
    models = ["m"] if has_model else []
    announcement = pack(Announcement("rogue", "1", 1, None, models))
    directory = cluster_node(a.monitor).directory

    def is_known() -> bool:
        rogue.publish("monitor.nodes.rogue", announcement)
        return directory.get("rogue") is not None

    eventually(is_known)
    words = "node 'rogue' runs an older version of monitor-plugin, which starts no models"
    assert words in message_of(load(a, node="rogue"), 504, "node_unreachable")
    assert words in message_of(load(a, "unknown"), 504, "node_unreachable")
    if has_model:
        message = message_of(restart(a), 504, "node_unreachable")
        assert "say which, by node=NAME" in message
        assert a.host.started == []
        assert load(a, node="a").status == 200
    else:
        assert load(a).status == 200
    assert a.host.started == ["m"]
    assert not [each for each in rogue.received if "shutdown.now" in each.subject]


@pytest.mark.parametrize("what", ["nonsense", "a success of another kind", "silence"])
def test_a_start_without_a_valid_answer_has_an_unknown_outcome(
    what: str, nats: NatsServer, make_local: MakeLocal, make_rogue: MakeRogue
) -> None:
    """The error names the node, and a retry of the client does not start the model here."""
    a = make_local("a", nats.url, cluster_timeout_seconds=3.0)
    rogue = make_rogue(nats.url)
    offer = pack(Reply("rogue", "1", "offer", offer="key", state="startable"))
    rogue.subscribe("monitor.shutdown.node.rogue", reply_with(offer))
    answers = {
        "nonsense": [pack(Reply("rogue", "1", "dance"))],
        "a success of another kind": [
            pack(Reply("rogue", "1", answer=stopped_response(False, None)))
        ],
        "silence": [],
    }[what]
    rogue.subscribe(
        "monitor.shutdown.now.rogue.1",
        lambda message: [(f"{message.reply}.rogue", each) for each in answers],
    )

    def is_known() -> bool:
        rogue.publish("monitor.nodes.rogue", pack(Announcement("rogue", "1", 1, None, [])))
        return a.lists("a") and len(a.get("/backends?fresh=false").json["nodes"]) == 2

    eventually(is_known)
    message = message_of(load(a), 504, "outcome_unknown")
    assert "node 'rogue' was told to start model 'm'" in message
    accepted = [each for each in rogue.received if "shutdown.now" in each.subject]
    assert len(accepted) == 1
