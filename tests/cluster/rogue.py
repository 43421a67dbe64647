"""A client of NATS that says what it likes, as a node of another kind or a hostile one could."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import nats
from nats.aio.msg import Msg

from monitor_plugin import Monitor
from monitor_plugin.cluster.node import ClusterNode
from monitor_plugin.cluster.transport.loop_thread import LoopThread
from monitor_plugin.cluster.transport.messages import Announcement, Caller, Request, pack

from ..support import eventually

Handler = Callable[[Msg], "list[tuple[str, bytes]]"]


class Rogue(LoopThread):
    """Publishes and subscribes as it is told.

    Args:
        url: of the NATS server.
        options: of the client.

    Attributes:
        complaints: what NATS said against it, in small letters.
        heard: what came on the subjects that it listens to.
    """

    def __init__(self, url: str, **options: Any) -> None:
        super().__init__("rogue", self._stay)
        self.complaints: list[str] = []
        self.heard: list[Msg] = []
        self._url = url
        self._options = options
        self._connected = threading.Event()
        self.start()
        assert self._connected.wait(30)

    async def _stay(self) -> None:
        async def note(error: Exception) -> None:
            self.complaints.append(str(error).lower())

        self._client = await nats.connect(
            self._url, error_cb=note, allow_reconnect=False, connect_timeout=30, **self._options
        )
        self._connected.set()
        try:
            await asyncio.Event().wait()
        finally:
            await self._client.close()

    def was_refused(self, what: str) -> bool:
        """Whether NATS said that it may not do something."""
        return any(what in each for each in self.complaints)

    def publish(self, subject: str, data: bytes = b"", reply: str = "") -> None:
        """Send a message, and wait until the server has seen it."""

        async def send() -> None:
            await self._client.publish(subject, data, reply=reply)
            await self._client.flush()

        self.submit(send()).result(30)

    def publish_later(self, seconds: float, subject: str, data: bytes) -> None:
        """Send a message after a while, unless it ends before; to be called by who answers."""
        self._loop.call_later(seconds, lambda: self.spawn(self._client.publish(subject, data)))

    def listen(self, subject: str, answer: Handler = lambda message: []) -> None:
        """Subscribe; what `answer` gives for a message is published: subjects and data."""

        async def on_message(message: Msg) -> None:
            self.heard.append(message)
            for to, data in answer(message):
                await self._client.publish(to, data)

        async def subscribe() -> None:
            await self._client.subscribe(subject, cb=on_message)
            await self._client.flush()

        self.submit(subscribe()).result(30)


def question(what: str, model: str | None, node: str = "rogue", **more: Any) -> bytes:
    """Encode a question in a node's name."""
    return pack(Request(what, Caller(node, "ops", "admin", "here"), model, **more))


def cluster_of(monitor: Monitor) -> ClusterNode:
    """Give a monitor's part in its cluster."""
    cluster = monitor._cluster
    assert cluster is not None
    return cluster


def joined(rogue: Rogue, monitor: Monitor, url: str | None = None) -> Rogue:
    """Have a node `rogue`, which says that it has the model `m`, known to a monitor."""
    cluster = cluster_of(monitor)
    word = pack(Announcement("rogue", "1", 1, url, ["m"]))

    def known() -> bool:
        rogue.publish("monitor.nodes.rogue", word)
        return cluster.directory.get("rogue") is not None

    eventually(known)
    return rogue


def answering(data: bytes, name: str = "rogue") -> Callable[[Any], list[tuple[str, bytes]]]:
    """Answer every question with the same."""
    return lambda message: [(f"{message.reply}.{name}", data)] if message.reply else []
