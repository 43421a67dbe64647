"""Readings of several nodes, merged into one."""

from __future__ import annotations

from monitor_plugin.cluster.merge.readings import join_names


def test_header_names_as_many_nodes_as_fit() -> None:
    """The header of a large cluster stays within what clients and proxies accept."""
    assert join_names(["a", "b"]) == "a, b"
    nodes = [f"node-{number:04}" for number in range(1000)]
    text = join_names(nodes)
    assert len(text) < 2100
    shown, _, more = text.rpartition(", and ")
    assert shown.split(", ") == nodes[: shown.count(", ") + 1]
    assert more == f"{1000 - shown.count(', ') - 1} more"
