"""Keeps this node connected to NATS, with TLS and credentials from files.

Each connection has a new client of nats-py. The client's own reconnection is not used, for three
reasons that were measured with `pending_size=0` and nats-py 2.6.0 and 2.16.0:

- The client sends messages late. In 10 of 20 restarts of the server, it sent a message that was
  published before the client noticed the disconnection. It also sent all messages that had waited
  because the socket was full.
- It waits until a closed socket is flushed. While a server hangs with a full socket, the client
  connects to no other server.
- It ends without a callback after an unexpected error, such as an incomplete key file. It also
  fails permanently if the key file then contains another key.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import random
import secrets
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.errors import Error as NatsError

from ...concurrency.loop_thread import LoopThread
from ...config.cluster import NatsServer, parse_nats_servers
from ...config.reloading_file import file_error, reason_of
from ...config.settings import Settings
from ...domain.errors import ClusterError, NodeUnreachable, SettingsError
from .pending_requests import PendingRequests

Handler = Callable[[Msg], Awaitable[None]]

_logger = logging.getLogger(__name__)

_TIMEOUT_SECONDS = 5
_CLOSE_SECONDS = 1.0
# The connection counts as lost when this many pings are unanswered.
_PING_SECONDS = 5
_MAX_PINGS = 3
_RETRY_SECONDS = 1.0
_POLL_SECONDS = 0.5
# After a connection of at least this time, the node connects again without a pause.
_STEADY_SECONDS = 5.0
_FORBIDDEN = "permissions violation for publish to "
_MAX_LOGGED = 100


class _TlsClient(Client):
    """A client that sends nothing to a server without TLS."""

    # Private names: nats-py has no option for this. A test with a server without TLS pins them.
    def _connect_command(self) -> bytes:
        if not self._server_info.get("tls_required"):
            raise OSError("the server speaks no TLS, which the settings demand")
        return super()._connect_command()


class _NatsConnection:
    """One connection to a server, by a client of its own.

    Args:
        client: a new client.
        on_error: called with each error that the server reports.

    Attributes:
        client: the client.
        subscriptions: the subscriptions, by subject.
    """

    def __init__(self, client: Client, on_error: Callable[[Exception], object]) -> None:
        self.client = client
        self.subscriptions: dict[str, Subscription] = {}
        self._on_error = on_error
        self._lock = asyncio.Lock()
        self._ended = asyncio.Event()
        self._has_connected = False

    async def connect(self, url: str, options: Mapping[str, Any]) -> None:
        """Connect, or raise the first error."""
        await self.client.connect(
            [url],
            error_cb=self._on_client_error,
            disconnected_cb=self._on_disconnected,
            connect_timeout=_TIMEOUT_SECONDS,
            ping_interval=_PING_SECONDS,
            max_outstanding_pings=_MAX_PINGS,
            no_echo=True,
            **options,
        )
        self._has_connected = True

    async def _on_client_error(self, error: Exception) -> None:
        if not self._has_connected:
            raise error  # ends `connect`, which would try again and hide the error
        self._on_error(error)

    async def _on_disconnected(self) -> None:
        self._ended.set()
        if not self.client.is_closed:
            # This blocks the client's task, which would reconnect now. `close` cancels the task.
            await asyncio.Event().wait()

    async def subscribe(self, handlers: Mapping[str, Handler]) -> None:
        """Replace the subscriptions by the given ones."""
        async with self._lock:
            for subject in self.subscriptions.keys() - handlers.keys():
                await self.subscriptions.pop(subject).unsubscribe()
            for subject in handlers.keys() - self.subscriptions.keys():
                handle = partial(_handle, handlers[subject])
                subscription = await self.client.subscribe(subject, cb=handle)
                self.subscriptions[subject] = subscription

    async def wait_until_ended(self) -> None:
        """Wait until the connection has ended."""
        while self.client.is_connected and not self._ended.is_set():
            await self._poll()
        # `is_connected` may be False before `_on_disconnected` is called. The wait is limited,
        # because the call does not come while the socket has data for a server that hangs.
        await self._poll()

    async def _poll(self) -> None:
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._ended.wait(), _POLL_SECONDS)

    async def close(self) -> None:
        """Close the client, also if its server hangs."""
        if not self.client.is_connected:
            # The client's `close` does not end the subscriptions' tasks if it cannot send its data.
            for subscription in self.subscriptions.values():
                with contextlib.suppress(NatsError):
                    await subscription.unsubscribe()
        with contextlib.suppress(Exception):
            await asyncio.wait_for(self.client.close(), _CLOSE_SECONDS)


async def _handle(handler: Handler, message: Msg) -> None:
    try:
        await handler(message)
    except Exception:  # else the client would report a connection error
        _logger.exception("a message on %s could not be handled", message.subject)


class NatsLink(LoopThread):
    """Keeps this node connected to one of the NATS servers of the setting `cluster`.

    Args:
        settings: the servers, TLS and credentials.
        node: this node's name.
        reply_prefix: the start of the subjects that other nodes reply to.
        on_connected: called on the loop after each connection; must call `subscribe`.
        on_hello: see `PendingRequests`.

    Attributes:
        requests: the pending requests of this node.

    Raises:
        SettingsError: a file of the settings cannot be used.
    """

    def __init__(
        self,
        settings: Settings,
        node: str,
        reply_prefix: str,
        on_connected: Callable[[], Awaitable[None]],
        on_hello: Callable[[bytes, str], object],
    ) -> None:
        super().__init__("monitor-cluster", self._stay_connected, _closed)
        self._servers = parse_nats_servers(settings.cluster or "")
        self._tls = _tls_context(settings)
        self._credentials = _credentials(settings)
        self._node = node
        self._on_connected = on_connected
        self._connection: _NatsConnection | None = None
        self._logged: set[tuple[object, ...]] = set()
        self._denied: set[str] = set()
        self.requests = PendingRequests(reply_prefix, self.publish, on_hello)

    @property
    def servers(self) -> str:
        """The URLs of the servers, for messages."""
        return ", ".join(server.url for server in self._servers)

    @property
    def connected(self) -> bool:
        """Whether there is a connection now."""
        return self._connection is not None

    @property
    def max_payload(self) -> int:
        """The largest message that the server accepts, in bytes; 0 without a connection."""
        return self._connection.client.max_payload if self._connection else 0

    @property
    def subscription_count(self) -> int:
        """The number of the connection's subscriptions."""
        return len(self._connection.subscriptions) if self._connection else 0

    async def subscribe(self, handlers: Mapping[str, Handler]) -> None:
        """Subscribe to these subjects and to the replies, and to no others.

        Raises:
            ClusterError: there is no connection.
            nats.errors.Error, OSError: the connection has ended.
        """
        if self._connection is None:
            raise self._not_connected()
        replies = {self.requests.reply_subjects: self.requests.on_reply}
        await self._connection.subscribe({**replies, **handlers})

    async def publish(self, subject: str, data: bytes, reply: str = "") -> None:
        """Send a message.

        Raises:
            ClusterError: there is no connection; nothing was sent.
            nats.errors.Error, OSError, asyncio.TimeoutError: perhaps the message was not sent.
        """
        if self._connection is None or not self._connection.client.is_connected:
            raise self._not_connected()
        send = self._connection.client.publish(subject, data, reply=reply)
        try:
            await asyncio.wait_for(send, _TIMEOUT_SECONDS)
        except AttributeError:  # asyncio of Python 3.13.0: the connection has just ended
            raise ConnectionResetError(
                "the connection to NATS ended during a publication"
            ) from None

    async def flush(self) -> None:
        """Wait until the server has received what was sent."""
        if self._connection is not None:
            await self._connection.client.flush(timeout=_TIMEOUT_SECONDS)

    def _not_connected(self) -> ClusterError:
        return ClusterError(f"this node is not connected to NATS ({self.servers})")

    async def _stay_connected(self) -> None:
        first = secrets.randbelow(len(self._servers))  # spreads the nodes over the servers
        for number in itertools.count(first):
            seconds = None
            try:
                seconds = await self._use(self._servers[number % len(self._servers)])
            except Exception:
                _logger.exception("the link to NATS failed; connecting again")
            if seconds is None and (number + 1) % len(self._servers):
                continue  # the next server may be reachable
            if seconds is None or seconds < _STEADY_SECONDS:
                # The time is random, because many nodes may wait for the same server.
                await asyncio.sleep(_RETRY_SECONDS * (0.5 + random.random()))  # noqa: S311

    async def _use(self, server: NatsServer) -> float | None:
        """Connect to a server, and use the connection until it ends.

        Returns:
            How long the connection lasted, in seconds; None if there was none.
        """
        options: dict[str, Any] = {"name": f"monitor-plugin {self._node}", **self._credentials}
        demands_tls = server.tls or self._tls is not None
        if demands_tls:
            options["tls"] = self._tls or ssl.create_default_context()
        connection = _NatsConnection(_TlsClient() if demands_tls else Client(), self._on_error)
        try:
            try:
                await asyncio.wait_for(
                    connection.connect(server.url, options), 2 * _TIMEOUT_SECONDS
                )
            except Exception as error:
                reason = str(error) or type(error).__name__
                self._log_once(
                    "cannot connect to NATS at %s, and will try again: %s", server.url, reason
                )
                return None
            self._connection, started = connection, time.monotonic()
            try:
                await self._on_connected()
                await self.flush()
            except Exception as error:
                self._log_once(
                    "the connection to NATS at %s could not be used: %s", server.url, error
                )
                return 0.0
            _logger.info("connected to NATS at %s as node %s", server.url, self._node)
            await connection.wait_until_ended()
            seconds = time.monotonic() - started
            if seconds > _STEADY_SECONDS:
                self._logged.clear()
            self._log_once("the connection to NATS at %s ended; connecting again", server.url)
            return seconds
        finally:
            self._connection = None
            self.requests.fail_all()
            await connection.close()

    def _on_error(self, error: Exception) -> None:
        text = str(error)
        if "permissions violation" not in text.lower():
            _logger.debug("NATS: %r", error)
            return
        if _FORBIDDEN in text.lower():
            subject = text[text.lower().index(_FORBIDDEN) + len(_FORBIDDEN) :].strip(" \"'")
            self.requests.fail_forbidden(subject)
        # Logged once: a node without the permission to announce itself tries every few seconds.
        if text not in self._denied and len(self._denied) < _MAX_LOGGED:
            self._denied.add(text)
            _logger.warning("NATS refused this node a permission: %s", text)

    def _log_once(self, message: str, *values: object) -> None:
        """Log a warning, unless it was logged since the last steady connection."""
        if (message, *values) not in self._logged and len(self._logged) < _MAX_LOGGED:
            self._logged.add((message, *values))
            _logger.warning(message, *values)


def _tls_context(settings: Settings) -> ssl.SSLContext | None:
    path = settings.cluster_ca_file
    if path is None:
        return None
    try:
        return ssl.create_default_context(cafile=path)
    except OSError as error:  # including `ssl.SSLError`
        raise file_error("cluster_ca_file", path, str(error)) from None


def _credentials(settings: Settings) -> dict[str, str]:
    """Return the client's options with the credentials' files, which each connection reads."""
    options = {}
    for setting, option in (
        ("cluster_creds_file", "user_credentials"),
        ("cluster_nkey_file", "nkeys_seed"),
    ):
        path = getattr(settings, setting)
        if path is None:
            continue
        try:
            with open(path, "rb"):
                options[option] = path
        except OSError as error:
            raise file_error(setting, path, reason_of(error)) from None
    if len(options) > 1:
        raise SettingsError(
            "cluster_nkey_file", "settings cluster_creds_file and cluster_nkey_file: set one alone"
        )
    return options


def _closed() -> NodeUnreachable:
    return NodeUnreachable("the monitor does not run, and asks no other node")
