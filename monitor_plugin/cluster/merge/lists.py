"""`/backends` of a whole cluster: every node's list, put together, or page by page."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Annotated

import msgspec

from ...api.cluster_schemas import NodeItem
from ...api.cluster_view import NODE_HEADER
from ...api.results import Response, encode
from ...api.schemas import Machine
from ...backends.registry import ENDS_KEPT
from ...domain.errors import ClusterError, InvalidRequest
from ..peers.directory import PeerDirectory
from ..requests import faults
from ..requests.client import SILENT_SECONDS, PeerClient, PeerResult
from ..requests.local_node import LocalNode
from ..transport.messages import Request
from ..transport.nats_link import NatsLink
from .readings import answer_of, names_of

MOST_LIMIT = 10_000
# How long a node that says that it is at it may take, however late it was asked.
_AT_WORK_SECONDS = 2.0
# How many nodes are asked at once: as many lists are held besides what was put together of them.
_NODES_AT_ONCE = 16


class _NodesList(msgspec.Struct, frozen=True):
    """A node's answer, whose items stay as the node encoded them."""

    backends: list[msgspec.Raw]
    ended: list[msgspec.Raw]
    machine: Machine | None


class _Item(msgspec.Struct, frozen=True):
    model: str
    pid: int
    node: str


class _End(msgspec.Struct, frozen=True):
    model: str
    pid: int
    cause: str
    ended_at: Annotated[datetime, msgspec.Meta(tz=True)]
    node: str


class _Known(msgspec.Struct, frozen=True):
    """What is needed of the items, here and by whoever asked."""

    backends: list[_Item]
    ended: list[_End]


class _Rest(msgspec.Struct, frozen=True, kw_only=True):
    """`ClusterBackendsAnswer` but for its `backends`."""

    ended: list[msgspec.Raw]
    machine: Machine | None
    nodes: list[NodeItem]
    next: str | None
    cluster_error: str | None


class _Page:
    """What is put together, node by node.

    Args:
        limit: how many backends it takes; None for all.
    """

    def __init__(self, limit: int | None) -> None:
        self._limit = limit
        self._body = bytearray(b'{"backends":[')
        self._ended: list[tuple[datetime, msgspec.Raw]] = []
        self._nodes: list[NodeItem] = []
        self._machine: Machine | None = None
        self._found = 0
        self._last = ""
        self._is_full = False
        self._more = False

    def add(self, result: PeerResult, url: str | None, is_asked: bool) -> bool:
        """Add a node's list, and say whether the page is full now.

        Args:
            result: its list, or why there is none.
            url: where its HTTP is reached.
            is_asked: whether it is the node that was asked for all of them.
        """
        found, known, error = _list_of(result)
        room = None if self._limit is None else self._limit - self._found
        taken = found.backends[:room]
        if taken:
            self._body += b"," if self._found else b""
            self._body += b",".join(taken)
            self._found += len(taken)
            self._last = f"{result.node}/{known.backends[len(taken) - 1].pid}"
        self._is_full = self._found == self._limit
        self._more = len(taken) < len(found.backends)
        ended = zip((each.ended_at for each in known.ended), found.ended, strict=True)
        self._ended = sorted([*self._ended, *ended], key=lambda each: each[0], reverse=True)
        del self._ended[ENDS_KEPT:]
        if self._machine is None or is_asked:
            self._machine = found.machine
        self._nodes.append(
            NodeItem(
                node=result.node,
                url=url,
                backends=len(taken),
                machine=found.machine,
                error=error,
            )
        )
        return self._is_full

    def answer(self, nodes_follow: bool, cluster_error: str | None) -> Response:
        """Give the answer.

        Args:
            nodes_follow: whether there are nodes that were not asked.
            cluster_error: why other nodes are perhaps not known of.
        """
        goes_on = self._is_full and (self._more or nodes_follow)
        rest = encode(
            _Rest(
                ended=[each for _, each in self._ended],
                machine=self._machine,
                nodes=self._nodes,
                next=self._last if goes_on else None,
                cluster_error=cluster_error,
            )
        )
        self._body += b"]," + rest[1:]
        names = names_of([each.node for each in self._nodes if each.error is None])
        return Response(200, bytes(self._body), {NODE_HEADER: names} if names else {})


class ClusterLists:
    """Lists backends of all nodes.

    Args:
        local_node: this node's answers.
        link: the connection to the others.
        asking: asks them.
        directory: which there are.
    """

    def __init__(
        self, local_node: LocalNode, link: NatsLink, asking: PeerClient, directory: PeerDirectory
    ) -> None:
        self._local_node = local_node
        self._link = link
        self._asking = asking
        self._directory = directory

    def backends(
        self,
        ask: Request,
        node: str | None,
        query: Mapping[str, str],
        urls: Mapping[str, str | None],
    ) -> Response:
        """List them: all, or what `limit` and `after` of the query say.

        Nodes are asked some at a time, so that no backend is held twice for long.

        Args:
            ask: what to ask each node.
            node: of which alone; None for all.
            query: the request's.
            urls: all nodes, and where their HTTP is reached.

        Raises:
            NodeUnreachable: the one node that was asked for does not answer.
            InvalidRequest: there is no such node, or the query is wrong.
        """
        limit, after_node, after_pid = _page(query)
        names = [each for each in sorted(urls if node is None else [node]) if each >= after_node]
        if limit is not None:  # one more than fits, by which it is seen whether there is more
            ask = msgspec.structs.replace(ask, limit=limit + 1)
        page, is_full = _Page(limit), False
        until, left = time.monotonic() + self._asking.patience_seconds, math.inf
        while names and not is_full:
            now, names = names[:_NODES_AT_ONCE], names[_NODES_AT_ONCE:]
            asks = dict.fromkeys(now, ask)
            if after_node in asks:
                asks[after_node] = msgspec.structs.replace(ask, after_pid=after_pid)
            for result in self._ask(asks, left):
                if node is not None and result.error is not None:
                    raise result.error
                if node is not None and result.reply and answer_of(result.reply).status != 200:
                    return answer_of(result.reply)
                if is_full:
                    names = [result.node]
                    break
                is_full = page.add(
                    result, urls.get(result.node), result.node == self._local_node.node
                )
            # All together have about as long as one would: those that hang could be many.
            left = until - time.monotonic()
        error = None
        if node is None and not self._link.connected:
            error = (
                f"node {self._local_node.node!r} is not connected to NATS ({self._link.servers}): "
                "which other nodes there are, and what they have, is known from before at best"
            )
        return page.answer(nodes_follow=bool(names), cluster_error=error)

    def _ask(self, asks: Mapping[str, Request], left: float) -> Sequence[PeerResult]:
        first_seconds, seconds = max(SILENT_SECONDS, left), max(_AT_WORK_SECONDS, left)
        others = {
            name: self._link.submit(self._asking.read(name, ask, first_seconds, seconds))
            for name, ask in asks.items()
            if name != self._local_node.node
        }
        results = []
        for name, ask in asks.items():
            if name not in others:
                results.append(PeerResult(name, self._local_node.backends(ask), None))
                continue
            try:
                results.append(others[name].result())
            except ClusterError as error:  # the monitor is closing
                results.append(PeerResult(name, None, error))
        return results


def _list_of(result: PeerResult) -> tuple[_NodesList, _Known, str | None]:
    """Decode a node's list, and say what is wrong where there is none."""
    error = str(result.error)
    answer = result.reply.answer if result.reply else None
    if answer is not None and answer.status == 200:
        try:
            answer.body.decode()  # what is not looked at must be UTF-8 too
            found = msgspec.json.decode(answer.body, type=_NodesList)
            known = msgspec.json.decode(answer.body, type=_Known)
            senders = {each.node for each in known.backends} | {each.node for each in known.ended}
            if senders <= {result.node}:
                return found, known, None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            pass
        error = str(faults.nonsense(result.node))
    elif answer is not None:
        error = "it answered with an error; its log says more"
    return _NodesList([], [], None), _Known([], []), error


def _page(query: Mapping[str, str]) -> tuple[int | None, str, int]:
    """Read `limit` and `after`: how many, and after which node and PID."""
    text = query.get("limit")
    after = query.get("after", "")
    if text is None and not after:
        return None, "", 0
    text = str(MOST_LIMIT) if text is None else text
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:9]) <= MOST_LIMIT):
        raise InvalidRequest(f"limit={text!r} is no number from 1 to {MOST_LIMIT}")
    node, _, pid = after.rpartition("/")
    if after and not (node and pid.isascii() and pid.isdigit() and len(pid) < 12):
        raise InvalidRequest(f"after={after!r} is none: take `next` of an answer")
    return int(text), node, int(pid or 0)
