"""Stops a model on every node that has it, or on one, and merges the outcomes."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence

from msgspec.structs import replace

from ...api.cluster_view import NODE_HEADER
from ...api.results import (
    FREED_HEADER,
    PARTLY,
    VERIFIED_HEADER,
    Response,
    parse_freed,
    stopped_response,
)
from ...domain.errors import (
    ModelNotLoaded,
    MonitorError,
    OutcomeUnknown,
    ShutdownFailed,
)
from ...domain.freed import add_freed
from ...domain.models import Freed
from ..peers.directory import Peer
from ..requests.client import PeerClient, PeerResult, where_to_ask
from ..requests.local_node import LocalNode
from ..transport.messages import Request, with_headers
from ..transport.nats_link import NatsLink
from .outcomes import merge_failures, only_answer, outcome_of
from .readings import join_names

# Maximum wait for other nodes' offers if only this node is known to have the model. The stop here
# takes about as long, because the monitor watches whether the host restarts the model.
_NO_HOLDERS_SECONDS = 1.0


class ClusterShutdowns:
    """Stops models, on the threads of the HTTP server.

    Args:
        local_node: stops this node's models.
        link: the connection to NATS.
        client: sends requests to the other nodes.
    """

    def __init__(self, local_node: LocalNode, link: NatsLink, client: PeerClient) -> None:
        self._local_node = local_node
        self._link = link
        self._client = client

    def shutdown(
        self, request: Request, is_local: bool, holders: Sequence[Peer], one_peer: bool
    ) -> Response:
        """Stop a model, and merge the outcomes of all nodes into one response.

        Args:
            request: the shutdown.
            is_local: whether this node has the model.
            holders: the peers that are known to have the model.
            one_peer: whether to stop it only on the first of the holders.

        Raises:
            ModelNotLoaded: no node has the model.
            MonitorError: the only node to stop it gave no answer.
        """
        model = request.model or ""
        future = self._link.submit(
            self._stop_on_one(holders[0].name, request)
            if one_peer
            else self._stop_on_all(model, request, holders, is_local)
        )
        results = []
        if is_local:
            results.append(PeerResult(self._local_node.node, self._local_node.answer(request)))
        try:
            results += future.result()
        except MonitorError as error:  # the monitor is closing; peers may still stop the model
            for node in [each.name for each in holders] or [""]:
                where = f"on node {node!r}" if node else "on other nodes"
                unknown = OutcomeUnknown(
                    f"the outcome is unknown {where}: {error}; model {model!r} may have been "
                    "stopped there or not: ask another node's monitor "
                    f"{where_to_ask(node, model)}",
                    [node] if node else [],
                )
                results.append(PeerResult(node, error=unknown))
        return self._merge(model, results)

    async def _stop_on_one(self, node: str, request: Request) -> list[PeerResult]:
        offer = await self._client.offer(node, replace(request, operation="offer"))
        return [await self._accept(offer, request)]

    async def _stop_on_all(
        self, model: str, request: Request, holders: Sequence[Peer], is_local: bool
    ) -> list[PeerResult]:
        only_local = is_local and not holders
        first_seconds = _NO_HOLDERS_SECONDS if only_local else math.inf
        for_offers = replace(request, operation="offer")
        offers = await self._client.offers(model, for_offers, holders, first_seconds)
        if only_local:
            # No peer is known to have the model. So a result without a node's name is no failure.
            offers = [each for each in offers if each.node]
        results = list(await asyncio.gather(*(self._accept(each, request) for each in offers)))
        if any(each.reply for each in results):
            results += await self._still_loaded(model, request, offers)
        return results

    async def _accept(self, result: PeerResult, request: Request) -> PeerResult:
        """Accept an offer; return any other result as it is."""
        if result.reply is None or result.reply.kind != "offer":
            return result
        return await self._client.accept(result.reply, request)

    async def _still_loaded(
        self, model: str, request: Request, offers: Sequence[PeerResult]
    ) -> list[PeerResult]:
        """Find nodes that have the model and made no offer."""
        runs = {each.reply.run for each in offers if each.reply}
        reason = "a node has it that had not said so before: ask again"
        return [
            PeerResult(each.node, error=ShutdownFailed(model, f"{reason} ({each.node})"))
            for each in await self._client.still_loaded(model, replace(request, operation="loaded"))
            if each.run not in runs
        ]

    def _merge(self, model: str, results: Sequence[PeerResult]) -> Response:
        results = sorted(results, key=lambda each: each.node)
        if not results:
            ended = self._local_node.describe_last_exit(model)
            raise ModelNotLoaded(model, ended, on_any_node=True)
        stopped = [each.node for each in results if outcome_of(each) == "stopped"]
        failed = [
            each for each in results if outcome_of(each) not in ("stopped", "model_not_loaded")
        ]
        with_model = [each for each in results if outcome_of(each) != "model_not_loaded"] or results
        nodes = join_names([each.node for each in with_model if each.node])
        headers = {NODE_HEADER: nodes} if nodes else {}
        if stopped and not failed:
            is_partly_verified = any(map(_is_partly_verified, results))
            return with_headers(stopped_response(is_partly_verified, _freed(results)), headers)
        if not failed or len(results) == 1:
            return only_answer(results[0])
        done = f"it was stopped on {', '.join(stopped)}" if stopped else None
        return merge_failures(model, failed, done, ShutdownFailed(model, ""), headers)


def _is_partly_verified(result: PeerResult) -> bool:
    answer = result.reply.answer if result.reply else None
    return answer is not None and answer.headers.get(VERIFIED_HEADER) == PARTLY


def _freed(results: Sequence[PeerResult]) -> Freed | None:
    """Add up the memory that the nodes that have stopped the model have given back.

    Returns:
        None if one of these nodes, such as an older monitor, does not report it.
    """
    answers = [each.reply.answer for each in results if each.reply and each.reply.answer]
    headers = [each.headers.get(FREED_HEADER) for each in answers if each.outcome == "stopped"]
    parts = [freed for freed in map(parse_freed, headers) if freed is not None]
    return add_freed(parts) if len(parts) == len(headers) else None
