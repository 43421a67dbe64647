"""Serves the requests of other nodes."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from msgspec.structs import replace
from nats.aio.msg import Msg

from ...api.errors import error_response
from ...domain.errors import (
    ModelNotLoaded,
    NodeUnreachable,
    TooManyShutdowns,
    TooManyStarts,
)
from ..peers.presence import Presence
from ..transport.messages import Reply, Request, split_reply, unpack
from ..transport.nats_link import NatsLink
from ..transport.subjects import Subjects
from .local_node import LocalNode

T = TypeVar("T")

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
    """Serves requests on the event loop, and those that may block on threads.

    Readings, shutdowns and starts have threads of their own, as a start may take minutes.

    A request is served only on the subjects of its operation, because NATS' permissions are those
    of subjects. The reply goes only to the node that the request names as its sender.

    Args:
        local_node: makes the answers.
        link: the connection to NATS.
        subjects: the subjects of the cluster.
        presence: announces this node.
        publish_models: announces immediately which models this node has.
        read_threads, shutdown_threads, start_threads: maximum number of threads for readings, for
            shutdowns, and for loads and restarts.
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
        start_threads: int,
    ) -> None:
        self._local_node = local_node
        self._link = link
        self._subjects = subjects
        self._presence = presence
        self._publish_models = publish_models
        self._read_pool = ThreadPoolExecutor(read_threads, "monitor-cluster-read")
        self._reads = 0
        stops = _Workers(shutdown_threads, "monitor-cluster-stop", TooManyShutdowns)
        starts = _Workers(start_threads, "monitor-cluster-start", TooManyStarts)
        self._workers = {"shutdown": stops, "load": starts, "restart": starts}
        self._offers = Offers()

    def subjects(self, models: Iterable[str], starting: Iterable[str]) -> list[str]:
        """Return the subjects to subscribe to.

        Args:
            models: the models that the node has.
            starting: the models that are being started, and can be stopped.
        """
        subjects, node = self._subjects, self._local_node.node
        found = [
            subjects.read_node(node),
            subjects.shutdown_node(node),
            subjects.shutdown_now(node, self._local_node.run),
        ]
        for model in models:
            found += [subjects.read_model(model), subjects.shutdown_model(model)]
        return found + [subjects.shutdown_model(each) for each in starting]

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
        elif request.operation in self._workers:
            self._workers[request.operation].count += 1
            self._link.spawn(self._operate(reply_to, request))
        else:
            self._reads += 1
            read = self._offer_start if request.operation == "offer" else self._read
            self._link.spawn(read(reply_to, request))

    def _reply_without_thread(self, request: Request) -> Reply | None:
        """Make an offer, or refuse a request; None if the request needs a thread."""
        if request.operation == "loaded":
            return self._reply("loaded")
        if request.operation == "offer" and request.action is None:
            if request.model is None or not self._local_node.has(request.model, stopping=True):
                return self._error(ModelNotLoaded(request.model or ""))
            return self._reply("offer", self._offers.make(request))
        if request.operation in self._workers:
            return self._refuse(request)
        if self._reads >= _MAX_READS:
            return self._refusal(f"it has {self._reads} questions to answer, and takes no more")
        return None

    def _refuse(self, request: Request) -> Reply | None:
        """Refuse an operation if too many run, or if it accepts no open offer."""
        workers = self._workers[request.operation]
        if workers.count >= workers.limit:
            return self._error(workers.too_many(workers.limit, _RETRY_AFTER_SECONDS))
        if not self._offers.accept(request):
            done = "stopped" if request.operation == "shutdown" else "started"
            return self._refusal(f"it got word too late, and {done} nothing")
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
        elif request.operation == "offer" and request.action is not None:
            return [subjects.shutdown_node(node)]
        elif request.operation == "offer":
            on_node, on_model = subjects.shutdown_node(node), subjects.shutdown_model
        elif request.operation in self._workers:
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

    async def _offer_start(self, reply_to: str, request: Request) -> None:
        find_state = partial(self._local_node.offered_state, request.model or "")
        try:
            state = await self._run(reply_to, self._read_pool, find_state)
        finally:
            self._reads -= 1
        offer = self._reply("offer", self._offers.make(request))
        await self._send(reply_to, replace(offer, state=state))

    async def _operate(self, reply_to: str, request: Request) -> None:
        workers = self._workers[request.operation]
        try:
            operate = partial(self._local_node.answer, request, audit=True)
            reply = await self._run(reply_to, workers.pool, operate)
        finally:
            workers.count -= 1
        # Before the reply: once the client has it, no node may be wrong about the model.
        await self._publish_models()
        await self._send(reply_to, reply)

    async def _run(self, reply_to: str, pool: Executor, answer: Callable[[], T]) -> T:
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
        """Start no more work. What runs continues until its own deadline."""
        for pool in self._pools():
            pool.shutdown(wait=False, cancel_futures=True)

    def join(self) -> None:
        """Wait until the threads have ended."""
        for pool in self._pools():
            pool.shutdown(wait=True)

    def _pools(self) -> list[ThreadPoolExecutor]:
        return [self._read_pool, *(each.pool for each in self._workers.values())]


class _Workers:
    """The threads for one kind of operation.

    Attributes:
        limit: the maximum number of operations, each of which occupies a thread.
        count: how many operations run.
        too_many: the error if one more is requested.
    """

    def __init__(
        self, limit: int, name: str, too_many: type[TooManyShutdowns | TooManyStarts]
    ) -> None:
        self.limit = limit
        self.count = 0
        self.too_many = too_many
        self.pool = ThreadPoolExecutor(limit, name)


class Offers:
    """The open offers. A shutdown, a load or a restart must accept one within 10 s, and only once.

    Therefore a request that was delayed, for example by a NATS server that hung, does nothing. An
    offer is valid only for the node, the operation, the model and the PID of the request for it.
    """

    def __init__(self) -> None:
        self._offers: dict[str, tuple[float, tuple[object, ...]]] = {}

    def make(self, request: Request) -> str:
        """Make an offer for a request, and return the key of the offer."""
        self._discard_old()
        while len(self._offers) >= _MAX_OFFERS:
            del self._offers[next(iter(self._offers))]
        key = secrets.token_hex(8)
        terms = (request.caller.node, request.action or "shutdown", request.model, request.pid)
        self._offers[key] = time.monotonic(), terms
        return key

    def accept(self, request: Request) -> bool:
        """Remove the offer that a request accepts. Return whether it existed and was valid."""
        self._discard_old()
        key = request.offer or ""
        terms = (request.caller.node, request.operation, request.model, request.pid)
        if key not in self._offers or self._offers[key][1] != terms:
            return False
        del self._offers[key]
        return True

    def _discard_old(self) -> None:
        oldest = time.monotonic() - _OFFER_SECONDS
        self._offers = {key: each for key, each in self._offers.items() if each[0] >= oldest}
