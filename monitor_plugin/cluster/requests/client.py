"""Requests to the nodes of the cluster, and the errors of those that do not reply."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple
from urllib.parse import quote

from msgspec.structs import replace

from ...concurrency.blocking import BlockingObserver
from ...domain.errors import (
    ClusterError,
    InvalidRequest,
    MonitorError,
    NodeForbidden,
    NodeUnreachable,
    OutcomeUnknown,
)
from ..peers.directory import Peer, PeerDirectory
from ..transport.messages import Reply, Request
from ..transport.nats_link import NatsLink
from ..transport.pending_requests import Failure, PendingRequest, Replies, collect_replies
from ..transport.subjects import Subjects
from .local_node import LocalNode

# Maximum wait for a node whose `Peer.silent` is true.
SILENT_SECONDS = 0.25
# Maximum wait for offers. Offers expire after 10 s, so a slow node must not delay the shutdown on
# the other nodes, nor the start on one of them.
_OFFERS_SECONDS = 5.0
# Maximum wait, after a shutdown, for nodes that still have the model.
_RECHECK_SECONDS = 1.0
# Minimum time after which a node that stops or starts a model counts as silent: it replies every
# second.
_MIN_WORK_SECONDS = 3.0
# Maximum wait for a node that sends replies of kind `working`.
_MAX_WORK_SECONDS = 3600.0


class _Verb(NamedTuple):
    """A verb for messages about an operation, and its past participle."""

    infinitive: str
    participle: str


_STOP = _Verb("stop", "stopped")
_VERBS = {
    "shutdown": _STOP,
    "load": _Verb("start", "started"),
    "restart": _Verb("restart", "restarted"),
}


class PeerResult(NamedTuple):
    """The result of a request to one node: its reply, or an error if it gave none.

    Attributes:
        node: the name of the node; empty if it is not known which node should have replied.
    """

    node: str
    reply: Reply | None = None
    error: MonitorError | None = None


class PeerClient:
    """Sends requests to nodes. All methods but `read_nodes` run on the link's event loop.

    A request ends within `timeout_seconds`. Only `accept` takes as long as the operation.

    Args:
        local_node: answers for this node.
        link: the connection to NATS.
        subjects: the subjects of the cluster.
        directory: the other nodes.
        timeout_seconds: how long a node may take to answer; also how long it may be silent while it
            stops or starts a model, but at least 3 s.
        blocking: is entered while a thread waits for readings or lists.
    """

    def __init__(
        self,
        local_node: LocalNode,
        link: NatsLink,
        subjects: Subjects,
        directory: PeerDirectory,
        timeout_seconds: float,
        blocking: BlockingObserver,
    ) -> None:
        self._local_node = local_node
        self._link = link
        self._subjects = subjects
        self._directory = directory
        self.timeout_seconds = timeout_seconds
        self._blocking = blocking

    def read_nodes(
        self,
        requests: Mapping[str, Request],
        first_seconds: float = math.inf,
        seconds: float = math.inf,
    ) -> list[PeerResult]:
        """Request readings or lists of several nodes at the same time, and wait for them.

        Args:
            requests: the request to each node, by the node's name. The request to this node is
                answered on the caller's thread.
            first_seconds: maximum wait for a node's first reply, which may be of kind `working`.
            seconds: maximum wait for a node's answer.
        """
        local = self._local_node.node
        futures = {
            node: self._link.submit(
                self._request_node(
                    self._subjects.read_node(node), node, request, first_seconds, seconds
                )
            )
            for node, request in requests.items()
            if node != local
        }
        results = []
        if local in requests:
            results.append(PeerResult(local, self._local_node.answer(requests[local])))
        for node, future in futures.items():
            try:
                with self._blocking:
                    results.append(future.result())
            except MonitorError as error:  # the monitor is closing
                results.append(PeerResult(node, error=error))
        return sorted(results, key=lambda each: each.node)

    async def request_holders(
        self, model: str, request: Request, seconds: float = math.inf
    ) -> list[PeerResult] | None:
        """Send a request to every node that has a model, also if no node is known to have it.

        Returns:
            A result of each node that replied; an error for a node that replied only that it works
            on the request. None if no node has the model.

        Raises:
            NodeUnreachable: it is unknown whether a node has the model.
            NodeForbidden: NATS does not let this node send the request.
        """
        subject = self._subjects.read_model(model)
        try:
            replies, failure, working = await self._request(
                subject, request, (), math.inf, seconds, accept_others=True
            )
        except ClusterError as error:
            raise _nothing_sent(model, error) from None
        for reply in replies:
            has_model = reply.answer is not None and reply.answer.status == 200
            self._directory.record_reply(reply.node, model if has_model else None)
        if replies or working:
            late = [self._no_reply(each, failure, subject, verb=None) for each in working]
            return [*map(self._result, replies), *late]
        if failure is Failure.NO_RESPONDERS:
            return None
        if failure is Failure.FORBIDDEN:
            raise _no_reply_error("", failure, subject, verb=None)
        if failure is Failure.LOST:
            reason = "the connection to NATS ended while it was asked; ask again"
        else:  # if no node subscribed, NATS would have said so immediately, unless it hangs
            reason = (
                "nobody answers: a node that has it hangs, and had not said its name, or NATS "
                "does; GET /cluster/targets lists those that have"
            )
        raise NodeUnreachable(f"whether model {model!r} is loaded on a node is unknown: {reason}")

    async def still_loaded(self, model: str, request: Request) -> list[Reply]:
        """Return the replies of the nodes that still have a model; none without NATS."""
        try:
            results = await self.request_holders(model, request, _RECHECK_SECONDS) or []
            return [each.reply for each in results if each.reply]
        except ClusterError:
            return []

    async def offer(self, node: str, request: Request, seconds: float = math.inf) -> PeerResult:
        """Request an offer from one node. `seconds` is the maximum wait."""
        subject = self._subjects.shutdown_node(node)
        return await self._request_node(subject, node, request, seconds=seconds)

    async def offers(
        self, model: str, request: Request, holders: Sequence[Peer], first_seconds: float
    ) -> list[PeerResult]:
        """Request offers to stop a model from every node that has it, for about 5 s at most.

        Args:
            model: the model's name.
            request: the request.
            holders: the nodes that are known to have the model.
            first_seconds: maximum wait for the first reply of each holder.

        Returns:
            A result of each node that replied, and of each holder. A result without a node's name
            says why it is unknown which nodes have the model.
        """
        subject = self._subjects.shutdown_model(model)
        awaited = [each for each in holders if not each.silent] or holders
        try:
            replies, failure, _ = await self._request(
                subject, request, awaited, first_seconds, _OFFERS_SECONDS, accept_others=True
            )
        except ClusterError as error:
            unsent = [_not_sent(each.name, error) for each in holders]
            return unsent or [PeerResult("", error=_nothing_sent(model, error))]
        results = [self._result(each) for each in replies]
        replied = {each.node for each in results}
        # A holder that has just lost the model does not get requests on the model's subject any
        # more. So the request is sent again, to the node itself.
        may_lack_model = failure in (None, Failure.NO_RESPONDERS)
        send_again = []
        for peer in holders:
            if peer.name in replied:
                continue
            if may_lack_model or peer not in awaited:
                send_again.append(peer.name)
            else:
                results.append(self._no_reply(peer.name, failure, subject, verb=_STOP))
        # The wait is short if other nodes have replied, because their offers expire.
        seconds = _OFFERS_SECONDS if failure is Failure.NO_RESPONDERS else SILENT_SECONDS
        results += await asyncio.gather(
            *(self.offer(each, request, seconds) for each in send_again)
        )
        if not results and failure is not Failure.NO_RESPONDERS:
            results.append(self._no_reply("", failure, subject, verb=_STOP))
        return results

    async def start_offers(self, nodes: Sequence[str], request: Request) -> list[PeerResult]:
        """Request offers to load or to restart a model from several nodes, for about 5 s at most.

        Args:
            nodes: the names of the nodes.
            request: the load or the restart.

        Returns:
            The result of each node. A reply has no state if the node runs an older version.
        """
        asked = replace(request, operation="offer", action=request.operation)
        return await asyncio.gather(*(self.offer(each, asked, _OFFERS_SECONDS) for each in nodes))

    async def accept(self, offer: Reply, request: Request) -> PeerResult:
        """Accept a node's offer, and wait for the answer for as long as the node says it works.

        If there is no answer, the error is `OutcomeUnknown`; but not if the request certainly did
        not reach the node.

        Args:
            offer: the offer.
            request: the shutdown, load or restart.
        """
        subject = self._subjects.shutdown_now(offer.node, offer.run)
        accepted = replace(request, offer=offer.offer)
        try:
            async with self._link.requests.send(subject, accepted) as pending:
                return await self._await_outcome(pending, offer.node, request)
        except ClusterError as error:
            return _not_sent(offer.node, error)

    async def _await_outcome(
        self, pending: PendingRequest, node: str, request: Request
    ) -> PeerResult:
        """Wait until a node has carried out an operation or reports a failure."""
        deadline = time.monotonic() + _MAX_WORK_SECONDS
        silence_seconds = min(max(self.timeout_seconds, _MIN_WORK_SECONDS), _MAX_WORK_SECONDS)
        is_working = False
        reason = f"is still at it after {_MAX_WORK_SECONDS:g} s"
        while time.monotonic() <= deadline:
            received = await pending.next(silence_seconds)
            if isinstance(received, Reply) and received.kind in ("answer", "working"):
                starts = request.operation != "shutdown"
                has_model = starts and received.answer is not None and received.answer.status == 200
                self._directory.record_reply(node, request.model if has_model else None)
                if received.kind == "answer":
                    return PeerResult(node, received)
                is_working = True
                continue
            if isinstance(received, Reply):
                reason = "gave an answer that cannot be understood"
            elif received is None:
                self._directory.record_silence(node)
                reason = f"has said nothing for {silence_seconds:g} s"
            elif received is Failure.LOST or is_working:
                reason = "cannot be heard, as the connection to NATS ended"
            else:
                verb = _VERBS[request.operation]
                return self._no_reply(node, received, pending.subject, verb=verb)
            break
        return PeerResult(node, error=outcome_unknown(node, request, reason))

    async def _request_node(
        self,
        subject: str,
        node: str,
        request: Request,
        first_seconds: float = math.inf,
        seconds: float = math.inf,
    ) -> PeerResult:
        known = self._directory.get(node)
        try:
            replies, failure, _ = await self._request(
                subject,
                request,
                [known or Peer(node)],
                first_seconds,
                seconds,
                accept_others=False,
            )
        except ClusterError as error:
            return _not_sent(node, error)
        if replies:
            return self._result(replies[0])
        if known is None and failure is Failure.NO_RESPONDERS:
            names = ", ".join(each.name for each in self._directory.peers()) or "none"
            absent = InvalidRequest(
                f"there is no node {node!r} in the cluster; the others that are known: {names}"
            )
            return PeerResult(node, error=absent)
        # The last nodes of a long list get less time than `timeout_seconds`. They are not silent.
        is_cut = min(first_seconds, seconds) < self.timeout_seconds
        is_silent = not (is_cut and request.operation == "backends")
        verb = _VERBS[request.action or "shutdown"] if request.operation == "offer" else None
        return self._no_reply(node, failure, subject, verb=verb, is_silent=is_silent)

    async def _request(
        self,
        subject: str,
        request: Request,
        expected: Sequence[Peer],
        first_seconds: float,
        seconds: float,
        *,
        accept_others: bool,
    ) -> Replies:
        """Send a request, and collect the replies as `collect_replies` does.

        Raises:
            ClusterError: there is no connection; nothing was sent.
        """
        seconds = min(seconds, self.timeout_seconds)
        first_seconds = min(first_seconds, seconds)
        if expected and all(each.silent for each in expected):
            first_seconds = min(first_seconds, SILENT_SECONDS)
        names = {each.name for each in expected}
        async with self._link.requests.send(subject, request) as pending:
            return await collect_replies(
                pending, names, first_seconds, seconds, accept_others=accept_others
            )

    def _result(self, reply: Reply) -> PeerResult:
        self._directory.record_reply(reply.node)
        if reply.kind == "invalid":
            return PeerResult(reply.node, error=invalid_reply(reply.node))
        return PeerResult(reply.node, reply)

    def _no_reply(
        self,
        node: str,
        failure: Failure | None,
        subject: str,
        *,
        verb: _Verb | None,
        is_silent: bool = True,
    ) -> PeerResult:
        """Make the result of a node that did not reply, and record its silence."""
        if is_silent and failure in (None, Failure.NO_RESPONDERS):
            self._directory.record_silence(node)
        return PeerResult(node, error=_no_reply_error(node, failure, subject, verb=verb))


def _no_reply_error(
    node: str, failure: Failure | None, subject: str, *, verb: _Verb | None
) -> ClusterError:
    """Make the error of a node that did not reply to a request for a reading or an offer.

    Args:
        node: the name of the node; empty if it is not known which node should have replied.
        failure: why it did not reply; None if the time has passed.
        subject: the subject of the request.
        verb: for a request for an offer: what the node was to offer; None for another request.
    """
    nodes = [node] if node else []
    if failure is Failure.FORBIDDEN:
        return NodeForbidden(
            f"NATS does not let this node publish to {subject}: its NATS user may not "
            f"{verb.infinitive if verb else 'read'} models on other nodes"
            f"{f'; nothing was {verb.participle} there' if verb else ''}",
            nodes,
        )
    if failure is Failure.LOST:
        reason = "the connection to NATS ended while it was asked"
    elif failure is Failure.NO_RESPONDERS:
        reason = "it is not connected to NATS: its monitor ended, or its link is down"
    else:
        reason = "it does not answer in time: it hangs, or its link is down"
    if not node:
        return NodeUnreachable(
            f"no node could be found that has the model, nor that none has: {reason}; ask again, "
            "or GET /backends"
        )
    message = f"node {node!r} cannot be reached: {reason}"
    if verb:
        message += (
            f"; it was not told to {verb.infinitive} anything, and what runs there is unknown: ask "
            f"GET /backends?node={quote(node)}"
        )
    return NodeUnreachable(message, nodes)


def invalid_reply(node: str) -> NodeUnreachable:
    """Make the error of a node whose reply is invalid."""
    return NodeUnreachable(
        f"node {node!r} gave an answer that cannot be understood, or is too large: it may be of "
        "another version",
        [node],
    )


def outcome_unknown(node: str, request: Request, reason: str) -> OutcomeUnknown:
    """Make the error of a node that accepted a request, and whose answer did not come.

    Args:
        node: the name of the node.
        request: the shutdown, load or restart.
        reason: why the answer did not come, as a clause whose subject is the node.
    """
    verb, model = _VERBS[request.operation], request.model or ""
    return OutcomeUnknown(
        f"the outcome is unknown: node {node!r} was told to {verb.infinitive} model {model!r}, and "
        f"{reason}; it may have {verb.participle} it or not: ask {where_to_ask(node, model)}",
        [node],
    )


def older_version(node: str) -> NodeUnreachable:
    """Make the error of a node that does not know how to start models."""
    return NodeUnreachable(
        f"node {node!r} runs an older version of monitor-plugin, which starts no models; nothing "
        "was started there",
        [node],
    )


def where_to_ask(node: str, model: str) -> str:
    """Return the HTTP requests that show whether a node, or any if `node` is "", has a model."""
    model, node = quote(model, safe=""), quote(node)
    if not node:
        return f"GET /backend/monitor?model={model}, or GET /backends"
    return f"GET /backend/monitor?model={model}&node={node}, or GET /backends?node={node}"


def _not_sent(node: str, error: ClusterError) -> PeerResult:
    return PeerResult(
        node, error=NodeUnreachable(f"node {node!r} cannot be asked: {error}", [node])
    )


def _nothing_sent(model: str, error: ClusterError) -> NodeUnreachable:
    return NodeUnreachable(
        f"model {model!r} is not loaded here, and no other node can be asked: {error}"
    )
