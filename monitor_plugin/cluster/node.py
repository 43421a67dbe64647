"""This monitor as a node of a cluster: what others ask of it, and what it asks of others."""

from __future__ import annotations

import logging
import secrets
import socket
from collections.abc import Callable

from ..api.lister import Lister
from ..backends.registry import Registry
from ..config.cluster import parse_nats_servers, validate_node
from ..config.origins import is_loopback_name
from ..config.settings import Settings, parse_listen
from ..domain.errors import SettingsError
from ..readings.model_reader import ModelReader
from ..readings.sweeper import Sweeper
from ..shutdown.coordinator import ShutdownCoordinator
from .member import Member
from .peers.directory import PeerDirectory
from .requests.client import PeerClient
from .requests.local_node import LocalNode
from .service import ClusterService
from .transport.subjects import Subjects

_logger = logging.getLogger(__name__)

_UNSPECIFIED = ("0.0.0.0", "::")  # noqa: S104 - compared, not bound


class ClusterNode:
    """Joins the cluster, answers others, and has the whole cluster's answers.

    Args:
        settings: `cluster` is not None.
        registry: this node's backends.
        model_reader: reads its models.
        coordinator: shuts its models down.
        sweeper: reads all its backends at the same time.
        describe_last_exit: says how the last backend of a model ended.

    Attributes:
        directory: what is known of the other nodes.
        link: the connection to NATS.
        service: answers for all nodes.

    Raises:
        SettingsError: a setting cannot be used.
    """

    def __init__(
        self,
        settings: Settings,
        registry: Registry,
        model_reader: ModelReader,
        coordinator: ShutdownCoordinator,
        sweeper: Sweeper,
        describe_last_exit: Callable[[str], str | None],
    ) -> None:
        try:
            node = validate_node(settings.node or socket.gethostname())
        except ValueError as error:
            raise SettingsError("node", f"setting node: {error}") from None
        self._settings = settings
        self.directory = PeerDirectory()
        local_node = LocalNode(
            node,
            secrets.token_hex(8),
            registry,
            model_reader,
            coordinator,
            Lister(registry, sweeper, coordinator, node),
            describe_last_exit,
        )
        self._member = Member(settings, local_node, registry, self.directory)
        self.link = self._member.link
        subjects = Subjects(settings.cluster_namespace)
        asking = PeerClient(self.link, subjects, self.directory, settings.cluster_timeout_seconds)
        self.service = ClusterService(local_node, self.link, asking, self.directory)

    def start(self, url: str | None) -> None:
        """Join, in the background; NATS may come later.

        Args:
            url: where this monitor's HTTP server answers.
        """
        self.service.url = self._advertised(url)
        self._member.start(self.service.url)

    def close(self) -> None:
        """Leave; whoever waits for another node is told that nothing comes."""
        self._member.close()

    def _advertised(self, url: str | None) -> str | None:
        """Say where others reach this monitor's HTTP; None where they cannot."""
        if self._settings.cluster_url is not None:
            return self._settings.cluster_url
        if url is None or url.startswith("unix:") or self._settings.listen is None:
            return None
        host = parse_listen(self._settings.listen).host
        servers = parse_nats_servers(self._settings.cluster or "")
        if is_loopback_name(host) and not all(each.is_loopback for each in servers):
            _logger.warning(
                "other machines cannot reach %s: GET /cluster/targets leaves node %s out; set "
                "cluster_url to where its HTTP is reached from elsewhere",
                *(url, self.service.node),
            )
            return None
        if host in _UNSPECIFIED:
            return f"http://{socket.gethostname()}:{url.rpartition(':')[2]}"
        return url
