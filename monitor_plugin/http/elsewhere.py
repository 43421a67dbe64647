"""What the resources want of a cluster, which answers for other nodes as for this one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol

import falcon

from ..errors import InvalidRequest
from .wire import Answer

NODE_HEADER = "X-Monitor-Node"


class Asker(NamedTuple):
    """Who asks over HTTP: the token's name and role, and the client's address."""

    name: str
    role: str
    whence: str


class Elsewhere(Protocol):
    """The whole cluster, this node being one of it; `node` narrows to one.

    What cannot be answered is an answer too: an error.

    Attributes:
        node: this node's name.
    """

    node: str

    def monitor(self, model: str, pid: int | None, node: str | None, asker: Asker) -> Answer:
        """Read a model."""

    def shutdown(
        self, model: str, force: bool, pid: int | None, node: str | None, asker: Asker
    ) -> Answer:
        """Stop a model."""

    def backends(
        self, model: str | None, fresh: bool, query: Mapping[str, str], asker: Asker
    ) -> Answer:
        """List backends."""

    def targets(self) -> Answer:
        """List the nodes, for Prometheus."""

    def urls(self) -> Mapping[str, str | None]:
        """List the nodes, and where the HTTP of each is reached."""


class SaysWhichNode:
    """Middleware: what answers without the cluster says which node it was; to those let in."""

    def __init__(self, node: str) -> None:
        self._node = node

    def process_response(
        self, request: falcon.Request, response: falcon.Response, resource: object, succeeded: bool
    ) -> None:
        """Name this node, unless the answer names one."""
        caller = request.context.get("caller")  # none where the framework refused it at once
        if caller and response.get_header(NODE_HEADER) is None:
            response.set_header(NODE_HEADER, self._node)


class TargetsResource:
    """`/cluster/targets`: all nodes, for Prometheus' service discovery by HTTP."""

    def __init__(self, elsewhere: Elsewhere) -> None:
        self._elsewhere = elsewhere

    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        """Answer with the list."""
        give(response, self._elsewhere.targets())


def refuse_other_node(query: Mapping[str, str], elsewhere: Elsewhere | None) -> None:
    """Refuse to answer for another node where that node alone can.

    Raises:
        InvalidRequest: `node` names another; it says where to ask.
    """
    node = query.get("node")
    if elsewhere is None or node in (None, elsewhere.node):
        return
    urls = elsewhere.urls()
    if node not in urls:
        raise InvalidRequest(
            f"no node {node[:128]!r} is known; GET /cluster/targets lists those that are"
        )
    where = urls[node] or "an address that it does not tell"
    raise InvalidRequest(
        f"node {elsewhere.node!r} answers this for itself alone; ask node {node!r}, at {where}"
    )


def asker_of(request: falcon.Request) -> Asker:
    """Say who makes a request that was let in."""
    caller = request.context.caller
    whence = request.env.get("REMOTE_ADDR") or "unknown"
    return Asker(caller.name, caller.role.name.lower(), whence)


def give(response: falcon.Response, answer: Answer) -> None:
    """Answer a request with a whole answer."""
    response.status = falcon.code_to_http_status(answer.status)
    response.data = answer.body
    response.content_type = falcon.MEDIA_JSON
    response.set_headers(answer.headers)
