"""Merges the lists of backends of all nodes into one list, or into pages of it."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Annotated, NamedTuple, cast

import msgspec
from msgspec.structs import replace

from ...api.cluster_view import NODE_HEADER
from ...api.results import Response, encode
from ...api.schemas import (
    ClusterBackendsAnswer,
    ClusterGpusAnswer,
    GpuNodeItem,
    Machine,
    NodeBackendItem,
    NodeEndItem,
    NodeGpuItem,
    NodeItem,
    NodeModelItem,
    NodeRefusedItem,
)
from ...backends.refusals import MAX_REFUSALS
from ...backends.registry import MAX_EXITS
from ...domain.errors import InvalidRequest
from ...domain.models import LeftBehindProcess
from ..requests.client import SILENT_SECONDS, PeerClient, PeerResult, invalid_reply
from ..transport.messages import Request
from ..transport.nats_link import NatsLink
from .readings import answer_of, join_names

_MAX_LIMIT = 10_000
# Minimum wait for a node that has sent a reply of kind `working`, also after the deadline for all
# nodes.
_MIN_ANSWER_SECONDS = 2.0
# Maximum number of nodes that are asked at the same time. It limits the lists in memory, too.
_NODES_AT_ONCE = 16


class _RawList(msgspec.Struct, frozen=True):
    """A node's list. The items stay encoded, because a node of another version has other fields."""

    backends: list[msgspec.Raw]
    ended: list[msgspec.Raw]
    machine: Machine | None
    refused: list[msgspec.Raw] = []
    gpus: list[msgspec.Raw] = []
    models: list[msgspec.Raw] = []


class _RawGpus(msgspec.Struct, frozen=True):
    """The GPUs of a node; None: it runs an older version, which does not list them."""

    gpus: list[msgspec.Raw] | None = None


class _ListedBackend(msgspec.Struct, frozen=True):
    """The fields of `NodeBackendItem` that this module and the command line need."""

    model: str
    pid: int
    created_at: datetime
    uptime_seconds: float
    node: str


class _End(msgspec.Struct, frozen=True):
    """The fields of `NodeEndItem` that this module and the command line need."""

    model: str
    pid: int
    created_at: datetime
    cause: str
    ended_at: Annotated[datetime, msgspec.Meta(tz=True)]
    node: str
    left_behind: list[LeftBehindProcess] | None = None


class _RawEnd(NamedTuple):
    """A backend that has ended.

    Attributes:
        ended_at: when it ended.
        has_left: whether processes that it left behind still run.
        item: the encoded item.
    """

    ended_at: datetime
    has_left: bool
    item: msgspec.Raw


class _Refused(msgspec.Struct, frozen=True):
    """The fields of `NodeRefusedItem`."""

    model: str
    pid: int
    address: str
    reason: str
    node: str


class _ListedGpu(msgspec.Struct, frozen=True):
    """The field of `NodeGpuItem` that this module needs."""

    node: str


class _ListedModel(msgspec.Struct, frozen=True):
    """The fields of `NodeModelItem` that this module and the command line need."""

    model: str
    state: str
    node: str


class _NodeList(msgspec.Struct):
    """A node's list, or the error if there is none.

    Attributes:
        backends, pids: the encoded backends, and their PIDs.
        ended: the backends that have ended.
        refused: the encoded registrations that the node has refused.
        gpus: the encoded GPUs.
        models: the encoded models of which no backend runs.
    """

    backends: list[msgspec.Raw] = []
    pids: list[int] = []
    ended: list[_RawEnd] = []
    refused: list[msgspec.Raw] = []
    gpus: list[msgspec.Raw] = []
    models: list[msgspec.Raw] = []
    machine: Machine | None = None
    error: str | None = None


class ClusterLists:
    """Lists the backends of all nodes.

    Args:
        node: the name of this node.
        link: the connection to NATS.
        client: sends requests to nodes.
    """

    def __init__(self, node: str, link: NatsLink, client: PeerClient) -> None:
        self._node = node
        self._link = link
        self._client = client

    def backends(
        self,
        request: Request,
        node: str | None,
        query: Mapping[str, str],
        urls: Mapping[str, str | None],
    ) -> Response:
        """List all backends, or the page that `limit` and `after` of the query select.

        Args:
            request: the request to each node.
            node: the only node to list; None for all.
            query: the query of the HTTP request.
            urls: the HTTP URL of each node, by its name.

        Raises:
            ClusterError: `node` did not answer.
            InvalidRequest: there is no node `node`, or the query is wrong.
        """
        limit, after_node, after_pid = _parse_page(query)
        names = [each for each in sorted(urls if node is None else [node]) if each >= after_node]
        if limit is not None:  # one backend more than fits shows whether there is a next page
            request = replace(request, limit=limit + 1)
        pages: list[msgspec.Raw] = []
        count = 0
        ended: list[_RawEnd] = []
        refused: list[msgspec.Raw] = []
        gpus: list[msgspec.Raw] = []
        models: list[msgspec.Raw] = []
        next_after: str | None = None
        machine: Machine | None = None
        nodes: list[NodeItem] = []
        for number, result in enumerate(self._read(names, request, after_node, after_pid), 1):
            if node is not None and result.error is not None:
                raise result.error
            if node is not None and result.reply and answer_of(result.reply).status != 200:
                return answer_of(result.reply)
            part = _decode(result)
            page = part.backends[: None if limit is None else limit - count]
            count += len(page)
            if page:
                # This copies the items, which are views of the node's whole body. A copy of each
                # item takes 20 MiB more for 5,000 backends.
                pages.append(msgspec.Raw(b",".join(page)))
            ended = sorted(ended + part.ended, key=lambda each: each.ended_at, reverse=True)
            ended = [*ended[:MAX_EXITS], *(each for each in ended[MAX_EXITS:] if each.has_left)]
            refused = (refused + part.refused)[:MAX_REFUSALS]
            gpus += part.gpus
            models += part.models
            if machine is None or result.node == self._node:
                machine = part.machine
            nodes.append(
                NodeItem(
                    node=result.node,
                    url=urls.get(result.node),
                    backends=len(page),
                    machine=part.machine,
                    error=part.error,
                )
            )
            if count == limit:
                if len(page) < len(part.backends) or number < len(names):
                    next_after = f"{result.node}/{part.pids[len(page) - 1]}"
                break
        answer = ClusterBackendsAnswer(
            # msgspec writes a `Raw` unchanged, also if it has several items, separated by commas.
            backends=cast("list[NodeBackendItem]", pages),
            ended=cast("list[NodeEndItem]", [each.item for each in ended]),
            refused=cast("list[NodeRefusedItem]", refused),
            gpus=cast("list[NodeGpuItem]", gpus),
            models=cast("list[NodeModelItem]", models),
            machine=machine,
            nodes=nodes,
            next=next_after,
            cluster_error=self._cluster_error() if node is None else None,
        )
        answered = join_names([each.node for each in nodes if each.error is None])
        return Response(200, encode(answer), {NODE_HEADER: answered} if answered else {})

    def gpus(self, request: Request, node: str | None, urls: Mapping[str, str | None]) -> Response:
        """List the GPUs of all nodes, or of one; the arguments and errors are those of `backends`.

        Raises:
            ClusterError: `node` did not answer.
            InvalidRequest: there is no node `node`.
        """
        gpus: list[msgspec.Raw] = []
        nodes: list[GpuNodeItem] = []
        for result in self._read(sorted(urls if node is None else [node]), request):
            if node is not None and result.error is not None:
                raise result.error
            if node is not None and result.reply and answer_of(result.reply).status != 200:
                return answer_of(result.reply)
            found, error = _decode_gpus(result)
            gpus += found
            nodes.append(GpuNodeItem(node=result.node, url=urls.get(result.node), error=error))
        answer = ClusterGpusAnswer(
            gpus=cast("list[NodeGpuItem]", gpus),
            nodes=nodes,
            cluster_error=self._cluster_error() if node is None else None,
        )
        answered = join_names([each.node for each in nodes if each.error is None])
        return Response(200, encode(answer), {NODE_HEADER: answered} if answered else {})

    def _read(
        self, names: Sequence[str], request: Request, after_node: str = "", after_pid: int = 0
    ) -> Iterator[PeerResult]:
        """Yield the result of each node in the order of names, some nodes at a time."""
        deadline, seconds = time.monotonic() + self._client.timeout_seconds, math.inf
        for start in range(0, len(names), _NODES_AT_ONCE):
            requests = dict.fromkeys(names[start : start + _NODES_AT_ONCE], request)
            if after_node in requests:
                requests[after_node] = replace(request, after_pid=after_pid)
            yield from self._client.read_nodes(
                requests, max(SILENT_SECONDS, seconds), max(_MIN_ANSWER_SECONDS, seconds)
            )
            # The deadline is that of all nodes together, because many could hang.
            seconds = deadline - time.monotonic()

    def _cluster_error(self) -> str | None:
        if self._link.connected:
            return None
        return (
            f"node {self._node!r} is not connected to NATS ({self._link.servers}): "
            "which other nodes there are, and what they have, is known from before at best"
        )


def _decode(result: PeerResult) -> _NodeList:
    """Decode a node's list, and check that every item is of that node."""
    answer = result.reply.answer if result.reply else None
    if answer is None:
        return _NodeList(error=str(result.error))
    if answer.status != 200:
        return _NodeList(error="it answered with an error; its log says more")
    try:
        answer.body.decode()  # the items' other fields must be UTF-8 too
        found = msgspec.json.decode(answer.body, type=_RawList)
        backends = [msgspec.json.decode(each, type=_ListedBackend) for each in found.backends]
        ended = [msgspec.json.decode(each, type=_End) for each in found.ended]
        refused = [msgspec.json.decode(each, type=_Refused) for each in found.refused]
        gpus = [msgspec.json.decode(each, type=_ListedGpu) for each in found.gpus]
        models = [msgspec.json.decode(each, type=_ListedModel) for each in found.models]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _NodeList(error=str(invalid_reply(result.node)))
    nodes = {each.node for items in (backends, ended, refused, gpus, models) for each in items}
    if nodes <= {result.node}:
        return _NodeList(
            found.backends,
            [each.pid for each in backends],
            [
                _RawEnd(each.ended_at, bool(each.left_behind), raw.copy())
                for each, raw in zip(ended, found.ended, strict=True)
            ],
            [raw.copy() for raw in found.refused],
            [raw.copy() for raw in found.gpus],
            [raw.copy() for raw in found.models],
            found.machine,
        )
    return _NodeList(error=str(invalid_reply(result.node)))


def _decode_gpus(result: PeerResult) -> tuple[Sequence[msgspec.Raw], str | None]:
    """Decode a node's GPUs, and check that they are of that node; return them and the error."""
    answer = result.reply.answer if result.reply else None
    if answer is None:
        return [], str(result.error)
    if answer.status != 200:
        return [], "it answered with an error; its log says more"
    try:
        answer.body.decode()
        gpus = msgspec.json.decode(answer.body, type=_RawGpus).gpus
        nodes = {msgspec.json.decode(each, type=_ListedGpu).node for each in gpus or ()}
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return [], str(invalid_reply(result.node))
    if gpus is None:
        return [], "it runs an older version of monitor-plugin, which does not list GPUs"
    if nodes <= {result.node}:
        return [each.copy() for each in gpus], None
    return [], str(invalid_reply(result.node))


def _parse_page(query: Mapping[str, str]) -> tuple[int | None, str, int]:
    """Parse `limit` and `after`.

    Returns:
        The maximum number of backends, None for all; and the node and PID of the last backend of
        the page before.
    """
    text = query.get("limit")
    after = query.get("after", "")
    if text is None and not after:
        return None, "", 0
    text = str(_MAX_LIMIT) if text is None else text
    is_number = text.isascii() and text.isdigit() and len(text) < 12
    if not (is_number and 1 <= int(text) <= _MAX_LIMIT):
        raise InvalidRequest(f"limit={text!r} is no number from 1 to {_MAX_LIMIT}")
    node, _, pid = after.rpartition("/")
    if after and not (node and pid.isascii() and pid.isdigit() and len(pid) < 12):
        raise InvalidRequest(f"after={after!r} is none: take `next` of an answer")
    return int(text), node, int(pid or 0)
