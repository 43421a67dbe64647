"""The interface to a cluster that the HTTP resources use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol

from ..domain.errors import InvalidRequest
from .results import Response

NODE_HEADER = "X-Monitor-Node"


class Requester(NamedTuple):
    """A client of the HTTP server: the name and role of its token, and its address."""

    name: str
    role: str
    address: str


class ClusterView(Protocol):
    """Answers for all nodes of the cluster, or only for the one that the argument `node` names.

    Errors are returned as responses.

    Attributes:
        node: the name of this node.
    """

    node: str

    def monitor(
        self, model: str, pid: int | None, node: str | None, requester: Requester
    ) -> Response:
        """Read a model, or only its backend with the given PID."""

    def shutdown(
        self, model: str, force: bool, pid: int | None, node: str | None, requester: Requester
    ) -> Response:
        """Stop a model, or only its backend with the given PID."""

    def load(self, model: str, node: str | None, requester: Requester) -> Response:
        """Start a model, and wait until it is ready."""

    def restart(
        self, model: str, force: bool, pid: int | None, node: str | None, requester: Requester
    ) -> Response:
        """Stop a model, or only its backend with the given PID, and start the model again."""

    def backends(
        self, model: str | None, fresh: bool, query: Mapping[str, str], requester: Requester
    ) -> Response:
        """List backends. The query may have `node`, `limit` and `after`."""

    def gpus(self, query: Mapping[str, str], requester: Requester) -> Response:
        """List GPUs. The query may have `node`."""

    def targets(self) -> Response:
        """List the nodes, for Prometheus."""

    def urls(self) -> Mapping[str, str | None]:
        """Return the HTTP URL of each node, by its name; None if other machines cannot reach it."""


def refuse_other_node(query: Mapping[str, str], cluster: ClusterView | None) -> None:
    """Refuse a request whose `node` is another node, where each node answers only for itself.

    Raises:
        InvalidRequest: `node` names another node; the message has the URL to ask.
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
