"""The parts of the cluster that need no NATS server."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, cast

import falcon.testing
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor_plugin import Monitor, Settings
from monitor_plugin.api.results import Response
from monitor_plugin.cluster.merge.readings import join_names
from monitor_plugin.cluster.peers.directory import PeerDirectory
from monitor_plugin.cluster.peers.presence import Presence
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
from monitor_plugin.cluster.transport.nats_link import NatsLink
from monitor_plugin.cluster.transport.pending_requests import Failure, PendingRequest
from monitor_plugin.cluster.transport.subjects import Subjects, encode_token
from monitor_plugin.domain.models import Backend, Memory, Reading, Sample, Status

from ..support import logged

REQUEST = Request("backends", Caller("b", "ops", "read", "here"))

_NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=80)


@given(_NAMES, _NAMES)
def test_subject_tokens_are_safe_and_unique(one: str, other: str) -> None:
    """Different names have different tokens of letters, digits, `_`, `-` and `=`."""
    token = encode_token(one)
    assert token
    assert all(each.isascii() and (each.isalnum() or each in "_-=") for each in token)
    assert (token == encode_token(other)) == (one == other)


def test_subjects_separate_reading_from_stopping() -> None:
    """Subjects for reading begin with NAMESPACE.read, others with NAMESPACE.shutdown."""
    subjects = Subjects("ns")
    assert subjects.shutdown_now("a.b", "1") == "ns.shutdown.now.a=2Eb.1"
    assert subjects.reply_subject("ns.reply.a.1.2", "a", "b.c") == "ns.reply.a.1.2.b=2Ec"
    assert subjects.read_model("org/m .*>") == "ns.read.model.org=2Fm=20=2E=2A=3E"
    assert subjects.read_node("a.b") == "ns.read.node.a=2Eb"
    assert subjects.shutdown_model("m").startswith("ns.shutdown.")
    assert subjects.shutdown_node("a").startswith("ns.shutdown.")


@pytest.mark.parametrize("size", [0, 1, 1024, 300_000, 2_000_000])
def test_reply_parts_join_to_the_same_reply(size: int) -> None:
    """A body of any size is divided into messages of a limited size, and joined again."""
    body = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    reply = Reply("a", "1", answer=Response(200, body, {"X-Monitor-Node": "a"}))
    for most in (1_048_576, 65_536):
        parts = split_reply(reply, most)
        assert all(len(each) <= most for each in parts)
        decoded = [unpack(each, Reply) for each in parts]
        assert [each.last for each in decoded if each] == [False] * (len(parts) - 1) + [True]
        assert join_parts([each for each in decoded if each]) == reply


@given(st.binary(max_size=200))
def test_unpack_accepts_any_bytes(data: bytes) -> None:
    """Any bytes are a message or None; nothing is raised."""
    unpack(data, Reply)
    unpack(data, Announcement)


def test_messages_have_the_field_names_of_earlier_versions() -> None:
    """Nodes of different versions understand each other."""
    request = Request("offer", Caller("a", "ops", "admin", "::1"), "m", with_memory=True)
    assert msgspec.msgpack.decode(pack(request)) == {
        "what": "offer",
        "caller": {"node": "a", "name": "ops", "role": "admin", "whence": "::1"},
        "model": "m",
        "held": True,
    }
    reply = Reply("a", "1", memory=Memory(1), memory_source="backend", offer="key", last=False)
    assert msgspec.msgpack.decode(pack(reply)) == {
        "node": "a",
        "run": "1",
        "held": {"total": 1, "breakdown": {}},
        "held_source": "backend",
        "offer": "key",
        "last": False,
    }
    backend = Backend("m", 1, "127.0.0.1:1", 2.0)
    reading = Reading(backend, Status(2), Sample(1, 1, 1.0, 1.0), "grpc", "UNAVAILABLE", 3.0)
    answer = Response(200, b"{}", {"X-Monitor-Node": "a"}, "stopped")
    fields = msgspec.msgpack.decode(pack(Reply("a", "1", answer=answer, reading=reading)))
    assert fields["answer"].keys() == {"status", "body", "headers", "outcome"}
    assert {"rpc_error", "taken_at", "replicas", "memory_source"} < fields["reading"].keys()
    assert fields["reading"]["sample"].keys() == {"rss", "vms", "memory_percent", "cpu_percent"}


def test_directory_keeps_the_newest_announcement_until_the_node_leaves() -> None:
    """A missed revision makes the node be asked; only the run that leaves is forgotten."""
    directory = PeerDirectory()
    announcement = Announcement("a", "1", 3, "http://a:1", ["m"])
    assert not directory.update(announcement)
    assert [each.name for each in directory.holders("m")] == ["a"]
    assert not directory.update(msgspec.structs.replace(announcement, models=None))
    assert directory.update(msgspec.structs.replace(announcement, models=None, revision=4))
    assert directory.holders("m"), "models stay until newer ones are known"
    assert not directory.update(msgspec.structs.replace(announcement, models=["old"], revision=2))
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


def test_pending_request_limits_the_bytes_of_its_replies() -> None:
    """A request keeps at most 64 MiB of replies; a reply beyond that becomes invalid."""
    pending = PendingRequest("subject", REQUEST)
    part = Reply("a", "1", answer=Response(200, b"x" * 2**20), last=False)

    async def first() -> Reply | Failure | None:
        return await pending.next(0.001)

    for _ in range(64):
        pending.put(part)
    assert asyncio.run(first()) is None
    pending.put(part)
    reply = asyncio.run(first())
    assert isinstance(reply, Reply)
    assert reply.kind == "invalid"


def test_reply_that_fits_no_message_becomes_invalid() -> None:
    """The fields beside the body cannot be divided."""
    memory = Memory(1, {f"component {number}": 1 for number in range(10_000)})
    reply = Reply("a", "1", answer=Response(200, b"{}"), memory=memory)
    (part,) = split_reply(reply, 65_536)
    assert unpack(part, Reply) == Reply("a", "1", "invalid")
    assert len(split_reply(reply, 1_048_576)) == 1


@pytest.mark.parametrize(
    ("announcement", "url"),
    [
        (Announcement("a", "1", 1, "http://a:1"), "http://a:1"),
        (Announcement("a", "1", 1, "http://a:99999"), None),
        (Announcement("a", "1", 1, "javascript:alert(1)"), None),
    ],
)
def test_announcement_loses_an_unusable_url(announcement: Announcement, url: str | None) -> None:
    """The URL reaches Prometheus and web pages, so it must be valid."""
    unpacked = unpack_announcement(pack(announcement))
    assert unpacked is not None
    assert unpacked.url == url
    assert unpack_announcement(pack(msgspec.structs.replace(announcement, node="a\nb"))) is None


def test_header_names_as_many_nodes_as_fit() -> None:
    """The header of a large cluster stays within what clients and proxies accept."""
    assert join_names(["a", "b"]) == "a, b"
    nodes = [f"node-{number:04}" for number in range(1000)]
    text = join_names(nodes)
    assert len(text) < 2100
    shown, _, more = text.rpartition(", and ")
    assert shown.split(", ") == nodes[: shown.count(", ") + 1]
    assert more == f"{1000 - shown.count(', ') - 1} more"


def test_monitor_that_does_not_run_is_listening_once() -> None:
    """A host may use `app` before it starts the monitor, and after it has closed it."""
    monitor = Monitor(Settings(listen=None, cluster="nats://127.0.0.1:4", node="a"))
    client = falcon.testing.TestClient(monitor.app)
    for _ in range(2):
        answer = client.simulate_get("/backend/monitor?model=m", host="localhost")
        assert (answer.status_code, answer.json["error"]["type"]) == (504, "node_unreachable")
        monitor.close()


class RecordingLink:
    """Stands in for the link to NATS, and records what is published."""

    max_payload = 1_048_576
    connected = True

    def __init__(self) -> None:
        self.published: list[tuple[str, Announcement | None]] = []

    async def publish(self, subject: str, data: bytes, reply: str = "") -> None:
        self.published.append((subject, unpack_announcement(data)))

    def spawn(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        coroutine.close()


def test_announcement_to_one_peer_does_not_replace_that_to_all_nodes() -> None:
    """A change is announced to all nodes, also if a peer has asked for the models just before."""
    link = RecordingLink()
    presence = Presence("a", "1", cast("NatsLink", link), Subjects("ns"), PeerDirectory())
    presence.set_models(frozenset("m"))

    async def announce() -> None:
        await presence.announce("ns.reply.b.1.2.a")
        await presence.announce(with_models=False)
        await presence.announce_changes()
        await presence.announce_changes()

    asyncio.run(announce())
    models = [(subject, each and each.models) for subject, each in link.published]
    assert models == [
        ("ns.reply.b.1.2.a", ["m"]),
        ("ns.nodes.a", None),
        ("ns.nodes.a", ["m"]),
    ]


def test_heartbeats_go_on_after_an_unexpected_error(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The error is logged."""
    monkeypatch.setattr("monitor_plugin.cluster.peers.presence._HEARTBEAT_SECONDS", 0.001)
    monkeypatch.setattr("monitor_plugin.cluster.peers.presence._SETTLED_SECONDS", 0.0)
    errors = [ValueError("unexpected")]

    class FailingDirectory(PeerDirectory):
        def expire(self) -> None:
            if errors:
                raise errors.pop()

    link = RecordingLink()
    presence = Presence("a", "1", cast("NatsLink", link), Subjects("ns"), FailingDirectory())

    async def send_heartbeats() -> None:
        task = asyncio.create_task(presence._send_heartbeats())
        while len(link.published) < 2:
            await asyncio.sleep(0.001)
            assert not task.done()
        task.cancel()

    asyncio.run(asyncio.wait_for(send_heartbeats(), 60))
    assert logged(caplog) == ["a heartbeat was not sent"]
