"""Requests to other nodes, and the replies to them. Everything runs on the link's event loop."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Set
from typing import NamedTuple

from nats.aio.msg import Msg

from ...domain.errors import ClusterError
from .messages import Reply, Request, checked_reply, join_parts, pack, unpack
from .subjects import encode_token

# Limits of one request: the number of its unread replies, and the bytes of all replies' bodies.
_MAX_REPLIES = 20_000
_MAX_BYTES = 64 * 1024 * 1024
_NO_RESPONDERS = "503"
# Once the expected nodes have replied: the wait for another node's reply, after each reply.
_UNEXPECTED_SECONDS = 0.05


class Failure(enum.Enum):
    """A reason why no more replies come."""

    NO_RESPONDERS = "NATS says that no node subscribes to the subject"
    LOST = "the connection ended: the request may have been delivered or not"
    FORBIDDEN = "NATS did not let this node publish to the subject"


class PendingRequest:
    """A request that was sent, and its replies.

    Args:
        subject: the subject of the request.
        request: the request.
    """

    def __init__(self, subject: str, request: Request) -> None:
        self.subject = subject
        self._request = request
        self._received: asyncio.Queue[Reply | Failure] = asyncio.Queue(_MAX_REPLIES)
        self._parts: dict[tuple[str, str], list[Reply]] = {}
        self._bytes = 0

    def put(self, received: Reply | Failure) -> None:
        """Add a failure, a reply or a part of one. `next` returns a reply once it is complete."""
        if isinstance(received, Reply):
            reply = self._join(received)
            if reply is None:
                return
            received = checked_reply(reply, self._request)
        if not self._received.full():
            self._received.put_nowait(received)

    def _join(self, reply: Reply) -> Reply | None:
        if reply.answer is None:
            return reply
        sender = (reply.node, reply.run)
        self._bytes += len(reply.answer.body)
        if self._bytes > _MAX_BYTES:
            self._parts.pop(sender, None)
            return Reply(*sender, "invalid")
        self._parts.setdefault(sender, []).append(reply)
        return join_parts(self._parts.pop(sender)) if reply.last else None

    async def next(self, seconds: float) -> Reply | Failure | None:
        """Return the next reply or failure; None if none comes within that time."""
        if not self._received.empty():
            return self._received.get_nowait()
        try:
            return await asyncio.wait_for(self._received.get(), max(0.001, seconds))
        except asyncio.TimeoutError:
            return None


class PendingRequests:
    """The requests that wait for replies. One subscription receives the replies to all of them.

    Args:
        reply_prefix: the start of the subjects that other nodes reply to.
        publish: sends a message; raises `ClusterError` only if nothing was sent.
        on_hello: called with the data of each message on `hello_subject`, and the encoded name of
            the node that sent it.

    Attributes:
        reply_subjects: the wildcard for the subjects of all replies; `on_reply` handles them.
        hello_subject: the subject on which other nodes announce themselves to this one.
    """

    def __init__(
        self,
        reply_prefix: str,
        publish: Callable[[str, bytes, str], Awaitable[None]],
        on_hello: Callable[[bytes, str], object],
    ) -> None:
        self._prefix = reply_prefix
        self._publish = publish
        self._on_hello = on_hello
        self._pending: dict[str, PendingRequest] = {}
        self.reply_subjects = f"{reply_prefix}.>"
        self.hello_subject = f"{reply_prefix}.hello"

    def __len__(self) -> int:
        return len(self._pending)

    @contextlib.asynccontextmanager
    async def send(self, subject: str, request: Request) -> AsyncIterator[PendingRequest]:
        """Send a request, and receive replies of any number of nodes until the context ends.

        Raises:
            ClusterError: nothing was sent.
        """
        key = secrets.token_hex(8)
        pending = PendingRequest(subject, request)
        self._pending[key] = pending
        try:
            try:
                await self._publish(subject, pack(request), f"{self._prefix}.{key}")
            except ClusterError:
                raise
            except Exception:  # the server may have received the request
                pending.put(Failure.LOST)
            yield pending
        finally:
            del self._pending[key]

    async def on_reply(self, message: Msg) -> None:
        """Add a reply to its request, or call `on_hello`."""
        key, _, sender = message.subject[len(self._prefix) + 1 :].partition(".")
        if key == "hello":
            self._on_hello(message.data, sender)
            return
        pending = self._pending.get(key)
        if pending is None:
            return
        if not sender:  # from NATS itself: nodes have no permission to publish here
            if (message.headers or {}).get("Status") == _NO_RESPONDERS:
                pending.put(Failure.NO_RESPONDERS)
            return
        reply = unpack(message.data, Reply)
        if reply is not None and encode_token(reply.node) == sender:
            pending.put(reply)

    def fail_all(self) -> None:
        """Add `Failure.LOST` to every request."""
        for pending in list(self._pending.values()):
            pending.put(Failure.LOST)

    def fail_forbidden(self, subject: str) -> None:
        """Add `Failure.FORBIDDEN` to the requests on a subject, which nats-py has lower-cased."""
        for pending in list(self._pending.values()):
            if pending.subject.lower() == subject.lower():
                pending.put(Failure.FORBIDDEN)


class Replies(NamedTuple):
    """The replies to one request.

    Attributes:
        replies: at most one from each run of a node.
        failure: why no more replies came; None if all came or the time had passed.
        working: the nodes that sent a reply of kind `working`, and no answer.
    """

    replies: list[Reply]
    failure: Failure | None
    working: list[str]


async def collect_replies(
    pending: PendingRequest,
    expected: Set[str],
    first_seconds: float,
    seconds: float,
    *,
    accept_others: bool,
) -> Replies:
    """Collect replies until the expected nodes have replied or the deadline has passed.

    Args:
        pending: the request.
        expected: the names of the nodes that should reply.
        first_seconds: deadline for each node's first reply, which may be of kind `working`.
        seconds: deadline for the answers; both count from the call.
        accept_others: whether replies of other nodes count too.
    """
    started = last = time.monotonic()
    missing = set(expected)
    working: set[tuple[str, str]] = set()
    replies: dict[tuple[str, str], Reply] = {}
    failure = None
    while working or missing or not replies or accept_others:
        if working:
            deadline = started + seconds
        elif missing or not replies:
            deadline = started + first_seconds
        else:
            deadline = min(last + _UNEXPECTED_SECONDS, started + seconds)
        received = await pending.next(deadline - time.monotonic())
        if not isinstance(received, Reply):
            failure = received
            break
        # Replies that arrived before the deadline are read after it too. The limit ends the loop
        # for a node that never stops sending.
        last = time.monotonic()
        if last > started + 2 * seconds:
            break
        if not accept_others and received.node not in expected:
            continue
        sender = (received.node, received.run)
        missing.discard(received.node)
        if received.kind == "working":
            working.add(sender)
        else:
            working.discard(sender)
            replies[sender] = received
    return Replies([*replies.values()], failure, sorted({node for node, _ in working}))
