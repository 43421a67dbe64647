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
from .transport.nats_link import NatsLink
from .transport.subjects import Subjects

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
        replies = subjects.reply_prefix(local_node.node, local_node.run)
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
        self._is_update_due = False

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
                self.link.submit(self._membership.leave()).result(_LEAVE_SECONDS)
        self._answering.close()
        self.link.close()
        self._answering.join()

    def _on_change(self) -> None:
        """Update the subscriptions soon. Called from any thread when a backend comes or goes."""
        if not self._is_update_due:
            self._is_update_due = True
            self.link.submit(self._update())

    async def _update(self) -> None:
        """Subscribe for the models that this node has now, and announce them soon."""
        try:
            await self._subscribe()
        except Exception as error:  # the connection ended: the next one subscribes anew
            _logger.debug("the subscriptions could not be updated: %r", error)

    async def _subscribe(self) -> None:
        self._is_update_due = False  # first: a later change needs another update
        node, subjects, answering = self._local_node.node, self._subjects, self._answering
        models = frozenset(self._registry.models())
        handlers = {
            subjects.all_nodes: self._membership.on_announcement,
            subjects.read_node(node): answering.on_read,
            subjects.shutdown_node(node): answering.on_shutdown,
            subjects.shutdown_now(node, self._local_node.run): answering.on_shutdown_now,
        }
        for model in models:
            handlers[subjects.read_model(model)] = answering.on_read
            handlers[subjects.shutdown_model(model)] = answering.on_shutdown
        await self.link.subscribe(handlers)
        self._membership.set_models(models)

    async def _tell(self) -> None:
        """Announce at once which models this node has."""
        await self._update()
        await self._membership.announce_changes()

    async def _on_connected(self) -> None:
        """Subscribe, announce this node to all others, and ask for their announcements."""
        await self._subscribe()
        await self._membership.join()
