"""What a node announces of itself."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, cast

import pytest

from monitor_plugin.cluster.peers.directory import PeerDirectory
from monitor_plugin.cluster.peers.presence import Presence
from monitor_plugin.cluster.transport.messages import Announcement, unpack_announcement
from monitor_plugin.cluster.transport.nats_link import NatsLink
from monitor_plugin.cluster.transport.subjects import Subjects

from ..support import logged


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
