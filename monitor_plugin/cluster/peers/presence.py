"""What this node says of itself to all, and what it hears of others. On the link's event loop."""

from __future__ import annotations

import asyncio
import logging
import time

from nats.aio.msg import Msg

from ..transport.messages import Announcement, Ask, Caller, announced, pack
from ..transport.nats_link import NatsLink
from ..transport.subjects import Subjects, encode_token
from .directory import PeerDirectory

_logger = logging.getLogger(__name__)

_HEARTBEAT_SECONDS = 5.0
# After this long on a connection those that are there have said so, and others are forgotten.
_SETTLED_SECONDS = 30.0
# Of more nodes than these each speaks less often, as all hear all.
_MANY_NODES = 100
# Changes that come together are told together.
_GATHER_SECONDS = 0.02
_MOST_BYTES = 512 * 1024


class Presence:
    """Keeps others in the know of this node's models, and the directory of theirs.

    Args:
        node, run: this node's name, and which run of it this is.
        subjects: where nodes speak.
        directory: told of what others say.

    Attributes:
        url: where this monitor's HTTP is reached; None where it cannot be from elsewhere.
        link: the connection.
    """

    def __init__(self, node: str, run: str, subjects: Subjects, directory: PeerDirectory) -> None:
        self._node = node
        self._run = run
        self._subjects = subjects
        self._directory = directory
        self._models: frozenset[str] = frozenset()
        self._revision = 0
        self._said_revision = 0
        self._announcing = False
        self._beating = False
        self._namesake = ""
        self._left = False
        self._joined_at = 0.0
        self.url: str | None = None
        self.link: NatsLink

    def have(self, models: frozenset[str]) -> None:
        """Take note of which models are here; others are told soon, if they are new."""
        if models == self._models and self._revision:
            return
        self._models = models
        self._revision += 1
        if not self._announcing:
            self._announcing = True
            self.link.spawn(self._announce_soon())

    async def join(self) -> None:
        """Say on a new connection who this is, and ask all others."""
        # What is known by its revision need not be said again, when all connect anew at once.
        service = self._said_revision != self._revision
        self._joined_at = time.monotonic()
        await self.announce(reply=self.link.hello, service=service)
        if not self._beating:
            self._beating = True
            self.link.spawn(self._beat())

    async def leave(self) -> None:
        """Say that this node ends; what it was about to say of itself is not said any more."""
        self._left = True
        await self.link.publish(self._subjects.node(self._node), pack(self._word([], True)))
        await self.link.flush()

    async def announce(self, to: str | None = None, reply: str = "", service: bool = True) -> None:
        """Say who this is, to all or on one subject.

        Args:
            to: that subject.
            reply: where others are to say the same of themselves.
            service: to list the models too.
        """
        if self._left:
            return
        word = self._word(self._listed() if service else None)
        if await self._publish(to or self._subjects.node(self._node), pack(word), reply):
            self._said_revision = word.revision

    def _word(self, models: list[str] | None, leaving: bool = False) -> Announcement:
        return Announcement(self._node, self._run, self._revision, self.url, models, leaving)

    def _listed(self) -> list[str]:
        """List the models; of very many, what a message takes: others are found by asking."""
        models, size = [], 0
        most = min(_MOST_BYTES, self.link.max_payload // 2)
        for model in self._models:
            size += len(model.encode()) + 8
            if size > most:
                break
            models.append(model)
        return models

    async def _announce_soon(self) -> None:
        await asyncio.sleep(_GATHER_SECONDS)
        self._announcing = False
        await self.announce_changes()

    async def announce_changes(self) -> None:
        """Say at once which models are here, where that has changed since it was said."""
        if self._said_revision != self._revision:
            await self.announce()

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(_HEARTBEAT_SECONDS * max(1.0, len(self._directory) / _MANY_NODES))
            settled = time.monotonic() - self._joined_at > _SETTLED_SECONDS
            if settled and self.link.connected:  # else they may well be there
                self._directory.expire()
            await self.announce(service=False)

    async def on_announcement(self, message: Msg) -> None:
        """Hear what a node says to all; where it wants to know of this one, tell it."""
        said = announced(message.data)
        if said is None or message.subject != self._subjects.node(said.node):
            return
        self._hear(said)
        if message.reply and said.node != self._node:
            to = self._subjects.answer_to(message.reply, said.node, self._node)
            if to is not None:
                await self.announce(to=to, service=False)

    def on_hello(self, data: bytes, sender: str) -> None:
        """Hear what a node says to this one alone."""
        said = announced(data)
        if said is not None and encode_token(said.node) == sender:
            self._hear(said)

    def _hear(self, said: Announcement) -> None:
        if said.node == self._node:
            if said.run not in (self._run, self._namesake):
                self._namesake = said.run
                _logger.error(
                    "another monitor of the cluster is called %s too; give each a name of its own "
                    "(--node)",
                    said.node,
                )
        elif self._directory.heard(said):
            ask = Ask("models", Caller(self._node, "monitor", "read", ""))
            subject = self._subjects.read_node(said.node)
            self.link.spawn(self._publish(subject, pack(ask), self.link.hello))

    async def _publish(self, subject: str, data: bytes, reply: str) -> bool:
        try:
            await self.link.publish(subject, data, reply)
        except Exception as error:  # the connection ended; on the next one it is said anew
            _logger.debug("nothing could be said to %s: %r", subject, error)
            return False
        return True
