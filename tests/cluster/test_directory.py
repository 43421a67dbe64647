"""What a node knows of its peers."""

from __future__ import annotations

import msgspec

from monitor_plugin.cluster.peers.directory import PeerDirectory
from monitor_plugin.cluster.transport.messages import Announcement


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
