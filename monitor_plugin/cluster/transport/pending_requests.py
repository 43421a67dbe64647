"""Questions to other nodes, and what comes back. All on the link's event loop."""

from __future__ import annotations

import asyncio
import enum
import secrets
from collections.abc import Awaitable, Callable
from typing import Any

from nats.aio.msg import Msg

from ...domain.errors import ClusterError
from .messages import Reply, join_parts, understood, unpack
from .subjects import encode_token

# What is kept of one question's answers: how many, and how many bytes of bodies in all.
_MOST_WAITING = 20_000
_MOST_BYTES = 64 * 1024 * 1024
_NO_RESPONDERS = "503"


class Failure(enum.Enum):
    """What is heard in place of a reply."""

    NO_RESPONDERS = "nobody listens there, NATS says"
    LOST = "the connection ended: what was sent may have arrived or not"
    FORBIDDEN = "NATS did not let the question through"


class PendingRequest:
    """A question that was sent. Whoever began it closes it."""

    def __init__(self, subject: str, forget: Callable[[], object]) -> None:
        self.subject = subject
        self._words: asyncio.Queue[Reply | Failure] = asyncio.Queue(_MOST_WAITING)
        self._parts: dict[tuple[str, str], list[Reply]] = {}
        self._bytes = 0
        self._forget = forget

    def put(self, word: Reply | Failure) -> None:
        """Add what came; where a reply is not whole yet, it waits for the rest."""
        if isinstance(word, Reply):
            service = self._joined(word)
            if service is None:
                return
            word = understood(service)
        if not self._words.full():
            self._words.put_nowait(word)

    def _joined(self, reply: Reply) -> Reply | None:
        if reply.answer is None:
            return reply
        who = (reply.node, reply.run)
        self._bytes += len(reply.answer.body)
        if self._bytes > _MOST_BYTES:
            self._parts.pop(who, None)
            return Reply(*who, "nonsense")
        parts = self._parts.setdefault(who, [])
        parts.append(reply)
        return join_parts(self._parts.pop(who)) if reply.last else None

    async def next(self, seconds: float) -> Reply | Failure | None:
        """Wait for the next word; None where none came in time."""
        if not self._words.empty():
            return self._words.get_nowait()
        try:
            return await asyncio.wait_for(self._words.get(), max(0.001, seconds))
        except asyncio.TimeoutError:
            return None

    def close(self) -> None:
        """Take no more answers."""
        self._forget()


class PendingRequests:
    """The questions that are open, answered over one subscription.

    Args:
        replies: the start of the subjects to which others answer.
        publish: sends a message; raises `ClusterError` where it certainly sent nothing.
        on_hello: gets what a node says to `hello`, without being asked, and the node's token.

    Attributes:
        hello: the subject to which nodes say who they are.
    """

    def __init__(
        self,
        replies: str,
        publish: Callable[[str, bytes, str], Awaitable[None]],
        on_hello: Callable[[bytes, str], object],
    ) -> None:
        self._replies = replies
        self._on_hello = on_hello
        self.hello = f"{replies}.hello"
        self._publish = publish
        self._open: dict[str, PendingRequest] = {}

    def __len__(self) -> int:
        return len(self._open)

    async def listen(self, subscribe: Callable[..., Awaitable[Any]]) -> None:
        """Subscribe for the answers."""
        await subscribe(f"{self._replies}.>", self._on_message)

    async def begin(self, subject: str, data: bytes) -> PendingRequest:
        """Send a question.

        Raises:
            ClusterError: nothing was sent.
        """
        key = secrets.token_hex(8)
        talk = PendingRequest(subject, lambda: self._open.pop(key, None))
        self._open[key] = talk
        try:
            await self._publish(subject, data, f"{self._replies}.{key}")
        except ClusterError:
            talk.close()
            raise
        except Exception:  # it was under way
            talk.put(Failure.LOST)
        except BaseException:
            talk.close()
            raise
        return talk

    async def _on_message(self, message: Msg) -> None:
        key, _, sender = message.subject[len(self._replies) + 1 :].partition(".")
        if key == "hello":
            self._on_hello(message.data, sender)
            return
        talk = self._open.get(key)
        if talk is None:
            return
        if not sender:  # NATS itself, as nodes may not write there
            if (message.headers or {}).get("Status") == _NO_RESPONDERS:
                talk.put(Failure.NO_RESPONDERS)
            return
        reply = unpack(message.data, Reply)
        if reply is not None and encode_token(reply.node) == sender:
            talk.put(reply)

    def lose(self) -> None:
        """Tell all that the connection has ended."""
        for talk in list(self._open.values()):
            talk.put(Failure.LOST)

    def forbid(self, subject: str) -> None:
        """Tell those who asked there that NATS did not let them; its client lowers the letters."""
        for talk in list(self._open.values()):
            if talk.subject.lower() == subject.lower():
                talk.put(Failure.FORBIDDEN)
