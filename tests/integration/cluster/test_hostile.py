"""Messages over NATS that no node should send: invalid, too many, or in another node's name."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from monitor_plugin import InvalidBackend, Monitor
from monitor_plugin.api.errors import error_response
from monitor_plugin.api.results import Response
from monitor_plugin.cluster.transport.messages import Announcement, Reply, pack
from monitor_plugin.domain.errors import TooManyShutdowns
from monitor_plugin.domain.models import Backend, Reading, Status

from ...support import Client, Spawner, eventually, is_running, load_sleeper, register
from .conftest import MakeLocal, MakeRogue, NatsServer
from .rogue import announce_rogue, cluster_node, encode_request, reply_with

pytestmark = [pytest.mark.once, pytest.mark.slow]

# Invalid replies to a request.
INVALID: dict[str, bytes] = {
    "nothing": b"",
    "bytes": bytes(range(256)),
    "another message": pack(Announcement("rogue", "1", 1)),
    "no answer": pack(Reply("rogue", "1")),
    "an unknown kind": pack(Reply("rogue", "1", "dance")),
    "an offer without a key": pack(Reply("rogue", "1", "offer")),
    "no JSON": pack(Reply("rogue", "1", answer=Response(200, b"{"))),
    "JSON of another form": pack(Reply("rogue", "1", answer=Response(200, b"[1]"))),
    "an odd status": pack(Reply("rogue", "1", answer=Response(99999, b"{}"))),
    "an error without words": pack(Reply("rogue", "1", answer=Response(500, b"{}"))),
    "what answers nothing": pack(Reply("rogue", "1", answer=Response(200, b"{}"))),
    "another kind": pack(Reply("rogue", "1", "loaded")),
    "another's name": pack(Reply("a", "1", answer=Response(200, b'{"state":2}'))),
}


def test_invalid_replies_become_errors_that_name_the_node(
    nats: NatsServer,
    make_monitor: Callable[..., Monitor],
    make_rogue: MakeRogue,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The other nodes' models are answered as before."""
    monitor = make_monitor(cluster=nats.url, node="a", cluster_timeout_seconds=1.0)
    client = Client(monitor.url)
    rogue = announce_rogue(make_rogue(nats.url), monitor, "http://rogue:99999/")
    reply = {"data": b""}
    for subject in ("read.model.m", "read.node.rogue", "shutdown.model.m", "shutdown.node.rogue"):
        rogue.subscribe(f"monitor.{subject}", lambda message: reply_with(reply["data"])(message))
    for what, data in INVALID.items():
        reply["data"] = data
        for answer in (client.monitor("m"), client.shutdown("m")):
            assert (answer.status, answer.json["error"]["type"]) == (504, "node_unreachable"), what
            assert "rogue" in answer.json["error"]["message"]
        listed = client.request("GET", "/backends").json
        assert {each["node"]: bool(each["error"]) for each in listed["nodes"]} == {
            "a": False,
            "rogue": True,
        }, what
    assert client.request("GET", "/cluster/targets").json[0]["labels"] == {"node": "a"}
    assert not [each for each in caplog.records if each.exc_info], "something was raised"


_ITEM = b'{"model":"m","pid":1,"node":"rogue","created_at":"2026-01-01T00:00:00Z",'
_END = _ITEM + b'"cause":"exited","ended_at":"2026-01-01T00:00:00%s"}'
_HERE = _ITEM + b'"uptime_seconds":1.0%s}'
_REFUSED = b'{"model":"m","pid":1,"node":"%s","address":"a","reason":"no"%s}'


@pytest.mark.parametrize(
    ("backends", "ended", "refused", "good"),
    [
        (_HERE % b"", _END % b"Z", _REFUSED % (b"rogue", b""), True),
        (_HERE % b"", _END % b"", b"", False),
        (_HERE % b',"address":"\xff"', b"", b"", False),
        (_HERE.replace(b'"model":"m",', b"") % b"", b"", b"", False),
        (_HERE.replace(b"rogue", b"a") % b"", b"", b"", False),
        (_HERE % b"", b"", _REFUSED % (b"a", b""), False),
        (_HERE % b"", b"", _REFUSED % (b"rogue", b',"pid":"1"'), False),
    ],
    ids=[
        *("good", "a time without a zone", "no UTF-8", "without a model", "another's"),
        *("another's refusal", "a refusal without a PID"),
    ],
)
def test_invalid_list_of_one_node_hides_no_other(
    backends: bytes,
    ended: bytes,
    refused: bytes,
    good: bool,
    nats: NatsServer,
    make_monitor: Callable[..., Monitor],
    make_rogue: MakeRogue,
    spawner: Spawner,
) -> None:
    """A node's list is used completely or not at all, and the others' lists are there."""
    monitor = make_monitor(cluster=nats.url, node="a")
    for process in (sleeper := spawner.sleeper()), (dies := spawner.sleeper()):
        register(monitor, process.pid, "here", f"unix:/{process.pid}")
    dies.kill()
    eventually(lambda: len(monitor.backends()) == 1)
    rogue = announce_rogue(make_rogue(nats.url), monitor)
    with pytest.raises(InvalidBackend):
        register(monitor, sleeper.pid, "here", "nowhere")
    lists = (backends, ended, refused)
    body = b'{"backends":[%s],"ended":[%s],"refused":[%s],"machine":null}' % lists
    reply = pack(Reply("rogue", "1", answer=Response(200, body)))
    rogue.subscribe("monitor.read.node.rogue", reply_with(reply))
    answer = Client(monitor.url).request("GET", "/backends")
    assert answer.status == 200
    listed = answer.json
    assert [each["pid"] for each in listed["backends"]] == [sleeper.pid, *([1] if good else [])]
    assert sorted(each["pid"] for each in listed["ended"]) == [*([1] if good else []), dies.pid]
    refusals = [(each["node"], each["pid"]) for each in listed["refused"]]
    assert refusals == [("a", sleeper.pid), *([("rogue", 1)] if good else [])]
    assert [bool(each["error"]) for each in listed["nodes"]] == [False, not good]


def test_local_stop_is_reported_beside_an_invalid_reply(
    nats: NatsServer,
    make_monitor: Callable[..., Monitor],
    make_rogue: MakeRogue,
    spawner: Spawner,
) -> None:
    """The error names the other node, and says that the model was stopped here."""
    monitor = make_monitor(cluster=nats.url, node="a")
    sleeper = load_sleeper(monitor, spawner)
    rogue = announce_rogue(make_rogue(nats.url), monitor)
    reply = pack(Reply("rogue", "1", answer=Response(200, b"{}")))
    rogue.subscribe("monitor.shutdown.model.m", reply_with(reply))
    answer = Client(monitor.url).shutdown("m")
    assert (answer.status, answer.json["error"]["type"]) == (504, "node_unreachable")
    assert "it was stopped on a" in answer.json["error"]["message"]
    assert not is_running(sleeper.pid)


def test_node_with_too_many_shutdowns_says_when_to_retry(
    nats: NatsServer,
    make_monitor: Callable[..., Monitor],
    make_rogue: MakeRogue,
    spawner: Spawner,
) -> None:
    """503 with `Retry-After` means that nothing was stopped on any node."""
    monitor = make_monitor(cluster=nats.url, node="a")
    client = Client(monitor.url)
    rogue = announce_rogue(make_rogue(nats.url), monitor)
    full = error_response(TooManyShutdowns(4, 5))
    offer = pack(Reply("rogue", "1", "offer", offer="key"))
    rogue.subscribe("monitor.shutdown.model.m", reply_with(offer))
    rogue.subscribe(
        "monitor.shutdown.now.rogue.1", reply_with(pack(Reply("rogue", "1", answer=full)))
    )
    answer = client.shutdown("m")
    assert (answer.status, answer.headers["Retry-After"]) == (503, "5")
    load_sleeper(monitor, spawner)
    answer = client.shutdown("m")
    assert (answer.status, answer.json["error"]["type"]) == (500, "shutdown_failed")
    assert "it was stopped on a" in answer.json["error"]["message"]


def test_many_missing_lists_take_no_longer_than_one(
    nats: NatsServer, make_monitor: Callable[..., Monitor], make_rogue: MakeRogue
) -> None:
    """40 nodes, 16 at a time, reply that they work on it, and nothing else."""
    monitor = make_monitor(cluster=nats.url, node="a", cluster_timeout_seconds=4.0)
    rogue = announce_rogue(make_rogue(nats.url), monitor)
    names = [f"rogue{number}" for number in range(40)]
    for name in names:
        working = reply_with(pack(Reply(name, "1", "working")), name)
        rogue.subscribe(f"monitor.read.node.{name}", working)
        rogue.publish(f"monitor.nodes.{name}", pack(Announcement(name, "1", 1, None, ["m"])))
    cluster = cluster_node(monitor)
    eventually(lambda: len(cluster.directory) == 41)
    began = time.monotonic()
    listed = Client(monitor.url).request("GET", "/backends").json["nodes"]
    assert time.monotonic() - began < 11  # three full deadlines would be 12 s, and it takes 6 s
    assert {each["node"] for each in listed if each["error"]} == {*names, "rogue"}


def test_headers_of_replies_are_filtered(
    nats: NatsServer, make_monitor: Callable[..., Monitor], make_rogue: MakeRogue
) -> None:
    """Only the monitor's own headers pass, with values of one line, also in combined answers."""
    monitor = make_monitor(cluster=nats.url, node="a")
    client = Client(monitor.url)
    rogue = announce_rogue(make_rogue(nats.url), monitor)
    odd = "grpc\r\nX-Evil: 1"
    reading = Reading(Backend("m", 1, "x", 0.0), Status(2), None, odd, None, 0.0, odd)
    headers = {"X-Monitor-Source": odd, "Set-Cookie": "x=1", "X-Monitor-Ä": "ö"}
    reply = Reply("rogue", "1", answer=Response(200, b'{"state":2}', headers), reading=reading)
    rogue.subscribe("monitor.read.node.rogue", reply_with(pack(reply)))
    for path in ("/backend/monitor?model=m", "/backend/monitor?model=m&node=rogue"):
        answer = client.request("GET", path)
        assert (answer.status, answer.json) == (200, {"state": 2})
        assert answer.headers["X-Monitor-Node"] == "rogue"
        assert not {"X-Evil", "Set-Cookie", "X-Monitor-Source"} & set(answer.headers)


def test_slow_answer_is_waited_for(
    nats: NatsServer,
    make_monitor: Callable[..., Monitor],
    make_rogue: MakeRogue,
    spawner: Spawner,
) -> None:
    """A node that replies `working` is waited for, also by a node that has the model itself."""
    monitor = make_monitor(cluster=nats.url, node="a", cluster_timeout_seconds=60.0)
    sleeper = spawner.sleeper()
    monitor.hook.monitor_backend_spawned(model="m", pid=sleeper.pid, address="127.0.0.1:1")
    rogue = announce_rogue(make_rogue(nats.url), monitor)
    reading = Reading(Backend("m", 1, "x", 0.0), Status(2), None, "grpc", None, 0.0)
    answer = pack(Reply("rogue", "1", answer=Response(200, b'{"state":2}'), reading=reading))

    def take_time(message: Any) -> list[tuple[str, bytes]]:
        rogue.publish_later(1.5, f"{message.reply}.rogue", answer)
        return [(f"{message.reply}.rogue", pack(Reply("rogue", "1", "working")))]

    rogue.subscribe("monitor.read.node.rogue", take_time)

    def both() -> bool:
        rogue.publish("monitor.nodes.rogue", pack(Announcement("rogue", "1", 1, None, ["m"])))
        return Client(monitor.url).monitor("m").headers["X-Monitor-Node"] == "a, rogue"

    eventually(both)


def test_node_says_that_it_is_working(
    nats: NatsServer,
    make_monitor: Callable[..., Monitor],
    make_rogue: MakeRogue,
    spawner: Spawner,
) -> None:
    """A reply of kind `working` precedes an answer that takes longer."""
    monitor = make_monitor(cluster=nats.url, node="a", status_timeout_seconds=2.0)
    backend = spawner.backend("--hang-status")
    monitor.hook.monitor_backend_spawned(model="m", pid=backend.pid, address=backend.address)
    cluster = cluster_node(monitor)
    eventually(lambda: cluster.link.subscription_count == 7)
    rogue = make_rogue(nats.url)
    rogue.subscribe("monitor.reply.>")
    rogue.publish("monitor.read.model.m", encode_request("monitor", "m"), "monitor.reply.rogue.1.2")

    def kinds() -> list[str]:
        return [msgspec.msgpack.decode(each.data, type=Reply).kind for each in rogue.received]

    eventually(lambda: "answer" in kinds())
    assert kinds()[0] == "working"


@pytest.mark.parametrize(
    "what", ["nonsense", "a success of nothing", "at work for ever", "silence"]
)
def test_stop_without_a_valid_answer_has_an_unknown_outcome(
    what: str,
    nats: NatsServer,
    make_monitor: Callable[..., Monitor],
    make_rogue: MakeRogue,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Only the answer that the stop succeeded or failed gives a known outcome."""
    monkeypatch.setattr("monitor_plugin.cluster.requests.client._MAX_WORK_SECONDS", 1.0)
    monitor = make_monitor(cluster=nats.url, node="a", cluster_timeout_seconds=120.0)
    rogue = announce_rogue(make_rogue(nats.url), monitor)
    offer = pack(Reply("rogue", "1", "offer", offer="key"))
    rogue.subscribe("monitor.shutdown.model.m", reply_with(offer))
    working = pack(Reply("rogue", "1", "working"))
    answers = {
        "nonsense": [pack(Reply("rogue", "1", "dance"))],
        "a success of nothing": [pack(Reply("rogue", "1", answer=Response(200, b"{}")))],
        "at work for ever": [working] * 10_000,
        "silence": [],
    }[what]
    rogue.subscribe(
        "monitor.shutdown.now.rogue.1",
        lambda message: [(f"{message.reply}.rogue", each) for each in answers],
    )
    answer = Client(monitor.url).shutdown("m")
    assert (answer.status, answer.json["error"]["type"]) == (504, "outcome_unknown")


def test_node_accepts_requests_on_their_own_subjects_only(
    nats: NatsServer,
    make_monitor: Callable[..., Monitor],
    make_rogue: MakeRogue,
    spawner: Spawner,
) -> None:
    """A request on one model's subject is about that model, and one for reading stops nothing.

    A reply goes to the node that the request names, and only to subjects for replies.
    """
    monitor = make_monitor(cluster=nats.url, node="a")
    backend = spawner.backend()
    monitor.hook.monitor_backend_spawned(model="m", pid=backend.pid, address=backend.address)
    cluster = cluster_node(monitor)
    eventually(lambda: cluster.link.subscription_count == 7)
    run = cluster.service._local_node.run
    rogue = make_rogue(nats.url)
    reply_to = "monitor.reply.rogue.1.2"
    rogue.subscribe("monitor.reply.>")
    rogue.subscribe("monitor.shutdown.node.a")
    refused = [
        ("monitor.read.model.m", encode_request("backends", None), reply_to),
        ("monitor.read.model.m", encode_request("monitor", "n"), reply_to),
        ("monitor.read.model.m", encode_request("offer", "m"), reply_to),
        ("monitor.read.node.a", encode_request("shutdown", "m"), reply_to),
        ("monitor.shutdown.model.m", encode_request("offer", "n"), reply_to),
        ("monitor.shutdown.model.m", encode_request("monitor", "m"), reply_to),
        ("monitor.shutdown.node.a", encode_request("shutdown", "m"), reply_to),
        (f"monitor.shutdown.now.a.{run}", encode_request("offer", "m"), reply_to),
        ("monitor.read.model.m", encode_request("loaded", "m"), "monitor.reply.other.1.2"),
        ("monitor.read.model.m", encode_request("loaded", "m"), "monitor.reply.rogue.1.2.3"),
        ("monitor.read.model.m", encode_request("loaded", "m"), "monitor.reply.rogue.>"),
        ("monitor.read.model.m", encode_request("loaded", "m"), "monitor.shutdown.node.a"),
        ("monitor.read.model.m", encode_request("loaded", "m"), ""),
        ("monitor.read.model.m", b"\xff", reply_to),
        ("monitor.read.node.a", encode_request("models", None, node="other"), reply_to),
    ]
    for subject, data, reply in refused:
        rogue.publish(subject, data, reply)
    rogue.publish(
        "monitor.read.model.m", encode_request("loaded", "m"), "monitor.reply.rogue.1.end"
    )
    last = "monitor.reply.rogue.1.end.a"
    eventually(lambda: last in [each.subject for each in rogue.received])
    replied = [each.subject for each in rogue.received if each.subject.startswith("monitor.reply.")]
    assert replied == [last]
    asked = [each for each in rogue.received if each.subject == "monitor.shutdown.node.a"]
    assert [each.data for each in asked] == [encode_request("shutdown", "m")], (
        "a reply was sent there"
    )
    assert is_running(backend.pid)


def test_offer_is_accepted_once_by_its_requester_only(
    nats: NatsServer,
    make_monitor: Callable[..., Monitor],
    make_rogue: MakeRogue,
    spawner: Spawner,
) -> None:
    """Another node cannot accept the offer, nor can its requester for another PID or twice."""
    monitor = make_monitor(cluster=nats.url, node="a")
    backend = spawner.backend()
    monitor.hook.monitor_backend_spawned(model="m", pid=backend.pid, address=backend.address)
    cluster = cluster_node(monitor)
    eventually(lambda: cluster.link.subscription_count == 7)
    now = f"monitor.shutdown.now.a.{cluster.service._local_node.run}"
    rogue = make_rogue(nats.url)
    rogue.subscribe("monitor.reply.>")

    def ask(subject: str, data: bytes, node: str = "rogue") -> Reply:
        before = len(rogue.received)
        rogue.publish(subject, data, f"monitor.reply.{node}.1.2")
        replies: list[Reply] = []

        def answered() -> bool:
            new = [
                msgspec.msgpack.decode(each.data, type=Reply) for each in rogue.received[before:]
            ]
            replies[:] = [each for each in new if each.kind != "working"]
            return bool(replies)

        eventually(answered)
        return replies[0]

    def stop(**more: Any) -> str | None:
        node = more.setdefault("node", "rogue")
        answer = ask(now, encode_request("shutdown", "m", **more), node).answer
        assert answer is not None
        return answer.outcome

    offer = ask("monitor.shutdown.model.m", encode_request("offer", "m")).offer
    assert offer
    assert stop(offer=offer, node="other") == "node_unreachable"
    assert stop(offer=offer, pid=backend.pid) == "node_unreachable"
    assert stop(offer="0123456789abcdef") == "node_unreachable"
    assert stop() == "node_unreachable"
    assert is_running(backend.pid)
    assert stop(offer=offer) == "stopped"
    assert stop(offer=offer) == "node_unreachable"


def test_invalid_node_names_do_no_harm(
    nats: NatsServer, make_local: MakeLocal, caplog: pytest.LogCaptureFixture
) -> None:
    """`node` may be any text: a subject that is too long for NATS would end the connection."""
    a = make_local("a", nats.url)
    make_local("b", nats.url, "m")
    eventually(lambda: a.reads("m"))
    for node in ("x" * 5000, "*", "%3E", "b%0A", "%C3%B6", ""):
        for path in ("/backends?", "/backend/monitor?model=m&", "/events?", "/history?"):
            assert a.get(f"{path}node={node}").status == 400
        body = {"model": "m"}
        assert a.client.request("POST", f"/backend/shutdown?node={node}", body).status == 400
    assert a.reads("m")
    assert "ended" not in caplog.text


def test_shutdown_reaches_both_nodes_of_the_same_name(
    nats: NatsServer,
    make_local: MakeLocal,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A model that both have is stopped on both."""
    # The second node of a name is unexpected, and may be slow on a busy machine.
    monkeypatch.setattr(
        "monitor_plugin.cluster.transport.pending_requests._UNEXPECTED_SECONDS", 2.0
    )
    a = make_local("a", nats.url)
    first, second = (make_local("same", nats.url, "m") for _ in range(2))
    eventually(lambda: caplog.text.count("another monitor of the cluster is called same too") == 2)
    eventually(lambda: a.merges("m", "same"))
    for node in (first, second):
        assert node.get("/backend/monitor?model=m&node=same").status == 200
    answer = a.client.shutdown("m")
    assert (answer.status, answer.json) == (200, {"message": "model stopped"})
    for node in (first, second):
        gone = node.get("/backend/monitor?model=m&node=same")
        assert gone.json["error"]["type"] == "model_not_loaded"


def test_outdated_directory_is_corrected_by_asking(
    nats: NatsServer, make_monitor: Callable[..., Monitor], make_local: MakeLocal
) -> None:
    """A node that no longer has a model is not unreachable, and the one that has it is found."""
    monitor = make_monitor(cluster=nats.url, node="a")
    client = Client(monitor.url)
    make_local("b", nats.url)
    make_local("c", nats.url, "m")
    cluster = cluster_node(monitor)
    eventually(lambda: len(cluster.directory) == 2 and cluster.directory.holders("m"))
    cluster.directory.record_reply("b", "ghost")
    assert client.shutdown("ghost").json["error"]["type"] == "model_not_loaded"
    assert client.monitor("ghost").json["error"]["type"] == "model_not_loaded"
    with cluster.directory._lock:
        nodes = cluster.directory._peers
        nodes["b"] = nodes["b"]._replace(models=frozenset({"m"}))
        nodes["c"] = nodes["c"]._replace(models=frozenset())
    assert client.monitor("m").headers["X-Monitor-Node"] == "c"
