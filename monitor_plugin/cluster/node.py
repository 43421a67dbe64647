"""This monitor as a node of a cluster: what others ask of it, and what it asks of others."""

from __future__ import annotations

import logging
import secrets
import socket

from ..errors import SettingsError
from ..nats_servers import fault_in_node, parse_nats_servers
from ..origins import is_loopback_name
from ..settings import Settings, parse_listen
from ..wiring import Parts
from .asking import Asking
from .directory import Directory
from .member import Member
from .own import Own
from .subjects import Subjects
from .whole import Whole

_logger = logging.getLogger(__name__)

_UNSPECIFIED = ("0.0.0.0", "::")  # noqa: S104 - compared, not bound


class ClusterNode:
    """Joins the cluster, answers others, and has the whole cluster's answers.

    Args:
        settings: `cluster` is not None.
        parts: read and stop this node's backends.

    Attributes:
        directory: what is known of the other nodes.
        link: the connection to NATS.
        whole: answers for all nodes.

    Raises:
        SettingsError: a setting cannot be used.
    """

    def __init__(self, settings: Settings, parts: Parts) -> None:
        node = settings.node or socket.gethostname()
        if fault := fault_in_node(node):
            raise SettingsError("node", f"setting node: {fault}")
        self._settings = settings
        self.directory = Directory()
        own = Own(node, secrets.token_hex(8), parts)
        self._member = Member(settings, own, parts.registry, self.directory)
        self.link = self._member.link
        subjects = Subjects(settings.cluster_namespace)
        asking = Asking(self.link, subjects, self.directory, settings.cluster_timeout_seconds)
        self.whole = Whole(own, self.link, asking, self.directory)

    def start(self, url: str | None) -> None:
        """Join, in the background; NATS may come later.

        Args:
            url: where this monitor's HTTP server answers.
        """
        self.whole.url = self._advertised(url)
        self._member.start(self.whole.url)

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
                *(url, self.whole.node),
            )
            return None
        if host in _UNSPECIFIED:
            return f"http://{socket.gethostname()}:{url.rpartition(':')[2]}"
        return url
