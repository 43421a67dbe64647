"""The asking side: questions to nodes, on the link's event loop."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence
from typing import NamedTuple

from ...domain.errors import ClusterError, InvalidRequest, MonitorError, NodeUnreachable
from ..peers.directory import Peer, PeerDirectory
from ..transport.messages import Reply, Request
from ..transport.nats_link import NatsLink
from ..transport.pending_requests import Failure, Replies, collect_replies
from ..transport.subjects import Subjects
from . import faults

# For a node that did not answer the last time, and said nothing since.
SILENT_SECONDS = 0.25
# Offers to stop a model, which are good for 10 s, wait no longer for those that do not come.
_OFFERS_SECONDS = 5.0
# In which it is seen whether anybody has a model still.
_STILL_SECONDS = 1.0
# A node that stops a model says every second that it does.
_LEAST_STOP_SECONDS = 3.0
# However long a node says that it is at work.
_LONGEST_SHUTDOWN_SECONDS = 3600.0


class PeerResult(NamedTuple):
    """What came of asking one node: its answer, or why there is none."""

    node: str
    reply: Reply | None
    error: MonitorError | None


class PeerClient:
    """Asks other nodes. Each question ends within `patience_seconds`, but for shutdowns.

    Who would stop a model is found out in 5 s at most; who stops it may be silent for 3 s at least.

    Args:
        link: the connection.
        subjects: where nodes listen.
        directory: which nodes there are.
        patience_seconds: how long a node may take to answer, or be silent while it stops a model.
    """

    def __init__(
        self, link: NatsLink, subjects: Subjects, directory: PeerDirectory, patience_seconds: float
    ) -> None:
        self._link = link
        self._subjects = subjects
        self._directory = directory
        self.patience_seconds = patience_seconds

    async def read(
        self,
        node: str,
        ask: Request,
        first_seconds: float = math.inf,
        seconds: float = math.inf,
    ) -> PeerResult:
        """Ask one node for a reading, or its list.

        Args:
            node: its name.
            ask: for what.
            first_seconds: how long to wait for its first word, which may be that it is at work.
            seconds: how long to wait in all, at most.
        """
        subject = self._subjects.read_node(node)
        return await self._ask_node(subject, node, ask, first_seconds, seconds)

    async def read_all(
        self, nodes: Sequence[str], ask: Request, first_seconds: float = math.inf
    ) -> list[PeerResult]:
        """Ask several nodes at the same time."""
        return list(await asyncio.gather(*(self.read(each, ask, first_seconds) for each in nodes)))

    async def read_holders(
        self, model: str, ask: Request, seconds: float = math.inf
    ) -> list[PeerResult] | None:
        """Ask whoever has a model, as none is known who has; None where nobody has.

        Those that said that they are at it, and no more, are among the results.

        Raises:
            NodeUnreachable: that cannot be found out.
            NodeForbidden: NATS does not let this node ask.
        """
        subject = self._subjects.read_model(model)
        try:
            heard = await self._listen(subject, ask, (), math.inf, seconds, others=True)
        except ClusterError as error:
            raise NodeUnreachable(
                f"model {model!r} is not loaded here, and no other node can be asked: {error}"
            ) from None
        for reply in heard.replies:
            has_it = reply.answer is not None and reply.answer.status == 200
            self._directory.record_reply(reply.node, model if has_it else None)
        if heard.replies or heard.working:
            missed = [
                self._missed(each, heard.failure, subject, stopping=False) for each in heard.working
            ]
            return [*(self.result(each) for each in heard.replies), *missed]
        if heard.failure is Failure.NO_RESPONDERS:
            return None
        if heard.failure is Failure.FORBIDDEN:
            raise faults.no_answer("", heard.failure, subject, stopping=False)
        if heard.failure is Failure.LOST:
            why = "the connection to NATS ended while it was asked; ask again"
        else:  # NATS says at once where nobody listens, if it does say anything
            why = (
                "nobody answers: a node that has it hangs, and had not said its name, or NATS "
                "does; GET /cluster/targets lists those that have"
            )
        raise NodeUnreachable(f"whether model {model!r} is loaded on a node is unknown: {why}")

    async def offer(self, node: str, ask: Request, seconds: float = math.inf) -> PeerResult:
        """Ask one node whether it would stop a model, and wait at most so long."""
        subject = self._subjects.shutdown_node(node)
        return await self._ask_node(subject, node, ask, seconds=seconds)

    async def offers(
        self, model: str, ask: Request, expected: Sequence[Peer], first_seconds: float
    ) -> list[PeerResult]:
        """Ask who would stop a model: who answered, and those of whom an answer was expected.

        A result without a node's name says why it is not known who has the model.
        """
        subject = self._subjects.shutdown_model(model)
        awaited = [each for each in expected if not each.silent] or expected
        try:
            heard = await self._listen(
                subject, ask, awaited, first_seconds, _OFFERS_SECONDS, others=True
            )
        except ClusterError as error:
            nobody = NodeUnreachable(
                f"model {model!r} is not loaded here, and no other node can be asked: {error}"
            )
            known = [
                PeerResult(each.name, None, faults.not_sent(each.name, error)) for each in expected
            ]
            return known or [PeerResult("", None, nobody)]
        results = [self.result(each) for each in heard.replies]
        named = {each.node for each in results}
        missed = [each for each in expected if each.name not in named]
        # It may be the model alone that is not there any more, since a moment ago.
        nobody_there = heard.failure is Failure.NO_RESPONDERS
        silence = nobody_there or heard.failure is None
        anew = [each.name for each in missed if silence or each not in awaited]
        results += [
            self._missed(each.name, heard.failure, subject, stopping=True)
            for each in missed
            if each.name not in anew
        ]
        # A moment, where others have answered: their offers must not grow old.
        seconds = _OFFERS_SECONDS if nobody_there else SILENT_SECONDS
        results += await asyncio.gather(*(self.offer(each, ask, seconds) for each in anew))
        if not results and heard.failure is not Failure.NO_RESPONDERS:
            results.append(self._missed("", heard.failure, subject, stopping=True))
        return results

    async def still_loaded(self, model: str, ask: Request) -> list[Reply]:
        """Ask who still has a model; nobody, where that cannot be found out."""
        try:
            results = await self.read_holders(model, ask, _STILL_SECONDS) or []
            return [each.reply for each in results if each.reply]
        except ClusterError:
            return []

    async def stop(self, offer: Reply, ask: Request) -> PeerResult:
        """Take a node's offer up, and wait for as long as it says that it is at work.

        Only what certainly did not reach it is said to have stopped nothing.
        """
        node, model = offer.node, ask.model or ""
        subject = self._subjects.shutdown_now(node, offer.run)
        until = time.monotonic() + _LONGEST_SHUTDOWN_SECONDS
        patience_seconds = max(self.patience_seconds, _LEAST_STOP_SECONDS)
        try:
            pending = await self._link.requests.send(subject, ask)
        except ClusterError as error:
            return PeerResult(node, None, faults.not_sent(node, error))
        heard = False
        try:
            while True:
                word = await pending.next(min(patience_seconds, until - time.monotonic()))
                if isinstance(word, Reply) and word.kind in ("answer", "working"):
                    heard = True
                    self._directory.record_reply(node)
                    if word.kind == "answer":
                        return PeerResult(node, word, None)
                    if time.monotonic() > until:
                        why = f"is still at it after {_LONGEST_SHUTDOWN_SECONDS:g} s"
                        break
                elif isinstance(word, Reply):
                    why = "gave an answer that cannot be understood"
                    break
                elif word in (Failure.NO_RESPONDERS, Failure.FORBIDDEN) and not heard:
                    return self._missed(node, word, subject, stopping=True)
                elif word is None:
                    self._directory.record_silence(node)
                    why = f"has said nothing for {patience_seconds:g} s"
                    break
                else:
                    why = "cannot be heard, as the connection to NATS ended"
                    break
        finally:
            pending.close()
        return PeerResult(node, None, faults.unknown(node, model, why))

    async def _ask_node(
        self,
        subject: str,
        node: str,
        ask: Request,
        first_seconds: float = math.inf,
        seconds: float = math.inf,
    ) -> PeerResult:
        known = self._directory.get(node)
        expected = known or Peer(node)
        try:
            heard = await self._listen(
                subject, ask, [expected], first_seconds, seconds, others=False
            )
        except ClusterError as error:
            return PeerResult(node, None, faults.not_sent(node, error))
        for reply in heard.replies:
            self._directory.record_reply(node)
            return self.result(reply)
        if known is None and heard.failure is Failure.NO_RESPONDERS:
            names = ", ".join(each.name for each in self._directory.peers()) or "none"
            absent = InvalidRequest(
                f"there is no node {node!r} in the cluster; the others that are known: {names}"
            )
            return PeerResult(node, None, absent)
        # A list's later nodes get less than their time: that says nothing of them.
        cut = min(first_seconds, seconds) < self.patience_seconds and ask.operation == "backends"
        return self._missed(
            node, heard.failure, subject, stopping=ask.operation == "offer", note=not cut
        )

    async def _listen(
        self,
        subject: str,
        ask: Request,
        expected: Sequence[Peer],
        first_seconds: float,
        seconds: float,
        *,
        others: bool,
    ) -> Replies:
        """Ask, and hear who answers: see `hear`; what does not answer the question is nonsense.

        Raises:
            ClusterError: there is no connection; nothing was sent.
        """
        seconds = min(seconds, self.patience_seconds)
        first = min(first_seconds, seconds)
        if expected and all(each.silent for each in expected):
            first = min(first, SILENT_SECONDS)
        pending = await self._link.requests.send(subject, ask)
        try:
            names = {each.name for each in expected}
            return await collect_replies(pending, names, first, seconds, accept_others=others)
        finally:
            pending.close()

    def result(self, reply: Reply) -> PeerResult:
        """Take a reply for what came of asking its node."""
        if reply.kind == "invalid":
            return PeerResult(reply.node, None, faults.nonsense(reply.node))
        self._directory.record_reply(reply.node)
        return PeerResult(reply.node, reply, None)

    def _missed(
        self, node: str, word: Failure | None, subject: str, *, stopping: bool, note: bool = True
    ) -> PeerResult:
        """Make a result of silence; of one that had its time note that it is silent."""
        if note and word in (None, Failure.NO_RESPONDERS):
            self._directory.record_silence(node)
        return PeerResult(node, None, faults.no_answer(node, word, subject, stopping=stopping))
