"""Makes connections to NATS servers, each by a new client, with TLS and credentials from files."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Awaitable, Callable
from typing import Any

from nats.aio.client import Client

from ...config.cluster import NatsServer
from ...config.settings import Settings
from ...domain.errors import SettingsError

CONNECT_SECONDS = 5
_CLOSE_SECONDS = 1.0
# A server, or a link, that is silent is noticed after some of these.
_PING_SECONDS = 5


class _DemandsTls(Client):
    """A client that sends nothing to a server that would go on in the clear."""

    def _connect_command(self) -> bytes:
        if not self._server_info.get("tls_required"):
            raise OSError("the server speaks no TLS, which the settings demand")
        return super()._connect_command()


class Connector:
    """Connects to a server.

    A client does not connect anew by itself: it would keep what was sent meanwhile, and a shutdown
    could arrive minutes late.

    Args:
        settings: how to be let in.
        node: this node's name, for those who look at NATS.

    Raises:
        SettingsError: a file of the settings cannot be used.
    """

    def __init__(self, settings: Settings, node: str) -> None:
        self._tls = _tls_context(settings)
        self._credentials = _credentials(settings)
        self._name = f"monitor-plugin {node}"

    async def connect(
        self,
        server: NatsServer,
        on_closed: Callable[[], Awaitable[None]],
        on_error: Callable[[Exception], Awaitable[None]],
    ) -> Client:
        """Connect, or raise what went wrong.

        Args:
            server: to which.
            on_closed: called when the connection has ended; older clients do not always.
            on_error: called with what the server complains of.
        """
        options: dict[str, Any] = dict(self._credentials)
        demands_tls = server.tls or self._tls is not None
        if demands_tls:
            options["tls"] = self._tls or ssl.create_default_context()
        client = _DemandsTls() if demands_tls else Client()
        try:
            await asyncio.wait_for(
                client.connect(
                    [server.url],
                    name=self._name,
                    error_cb=on_error,
                    closed_cb=on_closed,
                    disconnected_cb=on_closed,
                    allow_reconnect=False,
                    max_reconnect_attempts=1,
                    reconnect_time_wait=0,
                    connect_timeout=CONNECT_SECONDS,
                    ping_interval=_PING_SECONDS,
                    max_outstanding_pings=3,
                    no_echo=True,
                    **options,
                ),
                2 * CONNECT_SECONDS,
            )
        except BaseException:
            await disconnect(client)
            raise
        return client


async def disconnect(client: Client) -> None:
    """Close a client, also where its server takes nothing any more."""
    with contextlib.suppress(Exception):
        await asyncio.wait_for(client.close(), _CLOSE_SECONDS)
    # Older clients end half-way where it was the server that went: that would leave all of this.
    tasks = [client._reading_task, client._ping_interval_task, client._flusher_task]
    tasks += [each._wait_for_msgs_task for each in client._subs.values()]
    for task in tasks:
        if task is not None:
            task.cancel()
    transport: Any = client._transport
    if transport is not None:
        transport.close()


def _tls_context(settings: Settings) -> ssl.SSLContext | None:
    path = settings.cluster_ca_file
    if path is None:
        return None
    try:
        return ssl.create_default_context(cafile=path)
    except OSError as error:  # an SSLError is one
        raise SettingsError(
            "cluster_ca_file", f"setting cluster_ca_file: {path} cannot be used: {error}"
        ) from None


def _credentials(settings: Settings) -> dict[str, str]:
    found = {}
    for name, option in (
        ("cluster_creds_file", "user_credentials"),
        ("cluster_nkey_file", "nkeys_seed"),
    ):
        path = getattr(settings, name)
        if path is None:
            continue
        try:
            with open(path, "rb"):
                found[option] = path
        except OSError as error:
            raise SettingsError(
                name, f"setting {name}: {path} cannot be used: {error.strerror or error}"
            ) from None
    if len(found) > 1:
        raise SettingsError(
            "cluster_nkey_file", "settings cluster_creds_file and cluster_nkey_file: set one alone"
        )
    return found
