"""A shutdown on every node that has a model, or on one."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from concurrent.futures import Future

import msgspec

from ...api.cluster_view import NODE_HEADER
from ...api.results import ErrorAnswer, Response, StoppedAnswer, encode, encode_error, error_kind
from ...domain.errors import (
    ModelNotLoaded,
    MonitorError,
    NodeForbidden,
    OutcomeUnknown,
    ShutdownFailed,
)
from ..peers.directory import Peer
from ..requests import faults
from ..requests.client import PeerClient, PeerResult
from ..requests.local_node import LocalNode
from ..transport.messages import Request
from ..transport.nats_link import NatsLink
from .readings import answer_of, names_of

# Where this node has the model, and nobody else is known to: no longer than its own stop takes,
# after which it is seen whether the host starts the model again.
_MAYBE_SECONDS = 1.0


class ClusterShutdowns:
    """Stops models, on the threads of who asks.

    Args:
        local_node: stops this node's.
        link: the connection to the others.
        asking: asks them.
    """

    def __init__(self, local_node: LocalNode, link: NatsLink, asking: PeerClient) -> None:
        self._local_node = local_node
        self._link = link
        self._asking = asking

    def stop(self, ask: Request, here: bool, holders: Sequence[Peer], one: bool) -> Response:
        """Stop a model, and say what came of it.

        Args:
            ask: for an offer to stop it.
            here: whether this node is to stop it.
            holders: which other nodes are known to have it.
            one: whether it is this node, or the one other, alone.

        Raises:
            ModelNotLoaded: no node has it.
            ClusterError: the one node did not do its part.
        """
        model = ask.model or ""
        if here and one:
            return answer_of(self._local_node.shutdown(model, ask.force, ask.pid))
        asked: Future[list[PeerResult]]
        if one:
            asked = self._link.submit(self._on_one(holders[0].name, ask))
        else:
            asked = self._link.submit(self._on_all(model, ask, holders, here))
        results = []
        if here:
            stopped = self._local_node.shutdown(model, ask.force, ask.pid)
            results.append(PeerResult(self._local_node.node, stopped, None))
        try:
            results += asked.result()
        except MonitorError as error:  # the monitor is closing, and it may have been under way
            names = [each.name for each in holders] or [""]
            results += [
                PeerResult(each, None, faults.closing(each, model, error)) for each in names
            ]
        return self._outcome(model, results)

    async def _on_one(self, node: str, ask: Request) -> list[PeerResult]:
        return [await self._take_up(await self._asking.offer(node, ask), ask)]

    async def _on_all(
        self, model: str, ask: Request, holders: Sequence[Peer], here: bool
    ) -> list[PeerResult]:
        only_maybe = here and not holders
        first_seconds = _MAYBE_SECONDS if only_maybe else math.inf
        offers = await self._asking.offers(model, ask, holders, first_seconds)
        if only_maybe:  # a node without a name is none that is known to have it
            offers = [each for each in offers if each.node]
        results = list(await asyncio.gather(*(self._take_up(each, ask) for each in offers)))
        if any(each.reply for each in results):
            results += await self._left(model, ask, offers)
        return results

    async def _take_up(self, result: PeerResult, ask: Request) -> PeerResult:
        if result.reply is None or result.reply.kind != "offer":
            return result
        ask = msgspec.structs.replace(ask, operation="shutdown", offer=result.reply.offer)
        return await self._asking.stop(result.reply, ask)

    async def _left(
        self, model: str, ask: Request, offers: Sequence[PeerResult]
    ) -> list[PeerResult]:
        """See whether a node has the model that was not asked to stop it."""
        ask = msgspec.structs.replace(ask, operation="loaded", offer=None)
        runs = {each.reply.run for each in offers if each.reply}
        reason = "a node has it that had not said so before: ask again"
        return [
            PeerResult(each.node, None, ShutdownFailed(model, f"{reason} ({each.node})"))
            for each in await self._asking.still_loaded(model, ask)
            if each.kind == "loaded" and each.run not in runs
        ]

    def _outcome(self, model: str, results: Sequence[PeerResult]) -> Response:
        """Make one answer of what came of a shutdown on each node."""
        results = sorted(results, key=lambda each: each.node)
        if not results:
            raise ModelNotLoaded(
                model, self._local_node.describe_last_exit(model), on_any_node=True
            )
        stopped = [each.node for each in results if _outcome_of(each) == "stopped"]
        bad = [each for each in results if _outcome_of(each) not in ("stopped", "model_not_loaded")]
        had = [each for each in results if _outcome_of(each) != "model_not_loaded"] or results
        nodes = names_of([each.node for each in had if each.node])
        headers = {NODE_HEADER: nodes} if nodes else {}
        if stopped and not bad:
            return Response(200, encode(StoppedAnswer()), headers, "stopped")
        if not bad or len(results) == 1:
            return _answer(results[0])
        worst = min(bad, key=_rank)
        words = [_words(each) for each in bad]
        if stopped:
            words.append(f"it was stopped on {', '.join(stopped)}")
        message = f"model {model!r}: " + "; ".join(words)
        kind = error_kind(worst.error or ShutdownFailed(model, ""))
        if worst.reply and worst.reply.answer:
            answer = worst.reply.answer
            if not (stopped and answer.status == 503):  # which says that nothing was stopped
                kind = kind._replace(status=answer.status, type=answer.outcome or kind.type)
                headers = {**answer.headers, **headers}  # with `Retry-After`, say
        return Response(kind.status, encode_error(kind, message), headers, kind.type)


def _answer(result: PeerResult) -> Response:
    if result.reply is None:
        assert result.error is not None
        raise result.error
    return answer_of(result.reply)


def _outcome_of(result: PeerResult) -> str:
    if result.error is not None:
        return error_kind(result.error).type
    answer = result.reply.answer if result.reply else None
    return (answer and answer.outcome) or "shutdown_failed"


def _rank(result: PeerResult) -> int:
    """Order by what must be known first: what is unknown, what failed, what was not asked."""
    if isinstance(result.error, OutcomeUnknown):
        return 0
    if result.reply and result.reply.answer and result.reply.answer.status != 503:
        return 1
    return 3 if isinstance(result.error, NodeForbidden) else 2


def _words(result: PeerResult) -> str:
    if result.error is not None:
        return str(result.error)
    assert result.reply is not None
    assert result.reply.answer is not None
    message = msgspec.json.decode(result.reply.answer.body, type=ErrorAnswer).error.message
    return f"node {result.node!r}: {message}"
