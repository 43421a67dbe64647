"""This node's connection to NATS, which is made anew for ever."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import secrets
import time
from collections.abc import Awaitable, Callable

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError

from ...config.cluster import NatsServer, parse_nats_servers
from ...config.settings import Settings
from ...domain.errors import ClusterError
from .connector import CONNECT_SECONDS, Connector, disconnect
from .loop_thread import LoopThread
from .pending_requests import PendingRequest, PendingRequests

Handler = Callable[[Msg], Awaitable[None]]
Unsubscribe = Callable[[], Awaitable[None]]

_logger = logging.getLogger(__name__)

_RETRY_SECONDS = 1.0
_LOOK_SECONDS = 0.5
# A connection that lasts so long is a good one.
_STEADY_SECONDS = 5.0
_PERMISSIONS = "permissions violation for publish to "
_MOST_REMEMBERED = 100


class NatsSession:
    """One connection, from when it is made until it ends."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def subscribe(self, subject: str, handler: Handler) -> Unsubscribe:
        """Have messages handed over, until what is returned is called or the connection ends.

        Raises:
            nats.errors.Error: it has ended.
        """
        subscription = await self._client.subscribe(subject, cb=handler)

        async def unsubscribe() -> None:
            with contextlib.suppress(NatsError):  # the connection has ended
                await subscription.unsubscribe()

        return unsubscribe


class NatsLink(LoopThread):
    """A connection to one of the NATS servers of the setting `cluster`, and its event loop.

    Args:
        settings: which servers, and how to be let in.
        node: this node's name.
        replies: the start of the subjects to which others answer.
        on_connected: called on the loop after each connection, to subscribe.
        on_hello: gets what comes to the subject `hello`, and the sender's token.

    Raises:
        SettingsError: a file of the settings cannot be used.
    """

    def __init__(
        self,
        settings: Settings,
        node: str,
        replies: str,
        on_connected: Callable[[NatsSession], Awaitable[None]],
        on_hello: Callable[[bytes, str], object],
    ) -> None:
        self._servers = parse_nats_servers(settings.cluster or "")
        self._connector = Connector(settings, node)
        super().__init__("monitor-cluster", self._connect_for_ever)
        self._node = node
        self._on_connected = on_connected
        self._client: Client | None = None
        self._said: set[tuple[object, ...]] = set()
        self._refused: set[str] = set()
        self._talks = PendingRequests(replies, self.publish, on_hello)

    @property
    def servers(self) -> str:
        """The servers, for messages."""
        return ", ".join(server.url for server in self._servers)

    @property
    def connected(self) -> bool:
        """Whether there is a connection now."""
        return self._client is not None

    @property
    def max_payload(self) -> int:
        """The largest message that the server takes, in bytes."""
        return self._client.max_payload if self._client else 0

    @property
    def hello(self) -> str:
        """The subject to which nodes say who they are."""
        return self._talks.hello

    @property
    def open_talks(self) -> int:
        """How many questions are open."""
        return len(self._talks)

    @property
    def subscriptions(self) -> int:
        """How many subscriptions the connection has."""
        return len(self._client._subs) if self._client else 0

    async def publish(self, subject: str, data: bytes, reply: str = "") -> None:
        """Send a message now.

        Raises:
            ClusterError: there is no connection; nothing was sent.
            nats.errors.Error, OSError: it was not sent, or not all of it.
        """
        client = self._client
        if client is None or not client.is_connected:
            raise ClusterError(f"this node is not connected to NATS ({self.servers})")
        await asyncio.wait_for(client.publish(subject, data, reply=reply), CONNECT_SECONDS)

    async def flush(self) -> None:
        """Wait until the server has what was sent."""
        if self._client:
            await self._client.flush(timeout=CONNECT_SECONDS)

    async def talk(self, subject: str, data: bytes) -> PendingRequest:
        """Ask a question, to which one or several nodes may answer.

        Raises:
            ClusterError: there is no connection; nothing was sent.
        """
        return await self._talks.begin(subject, data)

    async def _connect_for_ever(self) -> None:
        at = secrets.randbelow(len(self._servers))
        while True:
            server = self._servers[at % len(self._servers)]
            at += 1
            closed = asyncio.Event()
            client = await self._connect(server, closed)
            if client is None:
                if at % len(self._servers) == 0:
                    await self._pause()
                continue
            steady = False
            try:
                steady = await self._use(client, server.url, closed)
            finally:
                self._client = None
                self._talks.lose()
                await disconnect(client)
            if not steady:  # the next may end as soon
                await self._pause()

    async def _pause(self) -> None:
        # Not all at the same moment, where many wait for one server.
        await asyncio.sleep(_RETRY_SECONDS * (0.5 + random.random()))  # noqa: S311

    async def _connect(self, server: NatsServer, closed: asyncio.Event) -> Client | None:
        async def on_closed() -> None:
            closed.set()

        errors: list[Exception] = []

        async def on_error(error: Exception) -> None:
            errors[:] = [error]
            self._on_error(error)

        try:
            return await self._connector.connect(server, on_closed, on_error)
        except Exception as error:
            # What the server said tells more than that there is no other one to try.
            why = str(errors[-1] if errors else error) or type(error).__name__
            self._say("cannot connect to NATS at %s, trying for ever: %s", server.url, why)
            return None

    async def _use(self, client: Client, url: str, closed: asyncio.Event) -> bool:
        """Take part over a connection until it ends; whether it lasted as a good one does."""
        self._client, began = client, time.monotonic()
        session = NatsSession(client)
        try:
            await self._talks.listen(session.subscribe)
            await self._on_connected(session)
            await self.flush()
        except Exception as error:
            self._say("the connection to NATS at %s could not be used: %s", url, error)
            return False
        _logger.info("connected to NATS at %s as node %s", url, self._node)
        # Looked at too, as older clients do not always say so.
        while not (closed.is_set() or client.is_closed):
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(closed.wait(), _LOOK_SECONDS)
        if steady := time.monotonic() - began > _STEADY_SECONDS:
            self._said.clear()
        self._say("the connection to NATS at %s ended; connecting anew", url)
        return steady

    def _on_error(self, error: Exception) -> None:
        text = str(error)
        if "permissions violation" not in text.lower():
            _logger.debug("NATS: %r", error)
            return
        if _PERMISSIONS in text.lower():
            subject = text[text.lower().index(_PERMISSIONS) + len(_PERMISSIONS) :].strip(" \"'")
            self._talks.forbid(subject)
        # Once each: a node that may not say that it is there tries every few seconds.
        if text not in self._refused and len(self._refused) < _MOST_REMEMBERED:
            self._refused.add(text)
            _logger.warning("NATS does not let this node take part in everything: %s", text)

    def _say(self, message: str, *facts: object) -> None:
        """Log what went wrong, once until it has been well for a while."""
        if (message, *facts) not in self._said and len(self._said) < _MOST_REMEMBERED:
            self._said.add((message, *facts))
            _logger.warning(message, *facts)
