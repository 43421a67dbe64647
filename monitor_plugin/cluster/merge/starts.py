"""Starts or restarts a model on the nodes that should run it, and merges the outcomes."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from ...api.cluster_view import NODE_HEADER
from ...api.errors import ErrorAnswer, with_load_fields
from ...api.results import Response, loaded_response
from ...domain.errors import (
    InvalidRequest,
    MonitorError,
    NodeForbidden,
    NodeUnreachable,
    StartFailed,
)
from ..peers.directory import PeerDirectory
from ..requests.client import PeerClient, PeerResult, older_version, outcome_unknown
from ..requests.local_node import LocalNode
from ..transport.messages import (
    CLAIMED,
    LISTED,
    LOADED,
    OUTCOMES,
    POSSIBLE,
    STARTABLE,
    Reply,
    Request,
    with_headers,
)
from ..transport.nats_link import NatsLink
from .outcomes import merge_failures, only_answer, outcome_of
from .readings import answer_of, join_names

# The states of nodes that may start a model, the best one first.
_STARTERS = (STARTABLE, POSSIBLE, LISTED)
# Maximum wait for other nodes that claim a start, and the time between two requests to them.
_MAX_CLAIM_SECONDS = 10.0
_CLAIM_POLL_SECONDS = 0.1


class _Offers(NamedTuple):
    """The results of requests for offers.

    Attributes:
        offers: the offers, this node's first.
        lost: the errors of nodes that are known to have the model.
        failed: the errors of other nodes.
    """

    offers: list[PeerResult]
    lost: list[PeerResult]
    failed: list[PeerResult]


class ClusterStarts:
    """Loads and restarts models, on the threads of the HTTP server.

    Each node is asked what it knows of the model, and makes an offer. The request then accepts the
    offers of the nodes that should run the model. An announcement of the models that hosts know
    would be out of date as soon as a host's configuration changes.

    Args:
        local_node: starts models on this node.
        link: the connection to NATS.
        client: sends requests to the other nodes.
        directory: the other nodes.
    """

    def __init__(
        self, local_node: LocalNode, link: NatsLink, client: PeerClient, directory: PeerDirectory
    ) -> None:
        self._local_node = local_node
        self._link = link
        self._client = client
        self._directory = directory

    def start(self, request: Request, node: str | None) -> Response:
        """Load or restart a model, and return the response of the node, or of all nodes together.

        Args:
            request: the load or the restart.
            node: the node to start the model on; None: a node that has the model, or else one that
                knows it. Without `node`, a restart is done on every node that has the model.

        Raises:
            InvalidRequest: several other nodes know the model, or a PID could be that of several.
            StartFailed: no node knows the model.
            ClusterError: the only chosen node gave no answer.
        """
        local = self._local_node
        loads = request.operation == "load" and node is None
        if node == local.node or (loads and local.is_loaded(request.model or "")):
            return answer_of(local.answer(request))
        if node is None:
            with contextlib.ExitStack() as claims:
                chosen = self._choose(request, claims)
                if all(each.node != local.node for each in chosen):
                    claims.close()
                return self._merge(request, self._run(chosen, request))
        (result,) = self._link.run(self._client.start_offers([node], request))
        return self._merge(request, self._run([_checked_offer(result)], request))

    def _choose(self, request: Request, claims: contextlib.ExitStack) -> list[PeerResult]:
        """Return the offers to accept, and the errors of nodes that perhaps have the model.

        Args:
            request: the load or the restart.
            claims: keeps this node's claim, if this node is chosen to start the model.
        """
        model, local = request.model or "", self._local_node
        offers, lost, failed = self._settle_claims(request, claims)
        loaded = [each for each in offers if _state(each) == LOADED]
        loaded = loaded or [each for each in offers if _state(each) == CLAIMED]
        if request.pid is not None and len(loaded) + len(lost) > 1:
            raise InvalidRequest(
                f"model {model!r} is on the nodes {_names(loaded + lost)}, and a PID is that of "
                "one node: say which, by node=NAME"
            )
        if loaded and request.operation == "load":
            return loaded[:1]
        if loaded or lost:
            return loaded + lost
        if found := self._find_starter(model, offers):
            return [found]
        if failed:
            raise _nobody_knows(model, failed)
        if not self._link.connected:
            raise NodeUnreachable(
                f"no host of node {local.node!r} knows how to start model {model!r}, and no other "
                f"node can be asked: it is not connected to NATS ({self._link.servers})"
            )
        why = "no host of any node knows how to start it"
        ended = local.describe_last_exit(model)
        raise StartFailed(model, f"{why}; {ended}" if ended else why)

    def _find_starter(self, model: str, offers: Sequence[PeerResult]) -> PeerResult | None:
        """Return this node's offer, or that of the one node that knows the model."""
        for state in _STARTERS:
            found = [each for each in offers if _state(each) == state]
            if len(found) > 1 and found[0].node != self._local_node.node:
                raise InvalidRequest(
                    f"the nodes {_names(found)} know model {model!r}, and node "
                    f"{self._local_node.node!r} does not: say which is to start it, by node=NAME"
                )
            if found:
                return found[0]
        return None

    def _settle_claims(self, request: Request, claims: contextlib.ExitStack) -> _Offers:
        """Request the offers of all nodes, until no other node claims the start.

        Nodes that know a model, and are asked to start it at the same time, must not all start it.
        Each node claims the start before it asks the other nodes. So of two nodes at least one sees
        the claim of the other. A node that sees a claim cannot know whether its own claim was seen.
        Therefore it waits until the other node has decided. A node with the greater name gives up
        its own claim before it waits.
        """
        model, local = request.model or "", self._local_node
        deadline = time.monotonic() + _MAX_CLAIM_SECONDS
        is_claimed = local.start_state(model) in _STARTERS
        if is_claimed:
            claims.enter_context(local.claim(model))
        while True:
            found = self._request_offers(request)
            rivals = [each.node for each in found.offers if _state(each) == CLAIMED]
            is_loaded = any(_state(each) == LOADED for each in found.offers)
            knows = _state(found.offers[0]) in _STARTERS
            if is_loaded or time.monotonic() > deadline:
                return found
            if rivals:
                if min(rivals) < local.node:
                    claims.close()
                    is_claimed = False
                time.sleep(_CLAIM_POLL_SECONDS)
            elif is_claimed or not knows:
                return found
            else:
                claims.enter_context(local.claim(model))
                is_claimed = True

    def _request_offers(self, request: Request) -> _Offers:
        """Request the offers of all nodes once."""
        model, local = request.model or "", self._local_node
        peers = {each.name: each for each in self._directory.peers()}
        future = self._link.submit(self._client.start_offers([*peers], request))
        own = Reply(local.node, local.run, "offer", state=local.start_state(model))
        offers, lost, failed = [PeerResult(local.node, own)], [], []
        for result in map(_checked_offer, future.result()):
            if result.error is None:
                offers.append(result)
            elif isinstance(result.error, InvalidRequest):
                continue  # the node has left the cluster
            elif model in peers[result.node].models:
                lost.append(_lost_holder(result, model))
            else:
                failed.append(result)
        return _Offers(offers, lost, failed)

    def _run(self, chosen: Sequence[PeerResult], request: Request) -> list[PeerResult]:
        """Accept the offers at the same time; return the outcomes, and the errors among them."""
        local = self._local_node
        offers = [each.reply for each in chosen if each.reply is not None]
        remote = [each for each in offers if each.run != local.run]
        results = [each for each in chosen if each.error is not None]
        future = self._link.submit(self._accept(remote, request))
        if len(remote) < len(offers):
            results.append(PeerResult(local.node, local.answer(request)))
        try:
            return results + future.result()
        except MonitorError:  # this monitor is closing, and the nodes may go on
            reason = f"the monitor of node {local.node!r} closed before it answered"
            return results + [
                PeerResult(each.node, error=outcome_unknown(each.node, request, reason))
                for each in remote
            ]

    async def _accept(self, offers: Sequence[Reply], request: Request) -> list[PeerResult]:
        return await asyncio.gather(*(self._client.accept(each, request) for each in offers))

    def _merge(self, request: Request, results: Sequence[PeerResult]) -> Response:
        if len(results) == 1:
            answer = only_answer(results[0])
            return answer if answer.status == 200 else with_load_fields(answer)
        model, success = request.model or "", OUTCOMES[request.operation]
        results = sorted(results, key=lambda each: each.node)
        done = [each for each in results if outcome_of(each) == success]
        failed = [each for each in results if outcome_of(each) != success]
        headers = {NODE_HEADER: join_names([each.node for each in results])}
        if not failed:
            return with_headers(loaded_response(model, success), headers)
        where = f"it was {success} on {_names(done)}" if done else None
        unnamed = StartFailed(model, "")
        return with_load_fields(merge_failures(model, failed, where, unnamed, headers))


def _state(offer: PeerResult) -> str | None:
    return offer.reply.state if offer.reply else None


def _names(results: Sequence[PeerResult]) -> str:
    return ", ".join(sorted(each.node for each in results))


def _checked_offer(result: PeerResult) -> PeerResult:
    """Replace a reply that is no offer of a start by an error."""
    node, reply, _ = result
    if reply is None or reply.state is not None:
        return result
    if reply.answer is not None:
        error = msgspec.json.decode(reply.answer.body, type=ErrorAnswer).error
        if error.type != "model_not_loaded":
            return PeerResult(node, error=NodeUnreachable(error.message, [node]))
    return PeerResult(node, error=older_version(node))


def _lost_holder(result: PeerResult, model: str) -> PeerResult:
    """Describe a node that is known to have a model, and that makes no offer."""
    error = result.error
    message = (
        f"{error}; it had model {model!r} when it last said so: to start the model on another "
        "node, say which, by node=NAME"
    )
    kind = NodeForbidden if isinstance(error, NodeForbidden) else NodeUnreachable
    return PeerResult(result.node, error=kind(message, [result.node]))


def _nobody_knows(model: str, failed: Sequence[PeerResult]) -> NodeUnreachable | NodeForbidden:
    """Make the error if no node that answered knows a model, and if some did not answer."""
    first, *others = sorted(failed, key=lambda each: each.node)
    message = f"no node that answered knows how to start model {model!r}; {first.error}"
    if others:
        message += f"; nor can these be asked: {join_names([each.node for each in others])}"
    is_forbidden = all(isinstance(each.error, NodeForbidden) for each in failed)
    kind = NodeForbidden if is_forbidden else NodeUnreachable
    return kind(message, [each.node for each in failed])
