"""What the resources want of a cluster, which answers for other nodes as for this one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol

from ..domain.errors import InvalidRequest
from .results import Response

NODE_HEADER = "X-Monitor-Node"


class Requester(NamedTuple):
    """Who asks over HTTP: the token's name and role, and the client's address."""

    name: str
    role: str
    address: str


class ClusterView(Protocol):
    """The whole cluster, this node being one of it; `node` narrows to one.

    What cannot be answered is an answer too: an error.

    Attributes:
        node: this node's name.
    """

    node: str

    def monitor(
        self, model: str, pid: int | None, node: str | None, requester: Requester
    ) -> Response:
        """Read a model."""

    def shutdown(
        self, model: str, force: bool, pid: int | None, node: str | None, requester: Requester
    ) -> Response:
        """Stop a model."""

    def backends(
        self, model: str | None, fresh: bool, query: Mapping[str, str], requester: Requester
    ) -> Response:
        """List backends."""

    def targets(self) -> Response:
        """List the nodes, for Prometheus."""

    def urls(self) -> Mapping[str, str | None]:
        """List the nodes, and where the HTTP of each is reached."""


def refuse_other_node(query: Mapping[str, str], cluster: ClusterView | None) -> None:
    """Refuse to answer for another node where that node alone can.

    Raises:
        InvalidRequest: `node` names another; it says where to ask.
    """
    node = query.get("node")
    if cluster is None or node in (None, cluster.node):
        return
    urls = cluster.urls()
    if node not in urls:
        raise InvalidRequest(
            f"no node {node[:128]!r} is known; GET /cluster/targets lists those that are"
        )
    where = urls[node] or "an address that it does not tell"
    raise InvalidRequest(
        f"node {cluster.node!r} answers this for itself alone; ask node {node!r}, at {where}"
    )
