"""The connection to NATS and its event loop."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from nats.aio.msg import Msg

from monitor_plugin import Settings
from monitor_plugin.cluster.transport import loop_thread, nats_link
from monitor_plugin.cluster.transport.loop_thread import LoopThread
from monitor_plugin.cluster.transport.nats_link import NatsLink
from monitor_plugin.domain.errors import ClusterError, NodeUnreachable

from ...support import descriptors, eventually, logged, refuse_thread
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


@pytest.fixture
def thread() -> Iterator[LoopThread]:
    """A loop thread that runs."""
    thread = LoopThread("test", lambda: asyncio.sleep(0))
    thread.start()
    yield thread
    thread.close()


def test_loop_thread_returns_results_and_errors(thread: LoopThread) -> None:
    """`run` gives what the coroutine returns or raises."""

    async def divide(number: int) -> float:
        return 1 / number

    assert thread.run(divide(2)) == 0.5
    with pytest.raises(ZeroDivisionError):
        thread.run(divide(0))


def test_loop_thread_ends_every_caller_when_it_closes(
    thread: LoopThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also callers of coroutines that ignore their cancellation, and callers that come late."""
    monkeypatch.setattr(loop_thread, "_CANCEL_SECONDS", 0.05)
    may_end = threading.Event()

    async def ignore_cancellation() -> None:
        while not may_end.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0.01)

    futures = [thread.submit(asyncio.sleep(1000)), thread.submit(ignore_cancellation())]

    def submit_many() -> None:
        futures.extend(thread.submit(asyncio.sleep(1000)) for _ in range(1000))

    submitting = threading.Thread(target=submit_many)
    submitting.start()
    thread.close()
    submitting.join()
    futures.append(thread.submit(asyncio.sleep(1000)))
    deadline = time.monotonic() + 30
    for future in futures:
        with pytest.raises(NodeUnreachable, match="the monitor does not run"):
            future.result(max(0, deadline - time.monotonic()))
    may_end.set()
    futures.clear()
    gc.collect()  # asyncio logs here, and not at the end of all tests, that a task did not end


def test_loop_thread_logs_the_error_of_a_background_task(
    thread: LoopThread, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing waits for the result of such a task."""

    async def fail() -> None:
        raise ValueError("unexpected")

    async def spawn() -> None:
        thread.spawn(fail())

    thread.run(spawn())
    eventually(lambda: logged(caplog) == ["a task of the cluster failed"])
    assert "ValueError: unexpected" in caplog.text


def test_loop_thread_that_cannot_start_may_be_started_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A failed start leaves no loop open, and nothing waits for the thread."""
    thread = LoopThread("test", lambda: asyncio.sleep(0))
    before = descriptors()
    with monkeypatch.context() as patch:
        refuse_thread(patch, "test")
        with pytest.raises(RuntimeError, match="can't start new thread"):
            thread.start()
    assert not descriptors() - before
    with pytest.raises(NodeUnreachable):
        thread.run(asyncio.sleep(0))
    thread.start()
    assert thread.run(asyncio.sleep(0, "awake")) == "awake"
    thread.close()


def test_loop_thread_that_never_started_refuses_coroutines() -> None:
    """Nothing waits for a thread that does not run, and closing it does nothing."""
    thread = LoopThread("test", lambda: asyncio.sleep(0))
    with pytest.raises(NodeUnreachable):
        thread.run(asyncio.sleep(0))
    thread.close()
