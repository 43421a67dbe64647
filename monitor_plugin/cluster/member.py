"""The part of a node that others see: its subscriptions, its word of itself, its answers."""

from __future__ import annotations

import contextlib
import logging

from ..backends.registry import Registry
from ..config.settings import Settings
from .peers.directory import PeerDirectory
from .peers.presence import Presence
from .requests.local_node import LocalNode
from .requests.server import PeerServer
from .transport.nats_link import NatsLink, NatsSession
from .transport.subjects import Subjects
from .transport.subscriptions import Subscriptions

_logger = logging.getLogger(__name__)

_LEAVE_SECONDS = 1.0


class Member:
    """Takes part in the cluster for as long as it is open.

    Args:
        settings: where NATS is, and how much may be answered at once.
        local_node: what this node answers.
        registry: which models it has.
        directory: told of what other nodes say.

    Attributes:
        link: the connection.

    Raises:
        SettingsError: a setting cannot be used.
    """

    def __init__(
        self,
        settings: Settings,
        local_node: LocalNode,
        registry: Registry,
        directory: PeerDirectory,
    ) -> None:
        self._local_node = local_node
        self._registry = registry
        self._subjects = subjects = Subjects(settings.cluster_namespace)
        self._membership = Presence(local_node.node, local_node.run, subjects, directory)
        replies = subjects.replies(local_node.node, local_node.run)
        self.link = NatsLink(
            settings, local_node.node, replies, self._on_connected, self._membership.on_hello
        )
        self._answering = PeerServer(
            local_node,
            subjects,
            self._membership.announce,
            self._tell,
            reads_at_once=settings.http_threads,
            shutdowns_at_once=max(1, settings.http_threads // 2),
        )
        self._membership.link = self._answering.link = self.link
        self._subscriptions: Subscriptions | None = None
        self._to_follow = False

    def start(self, url: str | None) -> None:
        """Join, in the background; NATS may come later.

        Args:
            url: where others reach this monitor's HTTP; None where they cannot.
        """
        self._membership.url = url
        self._registry.on_change = self._on_change
        self.link.start()

    def close(self) -> None:
        """Leave; whoever waits for another node is told that nothing comes."""
        self._registry.on_change = lambda: None
        if self.link.connected:
            with contextlib.suppress(Exception):
                self.link.begin(self._membership.leave()).result(_LEAVE_SECONDS)
        self._answering.close()
        self.link.close()
        self._answering.join()

    def _on_change(self) -> None:
        """Take note that a backend came or went; from any thread, without waiting."""
        if not self._to_follow:
            self._to_follow = True
            self.link.call_soon(lambda: self.link.spawn(self._follow()))

    async def _follow(self) -> None:
        """Bring the subscriptions in line with the models that are here."""
        self._to_follow = False  # first: what changes from now on is looked at again
        subscriptions = self._subscriptions
        if subscriptions is None:
            return
        try:
            models = await subscriptions.follow()
        except Exception as error:  # the connection ended, and the next begins anew
            _logger.debug("subscriptions could not follow: %r", error)
        else:
            self._membership.have(models)

    async def _tell(self) -> None:
        """Have all others know at once which models are here."""
        await self._follow()
        await self._membership.announce_changes()

    async def _on_connected(self, session: NatsSession) -> None:
        """Subscribe for all, tell all others, and ask who they are."""
        node, subjects, answering = self._local_node.node, self._subjects, self._answering
        for subject, handler in (
            (subjects.all_nodes, self._membership.on_announcement),
            (subjects.read_node(node), answering.on_read),
            (subjects.shutdown_node(node), answering.on_shutdown),
            (subjects.shutdown_now(node, self._local_node.run), answering.on_shutdown_now),
        ):
            await session.subscribe(subject, handler)
        self._subscriptions = Subscriptions(
            session, subjects, self._registry.models, answering.on_read, answering.on_shutdown
        )
        await self._follow()
        await self._membership.join()
