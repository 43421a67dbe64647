"""The pieces of the cluster that need no NATS server."""

from __future__ import annotations

import asyncio

import falcon.testing
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor_plugin import Monitor, Settings
from monitor_plugin.api.results import Response
from monitor_plugin.cluster.merge.readings import join_names
from monitor_plugin.cluster.peers.directory import PeerDirectory
from monitor_plugin.cluster.transport.messages import (
    Announcement,
    Caller,
    Reply,
    Request,
    join_parts,
    pack,
    split_reply,
    unpack,
    unpack_announcement,
)
from monitor_plugin.cluster.transport.pending_requests import Failure, PendingRequest
from monitor_plugin.cluster.transport.subjects import Subjects, encode_token
from monitor_plugin.domain.models import Memory

QUESTION = Request("backends", Caller("b", "ops", "read", "here"))

_NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=80)


@given(_NAMES, _NAMES)
def test_any_name_is_one_safe_token_of_its_own(one: str, other: str) -> None:
    """Different names have different tokens, of letters, digits, `_`, `-` and `=` alone."""
    token = encode_token(one)
    assert token
    assert all(each.isascii() and (each.isalnum() or each in "_-=") for each in token)
    assert (token == encode_token(other)) == (one == other)


def test_reading_and_stopping_are_apart() -> None:
    """What reads begins with NAMESPACE.read, and what stops with NAMESPACE.shutdown."""
    subjects = Subjects("ns")
    assert subjects.shutdown_now("a.b", "1") == "ns.shutdown.now.a=2Eb.1"
    assert subjects.reply_subject("ns.reply.a.1.2", "a", "b.c") == "ns.reply.a.1.2.b=2Ec"
    assert subjects.read_model("org/m .*>") == "ns.read.model.org=2Fm=20=2E=2A=3E"
    assert subjects.read_node("a.b") == "ns.read.node.a=2Eb"
    assert subjects.shutdown_model("m").startswith("ns.shutdown.")
    assert subjects.shutdown_node("a").startswith("ns.shutdown.")


@pytest.mark.parametrize("size", [0, 1, 1024, 300_000, 2_000_000])
def test_a_reply_in_parts_is_whole_again(size: int) -> None:
    """A body of any size goes in messages that NATS takes, and is the same afterwards."""
    body = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    reply = Reply("a", "1", answer=Response(200, body, {"X-Monitor-Node": "a"}))
    for most in (1_048_576, 65_536):
        parts = split_reply(reply, most)
        assert all(len(each) <= most for each in parts)
        decoded = [unpack(each, Reply) for each in parts]
        assert [each.last for each in decoded if each] == [False] * (len(parts) - 1) + [True]
        assert join_parts([each for each in decoded if each]) == reply


@given(st.binary(max_size=200))
def test_nonsense_is_no_message(data: bytes) -> None:
    """Bytes of any kind are a message, or none; nothing is raised."""
    unpack(data, Reply)
    unpack(data, Announcement)


def test_what_a_node_says_is_kept_until_it_leaves() -> None:
    """The newest word counts; a gap is asked about; who leaves is forgotten, and none but it."""
    directory = PeerDirectory()
    said = Announcement("a", "1", 3, "http://a:1", ["m"])
    assert not directory.update(said)
    assert [each.name for each in directory.holders("m")] == ["a"]
    assert not directory.update(msgspec.structs.replace(said, models=None))
    assert directory.update(msgspec.structs.replace(said, models=None, revision=4))
    assert directory.holders("m"), "what was known stays until it is known better"
    assert not directory.update(msgspec.structs.replace(said, models=["old"], revision=2))
    assert directory.holders("m")
    assert not directory.holders("old")
    directory.record_silence("a")
    assert directory.holders("m")[0].silent
    directory.record_reply("a")
    assert not directory.holders("m")[0].silent
    directory.update(Announcement("a", "another", 1, leaving=True))
    assert directory.peers()
    directory.update(Announcement("a", "1", 9, leaving=True))
    assert not directory.peers()


def test_a_reply_without_an_end_is_given_up() -> None:
    """Of one question's answers no more than 64 MiB are kept, and the rest is nonsense."""
    pending = PendingRequest("subject", QUESTION, lambda: None)
    part = Reply("a", "1", answer=Response(200, b"x" * 2**20), last=False)

    async def first() -> Reply | Failure | None:
        return await pending.next(0.001)

    for _ in range(64):
        pending.put(part)
    assert asyncio.run(first()) is None
    pending.put(part)
    said = asyncio.run(first())
    assert isinstance(said, Reply)
    assert said.kind == "invalid"


def test_what_does_not_fit_into_a_message_is_said_not_to() -> None:
    """What goes along with a body cannot be cut: the node says nonsense rather than nothing."""
    memory = Memory(1, {f"component {number}": 1 for number in range(10_000)})
    reply = Reply("a", "1", answer=Response(200, b"{}"), memory=memory)
    (part,) = split_reply(reply, 65_536)
    said = unpack(part, Reply)
    assert said == Reply("a", "1", "invalid")
    assert len(split_reply(reply, 1_048_576)) == 1


@pytest.mark.parametrize(
    ("said", "url"),
    [
        (Announcement("a", "1", 1, "http://a:1"), "http://a:1"),
        (Announcement("a", "1", 1, "http://a:99999"), None),
        (Announcement("a", "1", 1, "javascript:alert(1)"), None),
    ],
)
def test_an_address_that_is_none_is_left_out(said: Announcement, url: str | None) -> None:
    """What a node says of its HTTP goes to Prometheus and to pages."""
    heard = unpack_announcement(pack(said))
    assert heard is not None
    assert heard.url == url
    assert unpack_announcement(pack(msgspec.structs.replace(said, node="a\nb"))) is None


def test_a_header_names_as_many_nodes_as_fit() -> None:
    """A client or proxy that takes no longer line could read nothing of a large cluster."""
    assert join_names(["a", "b"]) == "a, b"
    nodes = [f"node-{number:04}" for number in range(1000)]
    text = join_names(nodes)
    assert len(text) < 2100
    shown, _, more = text.rpartition(", and ")
    assert shown.split(", ") == nodes[: shown.count(", ") + 1]
    assert more == f"{1000 - shown.count(', ') - 1} more"


def test_without_nats_no_question_waits_for_a_monitor_that_does_not_run() -> None:
    """A host may use `app` before it starts the monitor, or after it closed that."""
    monitor = Monitor(Settings(listen=None, cluster="nats://127.0.0.1:4", node="a"))
    client = falcon.testing.TestClient(monitor.app)
    for _ in range(2):
        answer = client.simulate_get("/backend/monitor?model=m", host="localhost")
        assert (answer.status_code, answer.json["error"]["type"]) == (504, "node_unreachable")
        monitor.close()
