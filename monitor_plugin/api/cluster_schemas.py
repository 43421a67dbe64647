"""What lists look like where they tell of a whole cluster."""

from __future__ import annotations

import msgspec

from .schemas import Machine, NodeBackendItem, NodeEndItem


class NodeItem(msgspec.Struct, frozen=True, kw_only=True):
    """A node of the list; `error` says why its backends are missing."""

    node: str
    url: str | None
    backends: int
    machine: Machine | None
    error: str | None


class ClusterBackendsAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of `/backends` in a cluster; `machine` is of the node that was asked.

    `next` is what to pass as `after` for the next page; `null` where this is the last.
    `cluster_error` says that the node that was asked is not connected to NATS, and so may not know
    of others; `null` where it is.
    """

    backends: list[NodeBackendItem]
    ended: list[NodeEndItem]
    machine: Machine | None
    nodes: list[NodeItem]
    next: str | None
    cluster_error: str | None


class TargetGroup(msgspec.Struct, frozen=True):
    """A node, as Prometheus' service discovery by HTTP has it."""

    targets: list[str]
    labels: dict[str, str]
