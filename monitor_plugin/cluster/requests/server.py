"""This node's answers to other nodes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial

from nats.aio.msg import Msg

from ...api.results import error_response
from ...domain.errors import ModelNotLoaded, NodeUnreachable, TooManyShutdowns
from ..transport.messages import Reply, Request, split_reply, unpack
from ..transport.nats_link import NatsLink
from ..transport.subjects import Subjects
from .local_node import LocalNode
from .offers import StopOffers

_logger = logging.getLogger(__name__)

_MOST_READS_WAITING = 1000
_RETRY_AFTER_SECONDS = 5
# After which who asks is told that the answer follows, and how often then.
_FIRST_WORD_SECONDS = 0.1
_WORD_SECONDS = 1.0


class PeerServer:
    """Answers; readings and shutdowns run on threads, never on the event loop.

    A question is answered on the subject for it alone, which NATS' permissions guard, and to the
    node alone that it says it is from.

    Args:
        local_node: what this node answers.
        subjects: where it listens.
        announce: says on a subject who this node is.
        tell: has all others know at once which models are here.
        reads_at_once, shutdowns_at_once: how many threads there are for each.

    Attributes:
        link: the connection.
    """

    def __init__(
        self,
        local_node: LocalNode,
        subjects: Subjects,
        announce: Callable[[str], Awaitable[None]],
        tell: Callable[[], Awaitable[None]],
        *,
        reads_at_once: int,
        shutdowns_at_once: int,
    ) -> None:
        self._local_node = local_node
        self._subjects = subjects
        self._announce = announce
        self._tell = tell
        self._reads = ThreadPoolExecutor(reads_at_once, "monitor-cluster-read")
        self._stops = ThreadPoolExecutor(shutdowns_at_once, "monitor-cluster-stop")
        self._shutdowns_at_once = shutdowns_at_once
        self._reading = self._stopping = 0
        self._offers = StopOffers()
        self.link: NatsLink

    async def on_read(self, message: Msg) -> None:
        """Answer a question on a subject for reading: this node's, or a model's."""
        node = self._subjects.read_node(self._local_node.node)
        ask, to = self._asked(message, node, self._subjects.read_model)
        if ask is None or to is None:
            return
        if ask.operation == "models":
            await self._announce(to)
        elif ask.operation == "loaded":
            await self._send(to, Reply(self._local_node.node, self._local_node.run, "loaded"))
        elif ask.operation in ("monitor", "backends"):
            if self._reading >= _MOST_READS_WAITING:
                full = f"it has {self._reading} questions to answer, and takes no more"
                await self._send(to, self._refusal(full))
                return
            work = partial(self._local_node.monitor, ask.model or "", ask.pid, ask.with_memory)
            if ask.operation == "backends":
                work = partial(self._local_node.backends, ask)
            self._reading += 1
            self.link.spawn(self._read(to, work))

    async def on_shutdown(self, message: Msg) -> None:
        """Answer whether this node would stop a model: with an offer, if it has that."""
        node = self._subjects.shutdown_node(self._local_node.node)
        ask, to = self._asked(message, node, self._subjects.shutdown_model)
        if ask is None or to is None or ask.operation != "offer" or ask.caller.role != "admin":
            return
        if ask.model is not None and self._local_node.holds(ask.model):
            offer = self._offers.make(ask)
            await self._send(
                to, Reply(self._local_node.node, self._local_node.run, "offer", offer=offer)
            )
        else:
            await self._send(to, self._error(ModelNotLoaded(ask.model or "")))

    async def on_shutdown_now(self, message: Msg) -> None:
        """Stop a model, where an offer is taken up."""
        ask, to = self._asked(message, message.subject)
        if ask is None or to is None or ask.operation != "shutdown" or ask.caller.role != "admin":
            return
        if self._stopping >= self._shutdowns_at_once:
            full = TooManyShutdowns(self._shutdowns_at_once, _RETRY_AFTER_SECONDS)
            await self._send(to, self._error(full))
        elif not self._offers.take_up(ask):
            await self._send(to, self._refusal("it got word too late, and stopped nothing"))
        else:
            self._stopping += 1
            self.link.spawn(self._stop(to, ask))

    def _asked(
        self, message: Msg, node_subject: str, model_subject: Callable[[str], str] | None = None
    ) -> tuple[Request | None, str | None]:
        """Decode a question, and say where to answer; None where it is none, or not asked there."""
        ask = unpack(message.data, Request)
        if ask is None or not message.reply:
            return None, None
        right = message.subject == node_subject or (
            model_subject is not None
            and ask.model is not None
            and message.subject == model_subject(ask.model)
        )
        if not right:
            return None, None
        to = self._subjects.reply_subject(message.reply, ask.caller.node, self._local_node.node)
        return ask, to

    async def _read(self, to: str, work: Callable[[], Reply]) -> None:
        try:
            reply = await self._done(to, self._reads, work)
        finally:
            self._reading -= 1
        await self._send(to, reply)

    async def _stop(self, to: str, ask: Request) -> None:
        try:
            reply = await self._done(to, self._stops, partial(self._local_node.shutdown_for, ask))
        finally:
            self._stopping -= 1
        # Before the answer, so that who has it finds the model gone wherever it asks.
        await self._tell()
        await self._send(to, reply)

    async def _done(self, to: str, pool: Executor, work: Callable[[], Reply]) -> Reply:
        """Have something done on a thread, and say meanwhile that it is being done."""
        future = asyncio.get_running_loop().run_in_executor(pool, work)
        seconds = _FIRST_WORD_SECONDS
        while not (await asyncio.wait([future], timeout=seconds))[0]:
            await self._send(to, Reply(self._local_node.node, self._local_node.run, "working"))
            seconds = _WORD_SECONDS
        return future.result()

    def _refusal(self, message: str) -> Reply:
        node = self._local_node.node
        return self._error(NodeUnreachable(f"node {node!r}: {message}; ask again", [node]))

    def _error(self, error: Exception) -> Reply:
        return Reply(self._local_node.node, self._local_node.run, answer=error_response(error))

    async def _send(self, to: str, reply: Reply) -> None:
        try:
            for part in split_reply(reply, self.link.max_payload):
                await self.link.publish(to, part)
        except Exception as error:  # who asked will see that nothing comes
            _logger.debug("an answer could not be sent: %r", error)

    def close(self) -> None:
        """Take no more work; what is under way is bounded, and not waited for."""
        self._reads.shutdown(wait=False, cancel_futures=True)
        self._stops.shutdown(wait=False, cancel_futures=True)

    def join(self) -> None:
        """Wait until the threads have ended."""
        self._reads.shutdown(wait=True)
        self._stops.shutdown(wait=True)
