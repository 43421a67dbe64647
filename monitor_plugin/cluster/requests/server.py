"""Serves the requests of other nodes."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial

from nats.aio.msg import Msg

from ...api.errors import error_response
from ...domain.errors import ModelNotLoaded, NodeUnreachable, TooManyShutdowns
from ..peers.presence import Presence
from ..transport.messages import Reply, Request, split_reply, unpack
from ..transport.nats_link import NatsLink
from ..transport.subjects import Subjects
from .local_node import LocalNode

_logger = logging.getLogger(__name__)

# Maximum number of readings that run or wait for a thread.
_MAX_READS = 1000
_RETRY_AFTER_SECONDS = 5
# The time until the first reply of kind `working`, and between two of them.
_FIRST_WORKING_SECONDS = 0.1
_WORKING_SECONDS = 1.0
_OFFER_SECONDS = 10.0
_MAX_OFFERS = 1000


class PeerServer:
    """Serves requests. Readings and shutdowns run on threads, everything else on the event loop.

    A request is served only on the subjects of its operation, because NATS' permissions are those
    of subjects. The reply goes only to the node that the request names as its sender.

    Args:
        local_node: makes the answers.
        link: the connection to NATS.
        subjects: the subjects of the cluster.
        presence: announces this node.
        publish_models: announces immediately which models this node has.
        read_threads, shutdown_threads: maximum number of threads for readings, and for shutdowns.
    """

    def __init__(
        self,
        local_node: LocalNode,
        link: NatsLink,
        subjects: Subjects,
        presence: Presence,
        publish_models: Callable[[], Awaitable[None]],
        *,
        read_threads: int,
        shutdown_threads: int,
    ) -> None:
        self._local_node = local_node
        self._link = link
        self._subjects = subjects
        self._presence = presence
        self._publish_models = publish_models
        self._read_pool = ThreadPoolExecutor(read_threads, "monitor-cluster-read")
        self._shutdown_pool = ThreadPoolExecutor(shutdown_threads, "monitor-cluster-stop")
        self._max_shutdowns = shutdown_threads
        self._reads = self._shutdowns = 0
        self._offers = StopOffers()

    def subjects(self, models: Iterable[str]) -> list[str]:
        """Return the subjects to subscribe to, for a node with these models."""
        subjects, node = self._subjects, self._local_node.node
        found = [
            subjects.read_node(node),
            subjects.shutdown_node(node),
            subjects.shutdown_now(node, self._local_node.run),
        ]
        for model in models:
            found += [subjects.read_model(model), subjects.shutdown_model(model)]
        return found

    async def on_request(self, message: Msg) -> None:
        """Serve a request, unless it came on a subject of another operation, node or model."""
        request = unpack(message.data, Request)
        if request is None or message.subject not in self._allowed_subjects(request):
            return
        node = self._local_node.node
        reply_to = self._subjects.reply_subject(message.reply, request.caller.node, node)
        if reply_to is None:
            return
        if request.operation == "models":
            await self._presence.announce(reply_to)
        elif (reply := self._reply_without_thread(request)) is not None:
            await self._send(reply_to, reply)
        elif request.operation == "shutdown":
            self._shutdowns += 1
            self._link.spawn(self._shutdown(reply_to, request))
        else:
            self._reads += 1
            self._link.spawn(self._read(reply_to, request))

    def _reply_without_thread(self, request: Request) -> Reply | None:
        """Make an offer, or refuse a request; None if the request needs a thread."""
        if request.operation == "loaded":
            return self._reply("loaded")
        if request.operation == "offer":
            if request.model is None or not self._local_node.has(request.model, stopping=True):
                return self._error(ModelNotLoaded(request.model or ""))
            return self._reply("offer", self._offers.make(request))
        if request.operation == "shutdown":
            if self._shutdowns >= self._max_shutdowns:
                return self._error(TooManyShutdowns(self._max_shutdowns, _RETRY_AFTER_SECONDS))
            if not self._offers.accept(request):
                return self._refusal("it got word too late, and stopped nothing")
        elif self._reads >= _MAX_READS:
            return self._refusal(f"it has {self._reads} questions to answer, and takes no more")
        return None

    def _allowed_subjects(self, request: Request) -> list[str]:
        """Return the subjects on which a request is served; none if it is invalid.

        NATS' permissions guard the subjects, but not the operation that a message asks for.
        """
        subjects, node, model = self._subjects, self._local_node.node, request.model
        if request.operation in ("monitor", "backends", "models", "loaded"):
            on_node, on_model = subjects.read_node(node), subjects.read_model
        elif request.caller.role != "admin":
            return []
        elif request.operation == "offer":
            on_node, on_model = subjects.shutdown_node(node), subjects.shutdown_model
        elif request.operation == "shutdown":
            return [subjects.shutdown_now(node, self._local_node.run)]
        else:
            return []
        return [on_node] if model is None else [on_node, on_model(model)]

    async def _read(self, reply_to: str, request: Request) -> None:
        try:
            read = partial(self._local_node.answer, request)
            reply = await self._run(reply_to, self._read_pool, read)
        finally:
            self._reads -= 1
        await self._send(reply_to, reply)

    async def _shutdown(self, reply_to: str, request: Request) -> None:
        try:
            stop = partial(self._local_node.answer, request, audit=True)
            reply = await self._run(reply_to, self._shutdown_pool, stop)
        finally:
            self._shutdowns -= 1
        # Before the reply: once the client has it, no node may list the model as loaded.
        await self._publish_models()
        await self._send(reply_to, reply)

    async def _run(self, reply_to: str, pool: Executor, answer: Callable[[], Reply]) -> Reply:
        """Make the answer on a thread. Until it is ready, send replies of kind `working`."""
        future = asyncio.get_running_loop().run_in_executor(pool, answer)
        seconds = _FIRST_WORKING_SECONDS
        while not (await asyncio.wait([future], timeout=seconds))[0]:
            await self._send(reply_to, self._reply("working"))
            seconds = _WORKING_SECONDS
        return future.result()

    def _reply(self, kind: str, offer: str | None = None) -> Reply:
        return Reply(self._local_node.node, self._local_node.run, kind, offer=offer)

    def _error(self, error: Exception) -> Reply:
        return Reply(self._local_node.node, self._local_node.run, answer=error_response(error))

    def _refusal(self, reason: str) -> Reply:
        node = self._local_node.node
        return self._error(NodeUnreachable(f"node {node!r}: {reason}; ask again", [node]))

    async def _send(self, reply_to: str, reply: Reply) -> None:
        try:
            for part in split_reply(reply, self._link.max_payload):
                await self._link.publish(reply_to, part)
        except Exception as error:  # the other node waits until its deadline
            _logger.debug("cannot send a reply: %r", error)

    def close(self) -> None:
        """Start no more work. Running readings and shutdowns continue until their own deadlines."""
        self._read_pool.shutdown(wait=False, cancel_futures=True)
        self._shutdown_pool.shutdown(wait=False, cancel_futures=True)

    def join(self) -> None:
        """Wait until the threads have ended."""
        self._read_pool.shutdown(wait=True)
        self._shutdown_pool.shutdown(wait=True)


class StopOffers:
    """The open offers to stop a model. A shutdown must accept one within 10 s, and only once.

    Therefore a shutdown that was delayed, for example by a NATS server that hung, stops nothing. An
    offer is valid only for the node, the model and the PID of the request for it.
    """

    def __init__(self) -> None:
        self._offers: dict[str, tuple[float, tuple[object, ...]]] = {}

    def make(self, request: Request) -> str:
        """Make an offer for a request, and return the key of the offer."""
        self._discard_old()
        while len(self._offers) >= _MAX_OFFERS:
            del self._offers[next(iter(self._offers))]
        key = secrets.token_hex(8)
        terms = (request.caller.node, request.model, request.pid)
        self._offers[key] = time.monotonic(), terms
        return key

    def accept(self, request: Request) -> bool:
        """Remove the offer that a shutdown accepts. Return whether it existed and was valid."""
        self._discard_old()
        key = request.offer or ""
        terms = (request.caller.node, request.model, request.pid)
        if key not in self._offers or self._offers[key][1] != terms:
            return False
        del self._offers[key]
        return True

    def _discard_old(self) -> None:
        oldest = time.monotonic() - _OFFER_SECONDS
        self._offers = {key: each for key, each in self._offers.items() if each[0] >= oldest}
