"""Messages between nodes: their fields, their sizes, and bytes that are none."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor_plugin.api.results import Response
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
from monitor_plugin.domain.models import Backend, Memory, Reading, Sample, Status


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
