"""Time limits: silent nodes and a silent NATS delay answers by a bounded time."""

from __future__ import annotations

import contextlib
import logging
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from monitor_plugin import Monitor
from monitor_plugin.api.cluster_view import Requester
from monitor_plugin.api.results import Response
from monitor_plugin.cluster import service
from monitor_plugin.cluster.transport.messages import Announcement, Reply, pack, unpack
from monitor_plugin.domain.models import Backend, Reading, Status

from ...support import Client, Spawner, eventually, free_port, is_running, load_sleeper, suspend
from .conftest import MakeLocal, MakeRogue, NatsServer
from .rogue import announce_rogue, cluster_node, reply_with

pytestmark = [pytest.mark.once, pytest.mark.slow]

OPS = Requester("ops", "admin", "here")
OFFER = pack(Reply("rogue", "1", "offer", offer="key"))
WORKING = pack(Reply("rogue", "1", "working"))


def test_list_of_a_disconnected_node_says_that_others_may_be_missing(
    nats: NatsServer, make_local: MakeLocal
) -> None:
    """Its list has a `cluster_error`, unless the list was asked of this node alone."""
    nats.kill()
    node = make_local("a", nats.url, "m")
    answer = node.get("/backends").json
    assert [each["model"] for each in answer["backends"]] == ["m"]
    assert f"node 'a' is not connected to NATS ({nats.url})" in answer["cluster_error"]
    assert node.get("/backends?node=a").json["cluster_error"] is None
    nats.start()
    eventually(lambda: node.get("/backends?fresh=false").json["cluster_error"] is None)


def test_shutdown_of_an_ambiguous_pid_is_refused(
    nats: NatsServer, make_monitor: Callable[..., Monitor], make_rogue: MakeRogue, spawner: Spawner
) -> None:
    """In containers PIDs coincide: the client may have meant the other node's backend."""
    monitor = make_monitor(cluster=nats.url, node="a")
    pid = load_sleeper(monitor, spawner).pid
    announce_rogue(make_rogue(nats.url), monitor)
    client = Client(monitor.url)
    answer = client.shutdown("m", pid=pid)
    assert answer.status == 400
    assert "on the nodes a, rogue" in answer.json["error"]["message"]
    assert is_running(pid)
    # A local backend is read as without a cluster.
    answer = client.request("GET", f"/backend/monitor?model=m&pid={pid}")
    assert (answer.status, answer.headers["X-Monitor-Node"]) == (200, "a")
    assert client.shutdown("m", pid=pid, node="a").status == 200


def test_node_that_left_announces_nothing_more(
    nats: NatsServer, make_monitor: Callable[..., Monitor], make_rogue: MakeRogue
) -> None:
    """A late announcement would list the node for ten minutes more."""
    monitor = make_monitor(cluster=nats.url, node="a")
    cluster = cluster_node(monitor)
    rogue = make_rogue(nats.url)
    rogue.subscribe("monitor.nodes.a")
    eventually(lambda: cluster.link.connected)
    presence = cluster._presence
    cluster.link.run(presence.leave())
    cluster.link.run(presence.announce())
    cluster.link.run(cluster.link.flush())
    rogue.publish("monitor.nodes.a")  # NATS keeps the order: what comes before this is complete
    eventually(lambda: rogue.received and not rogue.received[-1].data)
    announcements = [unpack(each.data, Announcement) for each in rogue.received[:-1]]
    assert announcements[-1]
    assert announcements[-1].leaving


def test_loopback_url_is_not_given_to_other_machines(
    make_monitor: Callable[..., Monitor], caplog: pytest.LogCaptureFixture
) -> None:
    """Prometheus on another machine would read its own loopback address."""
    cluster = {"cluster": "nats://192.0.2.1:4222", "insecure": True, "node": "a"}
    monitor = make_monitor(**cluster)
    assert Client(monitor.url).request("GET", "/cluster/targets").json == []
    assert "set cluster_url" in caplog.text
    with_url = make_monitor(**cluster, cluster_url="http://gpu-1:8080")
    (target,) = Client(with_url.url).request("GET", "/cluster/targets").json
    assert target == {"targets": ["gpu-1:8080"], "labels": {"node": "a"}}


def test_node_that_hangs_keeps_no_other_from_being_stopped(
    nats: NatsServer,
    make_monitor: Callable[..., Monitor],
    make_local: MakeLocal,
    make_rogue: MakeRogue,
) -> None:
    """An offer is valid for 10 s, so no node waits longer for the offers of others.

    The rogue receives every request, and replies to none.
    """
    b = make_local("b", nats.url, "m", "other")
    monitor = make_monitor(cluster=nats.url, node="a", cluster_timeout_seconds=60.0)
    rogue = announce_rogue(make_rogue(nats.url), monitor)
    rogue.subscribe("monitor.read.>")
    rogue.subscribe("monitor.shutdown.>")
    client = Client(monitor.url)
    cluster = cluster_node(monitor)
    eventually(lambda: len(cluster.directory.holders("m")) == 2)
    answer = client.shutdown("m")
    assert answer.status == 504
    assert "node 'rogue' cannot be reached" in answer.json["error"]["message"]
    assert "it was stopped on b" in answer.json["error"]["message"]
    assert {each["model"] for each in b.get("/backends?node=b").json["backends"]} == {"other"}
    rogue.publish("monitor.nodes.rogue", pack(Announcement("rogue", "1", 2, None, ["m", "other"])))
    eventually(lambda: len(cluster.directory.holders("other")) == 2)
    cluster.directory.record_silence("rogue")
    began = time.monotonic()
    assert "it was stopped on b" in client.shutdown("other").json["error"]["message"]
    assert time.monotonic() - began < 30  # less than the 60 s of the setting


def test_slow_stop_has_a_known_outcome(
    nats: NatsServer, make_monitor: Callable[..., Monitor], make_local: MakeLocal
) -> None:
    """The stopping node says every second that it works on it, so a short setting is enough."""
    make_local("b", nats.url, "m", respawn_watch_seconds=4.5)
    monitor = make_monitor(cluster=nats.url, node="a", cluster_timeout_seconds=3.0)
    client = Client(monitor.url)
    eventually(lambda: client.monitor("m").status == 200)
    assert client.shutdown("m").status == 200


def test_monitor_that_closes_during_a_remote_stop_says_what_to_ask(
    nats: NatsServer, make_monitor: Callable[..., Monitor], make_rogue: MakeRogue
) -> None:
    """The outcome on the nodes that have the model is unknown, and the error names them."""
    monitor = make_monitor(cluster=nats.url, node="a")
    cluster = cluster_node(monitor)
    rogue = announce_rogue(make_rogue(nats.url), monitor)
    received = threading.Event()

    def stop(message: Any) -> list[tuple[str, bytes]]:
        received.set()
        return [(f"{message.reply}.rogue", WORKING)]

    rogue.subscribe("monitor.shutdown.model.m", reply_with(OFFER))
    rogue.subscribe("monitor.shutdown.now.rogue.1", stop)
    answers: list[Response] = []

    def ask() -> None:
        answers.append(cluster.service.shutdown("m", False, None, None, OPS))

    asking = threading.Thread(target=ask)
    asking.start()
    assert received.wait(60)
    monitor.close()
    asking.join(60)
    (answer,) = answers
    assert (answer.status, answer.outcome) == (504, "outcome_unknown")
    assert b"unknown on node 'rogue'" in answer.body
    assert b"GET /backend/monitor?model=m&node=rogue" in answer.body


def test_node_that_only_says_working_is_named_unreachable(
    nats: NatsServer, make_monitor: Callable[..., Monitor], make_rogue: MakeRogue
) -> None:
    """Two nodes have a model that no announcement listed: one answers, the other only works."""
    monitor = make_monitor(cluster=nats.url, node="a", cluster_timeout_seconds=1.0)
    rogue = make_rogue(nats.url)
    reading = Reading(Backend("x", 1, "x", 0.0), Status(2), None, "grpc", None, 0.0)
    good = pack(Reply("good", "1", answer=Response(200, b'{"state":2}'), reading=reading))
    rogue.subscribe("monitor.read.model.x", reply_with(WORKING))
    rogue.subscribe("monitor.read.model.x", reply_with(good, "good"))
    client = Client(monitor.url)
    eventually(lambda: client.monitor("x").status == 200)
    answer = client.monitor("x")
    assert answer.headers["X-Monitor-Node"] == "good"
    assert answer.headers["X-Monitor-Unreachable"] == "rogue"


def test_requests_to_a_nats_server_that_hangs_are_bounded(
    nats: NatsServer, make_monitor: Callable[..., Monitor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They leave threads for requests about local models."""
    monkeypatch.setattr(service, "_MAX_UNKNOWN_READS", 1)
    monitor = make_monitor(cluster=nats.url, node="a", cluster_timeout_seconds=60.0)
    cluster = cluster_node(monitor)
    eventually(lambda: cluster.link.subscription_count == 5)
    suspend(nats.process.pid)
    threading.Thread(
        target=cluster.service.monitor, args=("x", None, None, OPS), daemon=True
    ).start()
    eventually(lambda: len(cluster.link.requests) == 1)
    answer = Client(monitor.url).monitor("y")
    assert (answer.status, answer.json["error"]["type"]) == (504, "node_unreachable")
    assert "wait for an answer already" in answer.json["error"]["message"]
    nats.process.send_signal(signal.SIGCONT)


@pytest.fixture
def short_lived() -> Iterator[tuple[int, list[float]]]:
    """A server that ends each connection after the handshake: its port, and when each came."""
    came: list[float] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                came.append(time.monotonic())
                with connection, contextlib.suppress(OSError):  # the client has gone
                    connection.settimeout(30)
                    connection.sendall(b'INFO {"max_payload":1048576,"headers":true}\r\n')
                    pings, data = 0, b""
                    while pings < 2 and (more := connection.recv(4096)):
                        data += more
                        for _ in range(data.count(b"PING\r\n") - pings):
                            connection.sendall(b"PONG\r\n")
                            pings += 1

        thread = threading.Thread(target=serve)
        thread.start()
        yield server.getsockname()[1], came
        server.shutdown(socket.SHUT_RDWR)
    thread.join()


def test_connections_that_end_at_once_are_made_after_a_pause(
    short_lived: tuple[int, list[float]],
    make_monitor: Callable[..., Monitor],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The pause is at least half a second, and the log has one line."""
    port, came = short_lived
    monitor = make_monitor(cluster=f"nats://127.0.0.1:{port}", node="a")
    eventually(lambda: len(came) >= 4)
    assert came[3] - came[0] > 3 * 0.5
    monitor.close()
    ended = [each for each in caplog.records if "ended; connecting again" in each.getMessage()]
    assert len(ended) == 1


def test_unreachable_servers_are_logged_once_each(
    make_monitor: Callable[..., Monitor], caplog: pytest.LogCaptureFixture
) -> None:
    """Each line has the reason of its own server."""
    caplog.set_level(logging.WARNING)
    urls = [f"nats://127.0.0.1:{free_port()}" for _ in range(2)]
    make_monitor(cluster=",".join(urls), node="a")

    def named() -> list[str]:
        lines = [each.getMessage() for each in caplog.records]
        return [url for url in urls for each in lines if f"connect to NATS at {url}," in each]

    eventually(lambda: len(named()) >= 2)
    assert sorted(named()) == sorted(urls)
