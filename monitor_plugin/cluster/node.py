"""Makes this monitor a node of a cluster: wires and starts the parts of the package."""

from __future__ import annotations

import contextlib
import logging
import socket

from ..backends.registry import Registry
from ..concurrency.blocking import BlockingObserver
from ..concurrency.closing import close_all
from ..config.cluster import parse_nats_servers, validate_node
from ..config.origins import is_loopback_name
from ..config.settings import Settings, parse_listen
from ..domain.errors import SettingsError
from ..operations.model_operations import ModelOperations
from .peers.directory import PeerDirectory
from .peers.presence import Presence
from .requests.client import PeerClient
from .requests.local_node import LocalNode
from .requests.server import PeerServer
from .service import ClusterService
from .transport.nats_link import NatsLink
from .transport.subjects import Subjects

_logger = logging.getLogger(__name__)

_UNSPECIFIED = ("0.0.0.0", "::")  # noqa: S104 - compared, not bound
_LEAVE_SECONDS = 1.0


def node_name(settings: Settings) -> str:
    """Return the name of this node: the setting `node`, or else the machine's host name.

    Raises:
        SettingsError: the name is not valid for a node.
    """
    try:
        return validate_node(settings.node or socket.gethostname())
    except ValueError as error:
        raise SettingsError("node", f"setting node: {error}") from None


class ClusterNode:
    """Makes this monitor a node of the cluster.

    Args:
        settings: the settings; `cluster` is not None.
        registry: this node's backends.
        operations: starts, stops and restarts this node's models.
        local_node: answers requests about this node's models.
        blocking: is entered while a thread waits for other nodes.

    Attributes:
        directory: the other nodes.
        link: the connection to NATS.
        service: answers requests about all nodes' models.

    Raises:
        SettingsError: a setting cannot be used.
    """

    def __init__(
        self,
        settings: Settings,
        registry: Registry,
        operations: ModelOperations,
        local_node: LocalNode,
        blocking: BlockingObserver,
    ) -> None:
        self._settings = settings
        self._registry = registry
        self._operations = operations
        self._local_node = local_node
        self._subjects = subjects = Subjects(settings.cluster_namespace)
        self._is_update_due = False
        node, run = local_node.node, local_node.run
        self.directory = PeerDirectory()
        self.link = NatsLink(
            settings,
            node,
            subjects.reply_prefix(node, run),
            on_connected=self._on_connected,
            # `_presence` needs the link, and is created after it.
            on_hello=lambda data, sender: self._presence.on_hello(data, sender),
        )
        self._presence = Presence(node, run, self.link, subjects, self.directory)
        self._server = PeerServer(
            local_node,
            self.link,
            subjects,
            self._presence,
            self._publish_models,
            read_threads=settings.http_threads,
            shutdown_threads=max(1, settings.http_threads // 2),
            start_threads=max(1, settings.http_threads // 4),
        )
        client = PeerClient(
            local_node,
            self.link,
            subjects,
            self.directory,
            settings.cluster_timeout_seconds,
            blocking,
        )
        self.service = ClusterService(local_node, self.link, client, self.directory, blocking)

    def start(self, url: str | None) -> None:
        """Join the cluster in the background, as soon as NATS can be reached.

        Args:
            url: the URL of this monitor's HTTP server; None if there is none.

        Raises:
            OSError, RuntimeError: the system has no descriptor or no thread left. Nothing was
                started, and `start` may be called again.
        """
        self.service.url = self._presence.url = self._reachable_url(url)
        self._registry.on_change = self._operations.on_change = self._on_change
        self.link.start()

    def close(self) -> None:
        """Leave the cluster. Threads that wait for another node's reply get `NodeUnreachable`."""
        self._registry.on_change = self._operations.on_change = lambda: None
        close_all(self._leave, self._server.close, self.link.close, self._server.join)

    def _leave(self) -> None:
        if self.link.connected:
            with contextlib.suppress(Exception):
                self.link.submit(self._presence.leave()).result(_LEAVE_SECONDS)

    def _on_change(self) -> None:
        """Schedule `_update`. Called on any thread when a backend or a start comes or goes."""
        if not self._is_update_due:
            self._is_update_due = True
            self.link.submit(self._update())

    async def _update(self) -> None:
        """Subscribe for the models that this node has now. A change of them is announced soon."""
        try:
            await self._subscribe()
        except Exception as error:  # the connection ended; `_on_connected` subscribes again
            _logger.debug("cannot update the subscriptions: %r", error)

    async def _subscribe(self) -> None:
        self._is_update_due = False  # before the models are read: a later change needs an update
        models = frozenset(self._registry.models())
        subjects = self._server.subjects(models, self._operations.starting())
        handlers = dict.fromkeys(subjects, self._server.on_request)
        handlers[self._subjects.all_announcements] = self._presence.on_announcement
        await self.link.subscribe(handlers)
        self._presence.set_models(models)

    async def _publish_models(self) -> None:
        """Subscribe for the models that this node has now, and announce them immediately."""
        await self._update()
        await self._presence.announce_changes()

    async def _on_connected(self) -> None:
        """Subscribe, announce this node to all others, and ask for their announcements."""
        await self._subscribe()
        await self._presence.join()

    def _reachable_url(self, url: str | None) -> str | None:
        """Return the URL at which other machines reach this monitor's HTTP server, or None."""
        if self._settings.cluster_url is not None:
            return self._settings.cluster_url
        if url is None or url.startswith("unix:") or self._settings.listen is None:
            return None
        host = parse_listen(self._settings.listen).host
        servers = parse_nats_servers(self._settings.cluster or "")
        if is_loopback_name(host) and not all(each.is_loopback for each in servers):
            _logger.warning(
                "other machines cannot reach %s: GET /cluster/targets leaves node %s out; set "
                "cluster_url to the URL at which they reach its HTTP server",
                url,
                self._local_node.node,
            )
            return None
        if host in _UNSPECIFIED:
            return f"http://{socket.gethostname()}:{url.rpartition(':')[2]}"
        return url
