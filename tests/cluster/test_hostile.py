"""What others say over NATS that they should not: nonsense, too much, in another's name."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from monitor_plugin import Monitor
from monitor_plugin.api.results import Response, error_response
from monitor_plugin.cluster.transport.messages import Announcement, Reply, pack
from monitor_plugin.domain.errors import TooManyShutdowns
from monitor_plugin.domain.models import Backend, Reading, Status

from ..support import Client, Spawner, eventually, is_running, load_sleeper
from .conftest import MakeLocal, MakeRogue, NatsServer
from .rogue import answering, cluster_of, joined, question

pytestmark = pytest.mark.once

# What a node could answer to a question, and no client may be harmed by.
NONSENSE: dict[str, bytes] = {
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


def test_nonsense_harms_nobody(
    nats: NatsServer,
    make_monitor: Callable[..., Monitor],
    make_rogue: MakeRogue,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Whatever a node answers: an error names it, and what others have is answered as ever."""
    monitor = make_monitor(cluster=nats.url, node="a", cluster_timeout_seconds=1.0)
    client = Client(monitor.url)
    rogue = joined(make_rogue(nats.url), monitor, "http://rogue:99999/")
    said = {"data": b""}
    for subject in ("read.model.m", "read.node.rogue", "shutdown.model.m", "shutdown.node.rogue"):
        rogue.listen(f"monitor.{subject}", lambda message: answering(said["data"])(message))
    for what, data in NONSENSE.items():
        said["data"] = data
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


_END = b'{"model":"m","pid":1,"cause":"exited","node":"rogue","ended_at":"2026-01-01T00:00:00%s"}'
_HERE = b'{"model":"m","pid":1,"node":"rogue"%s}'


@pytest.mark.parametrize(
    ("backends", "ended", "good"),
    [
        (_HERE % b"", _END % b"Z", True),
        (_HERE % b"", _END % b"", False),
        (_HERE % b',"address":"\xff"', b"", False),
        (b'{"pid":1,"node":"rogue"}', b"", False),
        (b'{"model":"m","pid":1,"node":"a"}', b"", False),
    ],
    ids=["good", "a time without a zone", "no UTF-8", "without a model", "another's"],
)
def test_a_list_of_another_form_takes_no_other_away(
    backends: bytes,
    ended: bytes,
    good: bool,
    nats: NatsServer,
    make_monitor: Callable[..., Monitor],
    make_rogue: MakeRogue,
    spawner: Spawner,
) -> None:
    """What a node lists is taken as it is or not at all, and those of others are there."""
    monitor = make_monitor(cluster=nats.url, node="a")
    for process in (sleeper := spawner.sleeper()), (dies := spawner.sleeper()):
        monitor.hook.monitor_backend_spawned(
            model="here", pid=process.pid, address=f"unix:/{process.pid}"
        )
    dies.kill()
    eventually(lambda: len(monitor.backends()) == 1)
    rogue = joined(make_rogue(nats.url), monitor)
    body = b'{"backends":[%s],"ended":[%s],"machine":null}' % (backends, ended)
    reply = pack(Reply("rogue", "1", answer=Response(200, body)))
    rogue.listen("monitor.read.node.rogue", answering(reply))
    answer = Client(monitor.url).request("GET", "/backends")
    assert answer.status == 200
    listed = answer.json
    assert [each["pid"] for each in listed["backends"]] == [sleeper.pid, *([1] if good else [])]
    assert sorted(each["pid"] for each in listed["ended"]) == [*([1] if good else []), dies.pid]
    assert [bool(each["error"]) for each in listed["nodes"]] == [False, not good]


def test_a_stop_here_is_told_whatever_another_node_says_to_it(
    nats: NatsServer,
    make_monitor: Callable[..., Monitor],
    make_rogue: MakeRogue,
    spawner: Spawner,
) -> None:
    """An answer that makes no sense is the other node's fault, and the model was stopped here."""
    monitor = make_monitor(cluster=nats.url, node="a")
    sleeper = load_sleeper(monitor, spawner)
    rogue = joined(make_rogue(nats.url), monitor)
    reply = pack(Reply("rogue", "1", answer=Response(200, b"{}")))
    rogue.listen("monitor.shutdown.model.m", answering(reply))
    answer = Client(monitor.url).shutdown("m")
    assert (answer.status, answer.json["error"]["type"]) == (504, "node_unreachable")
    assert "it was stopped on a" in answer.json["error"]["message"]
    assert not is_running(sleeper.pid)


def test_one_that_takes_no_more_shutdowns_says_when_to_ask_again(
    nats: NatsServer,
    make_monitor: Callable[..., Monitor],
    make_rogue: MakeRogue,
    spawner: Spawner,
) -> None:
    """503 with `Retry-After` says that nothing was stopped: not where one node did stop it."""
    monitor = make_monitor(cluster=nats.url, node="a")
    client = Client(monitor.url)
    rogue = joined(make_rogue(nats.url), monitor)
    full = error_response(TooManyShutdowns(4, 5))
    offer = pack(Reply("rogue", "1", "offer", offer="key"))
    rogue.listen("monitor.shutdown.model.m", answering(offer))
    rogue.listen("monitor.shutdown.now.rogue.1", answering(pack(Reply("rogue", "1", answer=full))))
    answer = client.shutdown("m")
    assert (answer.status, answer.headers["Retry-After"]) == (503, "5")
    load_sleeper(monitor, spawner)
    answer = client.shutdown("m")
    assert (answer.status, answer.json["error"]["type"]) == (500, "shutdown_failed")
    assert "it was stopped on a" in answer.json["error"]["message"]


def test_many_lists_that_do_not_come_take_no_longer_than_one(
    nats: NatsServer, make_monitor: Callable[..., Monitor], make_rogue: MakeRogue
) -> None:
    """Of 40 nodes, asked 16 at a time, that say that they are at it and no more."""
    monitor = make_monitor(cluster=nats.url, node="a", cluster_timeout_seconds=10.0)
    rogue = joined(make_rogue(nats.url), monitor)
    names = [f"rogue{number}" for number in range(40)]
    for name in names:
        working = answering(pack(Reply(name, "1", "working")), name)
        rogue.listen(f"monitor.read.node.{name}", working)
        rogue.publish(f"monitor.nodes.{name}", pack(Announcement(name, "1", 1, None, ["m"])))
    cluster = cluster_of(monitor)
    eventually(lambda: len(cluster.directory) == 41)
    began = time.monotonic()
    listed = Client(monitor.url).request("GET", "/backends").json["nodes"]
    assert time.monotonic() - began < 28  # one after the other they take 30, and so 14
    assert {each["node"] for each in listed if each["error"]} == {*names, "rogue"}


def test_nothing_of_an_answer_gets_into_headers_that_breaks_them(
    nats: NatsServer, make_monitor: Callable[..., Monitor], make_rogue: MakeRogue
) -> None:
    """Headers of another node are the monitor's own, and of one line; so are those of sums."""
    monitor = make_monitor(cluster=nats.url, node="a")
    client = Client(monitor.url)
    rogue = joined(make_rogue(nats.url), monitor)
    odd = "grpc\r\nX-Evil: 1"
    reading = Reading(Backend("m", 1, "x", 0.0), Status(2), None, odd, None, 0.0, odd)
    headers = {"X-Monitor-Source": odd, "Set-Cookie": "x=1", "X-Monitor-Ä": "ö"}
    reply = Reply("rogue", "1", answer=Response(200, b'{"state":2}', headers), reading=reading)
    rogue.listen("monitor.read.node.rogue", answering(pack(reply)))
    for path in ("/backend/monitor?model=m", "/backend/monitor?model=m&node=rogue"):
        answer = client.request("GET", path)
        assert (answer.status, answer.json) == (200, {"state": 2})
        assert answer.headers["X-Monitor-Node"] == "rogue"
        assert not {"X-Evil", "Set-Cookie", "X-Monitor-Source"} & set(answer.headers)


def test_a_slow_answer_is_no_missing_one(
    nats: NatsServer,
    make_monitor: Callable[..., Monitor],
    make_rogue: MakeRogue,
    spawner: Spawner,
) -> None:
    """A node that says that it is at work is waited for, also by who has the model too."""
    monitor = make_monitor(cluster=nats.url, node="a", cluster_timeout_seconds=60.0)
    sleeper = spawner.sleeper()
    monitor.hook.monitor_backend_spawned(model="m", pid=sleeper.pid, address="127.0.0.1:1")
    rogue = joined(make_rogue(nats.url), monitor)
    reading = Reading(Backend("m", 1, "x", 0.0), Status(2), None, "grpc", None, 0.0)
    answer = pack(Reply("rogue", "1", answer=Response(200, b'{"state":2}'), reading=reading))

    def take_time(message: Any) -> list[tuple[str, bytes]]:
        rogue.publish_later(1.5, f"{message.reply}.rogue", answer)
        return [(f"{message.reply}.rogue", pack(Reply("rogue", "1", "working")))]

    rogue.listen("monitor.read.node.rogue", take_time)

    def both() -> bool:
        rogue.publish("monitor.nodes.rogue", pack(Announcement("rogue", "1", 1, None, ["m"])))
        return Client(monitor.url).monitor("m").headers["X-Monitor-Node"] == "a, rogue"

    eventually(both)


def test_a_node_says_that_it_is_at_work(
    nats: NatsServer,
    make_monitor: Callable[..., Monitor],
    make_rogue: MakeRogue,
    spawner: Spawner,
) -> None:
    """Before an answer that takes longer comes the word that it will come."""
    monitor = make_monitor(cluster=nats.url, node="a", status_timeout_seconds=2.0)
    backend = spawner.backend("--hang-status")
    monitor.hook.monitor_backend_spawned(model="m", pid=backend.pid, address=backend.address)
    cluster = cluster_of(monitor)
    eventually(lambda: cluster.link.subscription_count == 7)
    rogue = make_rogue(nats.url)
    rogue.listen("monitor.reply.>")
    rogue.publish("monitor.read.model.m", question("monitor", "m"), "monitor.reply.rogue.1.2")

    def kinds() -> list[str]:
        return [msgspec.msgpack.decode(each.data, type=Reply).kind for each in rogue.heard]

    eventually(lambda: "answer" in kinds())
    assert kinds()[0] == "working"


@pytest.mark.parametrize(
    "what", ["nonsense", "a success of nothing", "at work for ever", "silence"]
)
def test_a_stop_that_was_begun_is_never_said_to_have_failed_or_not(
    what: str,
    nats: NatsServer,
    make_monitor: Callable[..., Monitor],
    make_rogue: MakeRogue,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever a node says once it was told to stop a model, but that it did or not: unknown."""
    monkeypatch.setattr("monitor_plugin.cluster.requests.client._MAX_SHUTDOWN_SECONDS", 1.0)
    monitor = make_monitor(cluster=nats.url, node="a", cluster_timeout_seconds=120.0)
    rogue = joined(make_rogue(nats.url), monitor)
    offer = pack(Reply("rogue", "1", "offer", offer="key"))
    rogue.listen("monitor.shutdown.model.m", answering(offer))
    working = pack(Reply("rogue", "1", "working"))
    answers = {
        "nonsense": [pack(Reply("rogue", "1", "dance"))],
        "a success of nothing": [pack(Reply("rogue", "1", answer=Response(200, b"{}")))],
        "at work for ever": [working] * 10_000,
        "silence": [],
    }[what]
    rogue.listen(
        "monitor.shutdown.now.rogue.1",
        lambda message: [(f"{message.reply}.rogue", each) for each in answers],
    )
    answer = Client(monitor.url).shutdown("m")
    assert (answer.status, answer.json["error"]["type"]) == (504, "outcome_unknown")


def test_a_node_hears_questions_on_their_own_subjects_alone(
    nats: NatsServer,
    make_monitor: Callable[..., Monitor],
    make_rogue: MakeRogue,
    spawner: Spawner,
) -> None:
    """Who may ask on one model's subject can ask for no other, and on one for reading stop none.

    An answer goes to whom the question names, and to no subject that is none for answers.
    """
    monitor = make_monitor(cluster=nats.url, node="a")
    backend = spawner.backend()
    monitor.hook.monitor_backend_spawned(model="m", pid=backend.pid, address=backend.address)
    cluster = cluster_of(monitor)
    eventually(lambda: cluster.link.subscription_count == 7)
    run = cluster.service._local_node.run
    rogue = make_rogue(nats.url)
    local_node = "monitor.reply.rogue.1.2"
    rogue.listen("monitor.reply.>")
    rogue.listen("monitor.shutdown.node.a")
    refused = [
        ("monitor.read.model.m", question("backends", None), local_node),
        ("monitor.read.model.m", question("monitor", "n"), local_node),
        ("monitor.read.model.m", question("offer", "m"), local_node),
        ("monitor.read.node.a", question("shutdown", "m"), local_node),
        ("monitor.shutdown.model.m", question("offer", "n"), local_node),
        ("monitor.shutdown.model.m", question("monitor", "m"), local_node),
        ("monitor.shutdown.node.a", question("shutdown", "m"), local_node),
        (f"monitor.shutdown.now.a.{run}", question("offer", "m"), local_node),
        ("monitor.read.model.m", question("loaded", "m"), "monitor.reply.other.1.2"),
        ("monitor.read.model.m", question("loaded", "m"), "monitor.reply.rogue.1.2.3"),
        ("monitor.read.model.m", question("loaded", "m"), "monitor.reply.rogue.>"),
        ("monitor.read.model.m", question("loaded", "m"), "monitor.shutdown.node.a"),
        ("monitor.read.model.m", question("loaded", "m"), ""),
        ("monitor.read.model.m", b"\xff", local_node),
        ("monitor.read.node.a", question("models", None, node="other"), local_node),
    ]
    for subject, data, reply in refused:
        rogue.publish(subject, data, reply)
    rogue.publish("monitor.read.model.m", question("loaded", "m"), "monitor.reply.rogue.1.end")
    last = "monitor.reply.rogue.1.end.a"
    eventually(lambda: last in [each.subject for each in rogue.heard])
    heard = [each.subject for each in rogue.heard if each.subject.startswith("monitor.reply.")]
    assert heard == [last]
    asked = [each for each in rogue.heard if each.subject == "monitor.shutdown.node.a"]
    assert [each.data for each in asked] == [question("shutdown", "m")], "it was sent on"
    assert is_running(backend.pid)


def test_an_offer_is_for_whom_it_was_made_to(
    nats: NatsServer,
    make_monitor: Callable[..., Monitor],
    make_rogue: MakeRogue,
    spawner: Spawner,
) -> None:
    """Another node cannot take it up, nor for another PID; who it is for can, once."""
    monitor = make_monitor(cluster=nats.url, node="a")
    backend = spawner.backend()
    monitor.hook.monitor_backend_spawned(model="m", pid=backend.pid, address=backend.address)
    cluster = cluster_of(monitor)
    eventually(lambda: cluster.link.subscription_count == 7)
    now = f"monitor.shutdown.now.a.{cluster.service._local_node.run}"
    rogue = make_rogue(nats.url)
    rogue.listen("monitor.reply.>")

    def ask(subject: str, data: bytes, node: str = "rogue") -> Reply:
        before = len(rogue.heard)
        rogue.publish(subject, data, f"monitor.reply.{node}.1.2")
        replies: list[Reply] = []

        def answered() -> bool:
            new = [msgspec.msgpack.decode(each.data, type=Reply) for each in rogue.heard[before:]]
            replies[:] = [each for each in new if each.kind != "working"]
            return bool(replies)

        eventually(answered)
        return replies[0]

    def stop(**more: Any) -> str | None:
        node = more.setdefault("node", "rogue")
        answer = ask(now, question("shutdown", "m", **more), node).answer
        assert answer is not None
        return answer.outcome

    offer = ask("monitor.shutdown.model.m", question("offer", "m")).offer
    assert offer
    assert stop(offer=offer, node="other") == "node_unreachable"
    assert stop(offer=offer, pid=backend.pid) == "node_unreachable"
    assert stop(offer="0123456789abcdef") == "node_unreachable"
    assert stop() == "node_unreachable"
    assert is_running(backend.pid)
    assert stop(offer=offer) == "stopped"
    assert stop(offer=offer) == "node_unreachable"


def test_a_name_that_is_none_does_no_harm(
    nats: NatsServer, make_local: MakeLocal, caplog: pytest.LogCaptureFixture
) -> None:
    """`node` of a request may be anything: a subject too long for NATS would end the connection."""
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


def test_two_nodes_of_one_name_lose_no_shutdown(
    nats: NatsServer,
    make_local: MakeLocal,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Both are asked, and told, each for itself: what both have is stopped on both."""
    # How long a second one of a name is waited for: on a busy machine longer.
    monkeypatch.setattr(
        "monitor_plugin.cluster.transport.pending_requests._UNEXPECTED_SECONDS", 2.0
    )
    a = make_local("a", nats.url)
    first, second = (make_local("same", nats.url, "m") for _ in range(2))
    eventually(lambda: caplog.text.count("another monitor of the cluster is called same too") == 2)
    eventually(lambda: a.finds("m", "same"))
    for node in (first, second):
        assert node.get("/backend/monitor?model=m&node=same").status == 200
    answer = a.client.shutdown("m")
    assert (answer.status, answer.json) == (200, {"message": "model stopped"})
    for node in (first, second):
        gone = node.get("/backend/monitor?model=m&node=same")
        assert gone.json["error"]["type"] == "model_not_loaded"


def test_what_was_known_and_is_so_no_more_is_found_out(
    nats: NatsServer, make_monitor: Callable[..., Monitor], make_local: MakeLocal
) -> None:
    """A node that had a model a moment ago is not unreachable; and who has it now is found."""
    monitor = make_monitor(cluster=nats.url, node="a")
    client = Client(monitor.url)
    make_local("b", nats.url)
    make_local("c", nats.url, "m")
    cluster = cluster_of(monitor)
    eventually(lambda: len(cluster.directory) == 2 and cluster.directory.holders("m"))
    cluster.directory.record_reply("b", "ghost")
    assert client.shutdown("ghost").json["error"]["type"] == "model_not_loaded"
    assert client.monitor("ghost").json["error"]["type"] == "model_not_loaded"
    with cluster.directory._lock:
        nodes = cluster.directory._peers
        nodes["b"] = nodes["b"]._replace(models=frozenset({"m"}))
        nodes["c"] = nodes["c"]._replace(models=frozenset())
    assert client.monitor("m").headers["X-Monitor-Node"] == "c"
