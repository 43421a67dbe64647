"""The connection to NATS and its event loop."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from nats.aio.msg import Msg

from monitor_plugin import Settings
from monitor_plugin.cluster.transport import nats_link
from monitor_plugin.cluster.transport.nats_link import NatsLink
from monitor_plugin.domain.errors import ClusterError

from ...support import eventually, logged
from .conftest import MakeRogue, NatsServer

MakeLink = Callable[..., NatsLink]


@pytest.fixture
def make_link() -> Iterator[MakeLink]:
    """Starts links: the servers, and settings by name."""
    links: list[NatsLink] = []

    def make(cluster: str, **settings: Any) -> NatsLink:
        async def subscribe() -> None:
            await links[-1].subscribe({})

        links.append(
            NatsLink(
                Settings(listen=None, cluster=cluster, **settings),
                "a",
                "monitor.reply.a.1",
                subscribe,
                lambda data, sender: None,
            )
        )
        links[-1].start()
        return links[-1]

    yield make
    for link in links:
        link.close()


def test_publication_on_a_connection_that_has_just_ended_is_an_os_error(
    nats: NatsServer, make_link: MakeLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The asyncio of Python 3.13.0 raises an AttributeError instead."""
    link = make_link(nats.url)
    eventually(lambda: link.connected)

    async def publish(*args: object, **options: object) -> None:
        raise AttributeError("'NoneType' object has no attribute '_add_writer'")

    monkeypatch.setattr("nats.aio.client.Client.publish", publish)
    with pytest.raises(OSError, match="ended during a publication"):
        link.run(link.publish("subject", b"x"))


@pytest.mark.once
def test_link_delivers_nothing_late(
    nats: NatsServer, make_link: MakeLink, make_rogue: MakeRogue
) -> None:
    """A message that was not sent before the end of a server is never sent.

    Messages are published from the end of the server until the link refuses them.
    """
    link = make_link(nats.url)

    async def publish_until_refused() -> None:
        while True:
            try:
                await link.publish("late", b"x")
            except ClusterError:
                return
            except OSError:  # the connection ended during the call
                pass
            await asyncio.sleep(0)

    for _ in range(5):
        eventually(lambda: link.connected)
        nats.kill()
        link.run(publish_until_refused())
        nats.start()
        rogue = make_rogue(nats.url)
        rogue.subscribe("late")
        eventually(lambda: link.connected)
        link.run(link.flush())
        rogue.publish("late", b"end")  # NATS keeps the order
        eventually(lambda rogue=rogue: rogue.received)  # type: ignore[misc]
        assert [each.data for each in rogue.received] == [b"end"]
        rogue.close()


@pytest.mark.once
def test_link_leaves_a_server_that_hangs_with_full_buffers(
    make_nats: Callable[..., NatsServer],
    make_link: MakeLink,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Another server is used as soon as the first one's pings are not answered."""
    monkeypatch.setattr(nats_link, "_PING_SECONDS", 1)
    monkeypatch.setattr("secrets.randbelow", lambda count: 0)
    hangs, works = make_nats(), make_nats()
    link = make_link(f"{hangs.url},{works.url}")
    eventually(lambda: link.connected)
    first = link._connection
    descriptors = len(os.listdir("/proc/self/fd"))
    hangs.process.send_signal(signal.SIGSTOP)

    async def fill() -> None:
        for _ in range(40):
            await link.publish("bulk", b"x" * 900_000)

    filling = link.submit(fill())
    eventually(lambda: link.connected and link._connection is not first)
    filling.exception(30)  # if it still publishes by then, it goes on with the other server
    hangs.process.send_signal(signal.SIGCONT)
    eventually(lambda: len(os.listdir("/proc/self/fd")) <= descriptors)


def test_link_survives_an_unexpected_error(
    nats: NatsServer,
    make_link: MakeLink,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The error is logged with its traceback, and the link connects again."""
    use, errors = NatsLink._use, [MemoryError("unexpected")]

    async def fail_once(self: NatsLink, server: Any) -> float | None:
        if errors:
            raise errors.pop()
        return await use(self, server)

    monkeypatch.setattr(NatsLink, "_use", fail_once)
    link = make_link(nats.url)
    eventually(lambda: link.connected)
    assert "MemoryError: unexpected" in caplog.text


def test_handler_that_fails_gets_the_next_message(
    nats: NatsServer, make_link: MakeLink, make_rogue: MakeRogue, caplog: pytest.LogCaptureFixture
) -> None:
    """The error is logged, and the connection stays."""
    link, received = make_link(nats.url), []
    eventually(lambda: link.connected)
    connection = link._connection

    async def fail_once(message: Msg) -> None:
        received.append(message.data)
        if len(received) == 1:
            raise ValueError("unexpected")

    link.run(link.subscribe({"numbers": fail_once}))
    link.run(link.flush())
    rogue = make_rogue(nats.url)
    for number in (b"1", b"2"):
        rogue.publish("numbers", number)
    eventually(lambda: received == [b"1", b"2"])
    assert link._connection is connection
    assert "a message on numbers could not be handled" in logged(caplog)
