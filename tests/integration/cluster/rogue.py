"""A client of NATS that may send anything, as another version or an attacker could."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import nats
from nats.aio.msg import Msg

from monitor_plugin import Monitor
from monitor_plugin.cluster.node import ClusterNode
from monitor_plugin.cluster.transport.messages import Announcement, Caller, Request, pack
from monitor_plugin.concurrency.loop_thread import LoopThread

from ...support import eventually

Handler = Callable[[Msg], "list[tuple[str, bytes]]"]


class Rogue(LoopThread):
    """Publishes and subscribes on any subject.

    Args:
        url: the URL of the NATS server.
        options: options of the client.

    Attributes:
        errors: the errors that NATS reported, in lower case.
        received: the messages on the subscribed subjects.
    """

    def __init__(self, url: str, **options: Any) -> None:
        super().__init__("rogue", self._stay_connected, ConnectionError)
        self.errors: list[str] = []
        self.received: list[Msg] = []
        self._url = url
        self._options = options
        self._connected = threading.Event()
        self.start()
        assert self._connected.wait(30)

    async def _stay_connected(self) -> None:
        async def on_error(error: Exception) -> None:
            self.errors.append(str(error).lower())

        self._client = await nats.connect(
            self._url, error_cb=on_error, allow_reconnect=False, connect_timeout=30, **self._options
        )
        self._connected.set()
        try:
            await asyncio.Event().wait()
        finally:
            await self._client.close()

    def was_refused(self, text: str) -> bool:
        """Whether an error that NATS reported contains a text."""
        return any(text in each for each in self.errors)

    def publish(self, subject: str, data: bytes = b"", reply: str = "") -> None:
        """Publish a message, and wait until the server has received it."""

        async def send() -> None:
            await self._client.publish(subject, data, reply=reply)
            await self._client.flush()

        self.submit(send()).result(30)

    def publish_later(self, seconds: float, subject: str, data: bytes) -> None:
        """Publish a message after a delay. Handlers may call this."""
        self._loop.call_later(seconds, lambda: self.spawn(self._client.publish(subject, data)))

    def subscribe(self, subject: str, handler: Handler = lambda message: []) -> None:
        """Subscribe to a subject, and publish the messages that the handler returns.

        Args:
            subject: the subject.
            handler: returns the subject and the data of each message to publish.
        """

        async def on_message(message: Msg) -> None:
            self.received.append(message)
            for to, data in handler(message):
                await self._client.publish(to, data)

        async def subscribe() -> None:
            await self._client.subscribe(subject, cb=on_message)
            await self._client.flush()

        self.submit(subscribe()).result(30)


def encode_request(operation: str, model: str | None, node: str = "rogue", **fields: Any) -> bytes:
    """Encode a request that names a node as its sender."""
    return pack(Request(operation, Caller(node, "ops", "admin", "here"), model, **fields))


def cluster_node(monitor: Monitor) -> ClusterNode:
    """Return a monitor's node of the cluster."""
    cluster = monitor._cluster
    assert cluster is not None
    return cluster


def announce_rogue(rogue: Rogue, monitor: Monitor, url: str | None = None) -> Rogue:
    """Announce a node `rogue` with the model `m` until the monitor knows the node."""
    cluster = cluster_node(monitor)
    announcement = pack(Announcement("rogue", "1", 1, url, ["m"]))

    def is_known() -> bool:
        rogue.publish("monitor.nodes.rogue", announcement)
        return cluster.directory.get("rogue") is not None

    eventually(is_known)
    return rogue


def reply_with(data: bytes, name: str = "rogue") -> Callable[[Any], list[tuple[str, bytes]]]:
    """Return a handler that replies to every request with the same data, as the node `name`."""
    return lambda message: [(f"{message.reply}.{name}", data)] if message.reply else []
