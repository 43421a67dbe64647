"""This node's announcements, and those of its peers. Everything runs on the link's event loop."""

from __future__ import annotations

import asyncio
import logging
import time

from nats.aio.msg import Msg

from ..transport.messages import Announcement, Caller, Request, pack, unpack_announcement
from ..transport.nats_link import NatsLink
from ..transport.subjects import Subjects, encode_token
from .directory import PeerDirectory

_logger = logging.getLogger(__name__)

_HEARTBEAT_SECONDS = 5.0
# With more peers than this, the time between heartbeats grows with their number, because every node
# receives the heartbeats of all nodes.
_MANY_NODES = 100
# Peers expire only after a connection of this time: then every running peer has announced itself.
_SETTLED_SECONDS = 30.0
# Changes within this time are announced together.
_GATHER_SECONDS = 0.02
_MAX_BYTES = 512 * 1024


class Presence:
    """Publishes this node's models and heartbeat, and records those of its peers.

    Args:
        node, run: this node's name and run.
        link: the connection to NATS.
        subjects: the subjects of the cluster.
        directory: receives the peers' announcements.

    Attributes:
        url: the URL of this monitor's HTTP server; None if other machines cannot reach it.
    """

    def __init__(
        self, node: str, run: str, link: NatsLink, subjects: Subjects, directory: PeerDirectory
    ) -> None:
        self._node = node
        self._run = run
        self._link = link
        self._subjects = subjects
        self._directory = directory
        self._models: frozenset[str] = frozenset()
        self._revision = 0
        self._announced_revision = 0
        self._is_announcement_due = False
        self._has_heartbeat = False
        self._namesake_run = ""
        self._has_left = False
        self._joined_at = 0.0
        self.url: str | None = None

    def set_models(self, models: frozenset[str]) -> None:
        """Set this node's models. A change is announced after `_GATHER_SECONDS`."""
        if models == self._models and self._revision:
            return
        self._models = models
        self._revision += 1
        if not self._is_announcement_due:
            self._is_announcement_due = True
            self._link.spawn(self._announce_soon())

    async def join(self) -> None:
        """Announce this node on a new connection, and ask its peers to announce themselves."""
        # Without models the message is small, as all nodes join at the same time after an outage.
        # Peers that do not know the revision ask for its models.
        with_models = self._announced_revision != self._revision
        self._joined_at = time.monotonic()
        await self.announce(reply=self._link.requests.hello_subject, with_models=with_models)
        if not self._has_heartbeat:
            self._has_heartbeat = True
            self._link.spawn(self._send_heartbeats())

    async def leave(self) -> None:
        """Announce that this node leaves. No announcement follows."""
        self._has_left = True
        announcement = self._announcement([], leaving=True)
        await self._link.publish(self._subjects.announcements(self._node), pack(announcement))
        await self._link.flush()

    async def announce(
        self, to: str | None = None, reply: str = "", with_models: bool = True
    ) -> None:
        """Announce this node.

        Args:
            to: a peer's subject; None to announce this node to all nodes.
            reply: the subject on which the receivers shall announce themselves.
            with_models: whether to list the models.
        """
        if self._has_left:
            return
        announcement = self._announcement(self._listed_models() if with_models else None)
        subject = to or self._subjects.announcements(self._node)
        published = await self._publish(subject, pack(announcement), reply)
        if published and with_models and to is None:
            self._announced_revision = announcement.revision

    def _announcement(self, models: list[str] | None, leaving: bool = False) -> Announcement:
        return Announcement(self._node, self._run, self._revision, self.url, models, leaving)

    def _listed_models(self) -> list[str]:
        """List the models that fit into a message. Peers find the others by asking all nodes."""
        models, size = [], 0
        max_bytes = min(_MAX_BYTES, self._link.max_payload // 2)
        for model in self._models:
            size += len(model.encode()) + 8
            if size > max_bytes:
                break
            models.append(model)
        return models

    async def _announce_soon(self) -> None:
        await asyncio.sleep(_GATHER_SECONDS)
        self._is_announcement_due = False
        await self.announce_changes()

    async def announce_changes(self) -> None:
        """Announce the models immediately, if they changed since their last announcement."""
        if self._announced_revision != self._revision:
            await self.announce()

    async def _send_heartbeats(self) -> None:
        while True:
            await asyncio.sleep(_HEARTBEAT_SECONDS * max(1.0, len(self._directory) / _MANY_NODES))
            try:
                is_settled = time.monotonic() - self._joined_at > _SETTLED_SECONDS
                # Without a connection no announcement arrives, so a silent peer may still run.
                if is_settled and self._link.connected:
                    self._directory.expire()
                await self.announce(with_models=False)
            except Exception:  # the next heartbeat may succeed
                _logger.exception("a heartbeat was not sent")

    async def on_announcement(self, message: Msg) -> None:
        """Record a peer's announcement. If it has a reply subject, announce this node there."""
        announcement = unpack_announcement(message.data)
        if announcement is None:
            return
        if message.subject != self._subjects.announcements(announcement.node):
            return
        self._record(announcement)
        if message.reply and announcement.node != self._node:
            to = self._subjects.reply_subject(message.reply, announcement.node, self._node)
            if to is not None:
                await self.announce(to=to, with_models=False)

    def on_hello(self, data: bytes, sender: str) -> None:
        """Record an announcement to this node alone, unless it names another node than its sender.

        Args:
            data: the announcement.
            sender: the encoded name of the node that sent it.
        """
        announcement = unpack_announcement(data)
        if announcement is not None and encode_token(announcement.node) == sender:
            self._record(announcement)

    def _record(self, announcement: Announcement) -> None:
        node = announcement.node
        if node == self._node:
            if announcement.run not in (self._run, self._namesake_run):
                self._namesake_run = announcement.run
                _logger.error(
                    "another monitor of the cluster is called %s too; give each a name of its own "
                    "(--node)",
                    node,
                )
        elif self._directory.update(announcement):
            request = Request("models", Caller(self._node, "monitor", "read", ""))
            reply = self._link.requests.hello_subject
            self._link.spawn(self._publish(self._subjects.read_node(node), pack(request), reply))

    async def _publish(self, subject: str, data: bytes, reply: str) -> bool:
        try:
            await self._link.publish(subject, data, reply)
        except Exception as error:  # the connection ended; `join` announces again on the next one
            _logger.debug("cannot publish to %s: %r", subject, error)
            return False
        return True
