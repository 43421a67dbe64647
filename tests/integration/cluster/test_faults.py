"""Failures of nodes, links and NATS servers, with real processes that are killed and stopped."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from monitor_plugin import Monitor
from monitor_plugin.cluster import service
from monitor_plugin.http.server.dispatcher import Dispatcher

from ...support import Spawner, eventually, free_port, register, started_since, suspend
from .conftest import MakeLocal, MakeNode, NatsServer, NodeClient

pytestmark = [pytest.mark.once, pytest.mark.slow]


def test_node_that_hangs_is_named_within_the_deadline(
    nats: NatsServer,
    make_node: MakeNode,
    make_local: MakeLocal,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A node that hangs costs one deadline, then less, until it announces itself again."""
    monkeypatch.setattr(service, "_FIRST_REPLY_SECONDS", 5.0)  # the other nodes may be slow
    a = make_local("a", nats.url, "here", "both", cluster_timeout_seconds=4.0)
    patient = make_local("patient", nats.url, "both", cluster_timeout_seconds=600.0)
    b = make_node("b", nats.url, "there", "both")
    for node in (a, patient):
        eventually(partial(node.merges, "both", "a", "b", "patient"))
        eventually(partial(node.reads, "there"))
    suspend(b.process.pid)
    # A node that has the model itself never waits for the deadline.
    for _ in range(2):
        both = patient.client.request("GET", "/backend/monitor?model=both", timeout=30)
        assert both.status == 200
        assert both.headers["X-Monitor-Unreachable"] == "b"
        assert both.headers["X-Monitor-Replicas"] == "2"
    for _ in range(2):
        answer = a.client.monitor("there")
        assert (answer.status, answer.json["error"]["type"]) == (504, "node_unreachable")
        assert "node 'b'" in answer.json["error"]["message"]
    # Local models are answered, and the list says which node is missing.
    assert a.reads("here")
    listed = a.get("/backends").json
    assert {each["model"] for each in listed["backends"]} == {"here", "both"}
    assert "b" in next(each["error"] for each in listed["nodes"] if each["node"] == "b")
    assert a.get("/backends?node=b").status == 504
    # A shutdown says that it did not reach the node, and that the state there is unknown.
    answer = a.client.shutdown("both")
    assert (answer.status, answer.json["error"]["type"]) == (504, "node_unreachable")
    message = answer.json["error"]["message"]
    assert "stopped on a, patient" in message
    assert "unknown" in message
    assert "/backends?node=b" in message
    b.signal(signal.SIGCONT)
    eventually(lambda: a.reads("there"))
    # The node did not stop the model late.
    assert b.get("/backend/monitor?model=both&node=b").status == 200


@pytest.mark.parametrize("path", ["/backend/monitor?model=there", "/backends?node=b"])
def test_requests_that_wait_for_a_node_hold_up_no_other_request(
    path: str,
    nats: NatsServer,
    make_node: MakeNode,
    make_monitor: Callable[..., Monitor],
    spawner: Spawner,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They count as waits, so that a thread is woken for each local reading at once."""
    monitor = make_monitor(node="a", cluster=nats.url, cluster_timeout_seconds=600.0)
    register(monitor, spawner.sleeper().pid, "here", f"127.0.0.1:{free_port()}")
    a = NodeClient("a", monitor.url)
    b = make_node("b", nats.url, "there")
    eventually(lambda: a.lists("a", "b") and a.reads("there"))
    suspend(b.process.pid)
    assert monitor._server is not None
    dispatcher = monitor._server._dispatcher
    with ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(a.get, path) for _ in range(4)]
        eventually(lambda: sum(each.waits for each in [*dispatcher._answering.values()]) == 4)
        monkeypatch.setattr(Dispatcher, "resize", lambda self: None)  # sees a stall
        for _ in range(3):
            answer = a.client.request("GET", "/backend/monitor?model=here", timeout=20)
            assert answer.status == 200
        assert not any(each.done() for each in waiting)
        monkeypatch.undo()
        b.signal(signal.SIGCONT)
        assert all(each.result(60).status == 200 for each in waiting)


def test_shutdown_says_that_its_outcome_is_unknown(
    nats: NatsServer, make_node: MakeNode, make_local: MakeLocal
) -> None:
    """The error names the node that became silent during the stop, and the requests to make."""
    a = make_local("a", nats.url, cluster_timeout_seconds=5.0)
    b = make_node("b", nats.url, "m:--state 1")  # a busy backend delays the stop
    eventually(lambda: a.reads("m"))

    def stop_once_it_drains() -> None:
        def drains() -> bool:
            found = b.get("/backends?fresh=false&node=b").json["backends"]
            return bool(found and found[0]["shutdown"])

        eventually(drains)
        b.signal(signal.SIGSTOP)

    thread = threading.Thread(target=stop_once_it_drains)
    thread.start()
    answer = a.client.shutdown("m")
    thread.join()
    assert (answer.status, answer.json["error"]["type"]) == (504, "outcome_unknown")
    message = answer.json["error"]["message"]
    for part in ("unknown", "'b'", "'m'", "/backend/monitor?model=m&node=b", "/backends?node=b"):
        assert part in message
    b.signal(signal.SIGCONT)


def test_node_that_dies_is_named_at_once(
    nats: NatsServer, make_node: MakeNode, make_local: MakeLocal
) -> None:
    """The error for a killed node's model names the node, without waiting for a deadline."""
    a = make_local("a", nats.url, "here", cluster_timeout_seconds=600.0)
    b = make_node("b", nats.url, "there")
    eventually(lambda: a.lists("a", "b") and a.reads("there"))
    b.process.kill()
    b.process.wait(timeout=30)

    def named() -> bool:
        # Until NATS notices the death, requests go to the dead connection and time out.
        with contextlib.suppress(TimeoutError):
            answer = a.client.request("GET", "/backend/monitor?model=there", timeout=5)
            message = answer.json["error"]["message"]
            return answer.status == 504 and "'b'" in message and "not connected to NATS" in message
        return False

    eventually(named)
    assert a.reads("here")
    assert a.client.shutdown("there").status == 504
    again = make_node("b", nats.url, "there")
    eventually(lambda: a.reads("there"))
    # A node that leaves properly is forgotten.
    assert again.process.stdin is not None
    again.process.stdin.close()
    again.process.wait(timeout=30)
    eventually(lambda: a.client.monitor("there").json["error"]["type"] == "model_not_loaded")
    eventually(lambda: a.lists("a"))


def test_nodes_survive_a_restart_of_nats(
    nats: NatsServer, make_local: MakeLocal, caplog: pytest.LogCaptureFixture
) -> None:
    """Without NATS a node answers for and stops its own models; afterwards all work again."""
    a = make_local("a", nats.url, "here", "here too", cluster_timeout_seconds=600.0)
    b = make_local("b", nats.url, "there", cluster_timeout_seconds=600.0)
    eventually(lambda: a.reads("there") and b.reads("here"))
    nats.kill()
    eventually(lambda: a.client.monitor("there").status == 504)
    assert "NATS" in a.client.monitor("there").json["error"]["message"]
    assert a.client.monitor("nowhere").status == 504, "the node cannot know"
    assert a.reads("here")
    assert a.client.shutdown("here too").status == 200
    assert a.get("/backends").status == 200
    eventually(lambda: caplog.text.count("will try again") == 2)
    nats.start()
    eventually(lambda: a.reads("there") and b.reads("here"))
    assert a.client.monitor("here too").json["error"]["type"] == "model_not_loaded"
    assert caplog.text.count("will try again") == 2, "each node logs it once"
    eventually(lambda: a.client.shutdown("there").status == 200)


def test_nodes_survive_a_nats_server_that_hangs(nats: NatsServer, make_local: MakeLocal) -> None:
    """Local models do not wait for a NATS server that hangs; afterwards all nodes work again.

    The connection counts as lost after 15 s and more.
    """
    a = make_local("a", nats.url, "here", "here too", "both", cluster_timeout_seconds=600.0)
    b = make_local("b", nats.url, "there", "both", cluster_timeout_seconds=1.0)
    eventually(lambda: a.merges("both", "a", "b") and a.reads("there") and b.reads("here"))
    nats.process.send_signal(signal.SIGSTOP)
    for model in ("here", "both", "both"):
        ask = ("GET", f"/backend/monitor?model={model}")
        assert a.client.request(*ask, timeout=12).status == 200
    ask = ("POST", "/backend/shutdown")
    assert a.client.request(*ask, {"model": "here too"}, timeout=12).status == 200
    answer = b.client.monitor("here")
    assert (answer.status, answer.json["error"]["type"]) == (504, "node_unreachable")
    answer = b.client.monitor("nowhere")
    assert answer.status == 504
    assert (
        "whether model 'nowhere' is loaded on a node is unknown" in answer.json["error"]["message"]
    )
    nats.process.send_signal(signal.SIGCONT)
    eventually(lambda: a.reads("there") and b.reads("here"), seconds=90)
    eventually(lambda: a.merges("both", "a", "b"), seconds=90)


def test_monitor_starts_and_serves_before_nats_does(
    nats: NatsServer, make_local: MakeLocal
) -> None:
    """A monitor without NATS serves its own models, and joins the cluster later."""
    nats.kill()
    a = make_local("a", nats.url, "here")
    b = make_local("b", nats.url)
    assert a.reads("here")
    for ask in (b.client.monitor, b.client.shutdown):
        answer = ask("here")  # it may be loaded on another node
        assert (answer.status, answer.json["error"]["type"]) == (504, "node_unreachable")
    nats.start()
    eventually(lambda: b.reads("here"))


def test_monitor_ends_while_nats_says_nothing(make_monitor: Callable[..., Monitor]) -> None:
    """A server that accepts connections and sends nothing does not delay `close`."""
    before = threading.enumerate()
    with socket.create_server(("127.0.0.1", 0)) as mute:
        url = f"nats://127.0.0.1:{mute.getsockname()[1]}"
        monitor = make_monitor(cluster=url, node="a", cluster_timeout_seconds=600.0)
        mute.settimeout(30)
        mute.accept()[0].close()
        connection, _ = mute.accept()  # the link connects again
        with connection:
            monitor.close()
    eventually(lambda: not started_since(before))


def test_nodes_survive_the_death_of_one_of_three_nats_servers(
    make_nats: Callable[..., NatsServer], make_local: MakeLocal
) -> None:
    """Nodes of a dead server connect to another one, and see all nodes as before."""
    ports = [free_port() for _ in range(3)]
    routes = ",".join(f"nats://127.0.0.1:{port}" for port in ports)
    servers = [
        make_nats(
            *("--cluster_name", "test", "--cluster", f"nats://127.0.0.1:{port}"),
            *("--routes", routes),
        )
        for port in ports
    ]
    cluster = ",".join(each.url for each in servers)
    nodes = {
        each: make_local(each, cluster if each == "c" else server.url + "," + cluster, f"m{each}")
        for each, server in zip("abc", servers, strict=True)
    }
    for node in nodes.values():
        eventually(partial(node.lists, "a", "b", "c"))
    servers[0].kill()
    for node in nodes.values():
        for model in ("ma", "mb", "mc"):
            eventually(partial(node.reads, model))
    eventually(lambda: nodes["b"].client.shutdown("ma").status == 200)
