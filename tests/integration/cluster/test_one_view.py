"""Any node answers for all: several monitors, some in processes of their own, and a NATS server."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import re
import signal
import subprocess
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from urllib.parse import quote

import pytest

from monitor_plugin import InvalidBackend, Monitor
from monitor_plugin import monitor as monitor_module

from ...gpus import HOOK, VARIABLE, GpuFile, make_gpu
from ...support import (
    Answer,
    Client,
    Spawner,
    eventually,
    is_running,
    program,
    register,
    started_since,
)
from .conftest import MakeLocal, MakeNode, NatsServer, NodeClient
from .rogue import cluster_node

ODD = "org/mödel .*> 1"


def test_any_node_reads_stops_and_lists_models_of_others(
    nats: NatsServer, make_node: MakeNode
) -> None:
    """A model on one node is read and stopped from another, and the list shows every node."""
    a = make_node("a", nats.url, "one")
    b = make_node("b.example", nats.url, ODD)
    eventually(lambda: a.lists("a", "b.example") and b.lists("a", "b.example"))

    there = b.get(f"/backend/monitor?model={quote(ODD)}")
    here = a.get(f"/backend/monitor?model={quote(ODD)}")
    assert here.status == 200
    assert here.headers["X-Monitor-Node"] == there.headers["X-Monitor-Node"] == "b.example"
    assert here.body == there.body
    assert here.headers["X-Monitor-Source"] == "grpc"

    assert a.models() == b.models() == [("a", "one"), ("b.example", ODD)]
    assert a.get("/backends?node=b.example").json["backends"][0]["model"] == ODD
    targets = a.get("/cluster/targets").json
    assert {each["labels"]["node"]: each["targets"] for each in targets} == {
        "a": [f"127.0.0.1:{a.client.port}"],
        "b.example": [f"127.0.0.1:{b.client.port}"],
    }

    answer = a.client.shutdown(ODD)
    assert (answer.status, answer.json) == (200, {"message": "model stopped"})
    assert answer.headers["X-Monitor-Node"] == "b.example"
    assert b.client.monitor(ODD).json["error"]["type"] == "model_not_loaded"
    gone = a.client.monitor(ODD)
    assert gone.status == 500
    assert gone.json["error"]["type"] == "model_not_loaded"
    assert "on any node" in gone.json["error"]["message"]


def read_from(node: NodeClient, model: str, nodes: str) -> Answer | None:
    """Read a model; None unless exactly these nodes answered."""
    answer = node.client.monitor(model)
    return answer if answer.headers["X-Monitor-Node"] == nodes else None


@pytest.mark.once
def test_nodes_with_the_same_model_answer_as_replicas(
    nats: NatsServer, make_local: MakeLocal
) -> None:
    """A reading has the worst state and the sums of all nodes; a stop stops the model on all."""
    a = make_local("a", nats.url, "m:")
    make_local("b", nats.url, "m:--state 1", "other")
    c = make_local("c", nats.url, "m:--no-status")
    d = make_local("d", nats.url)
    for node in (a, d):
        answer = eventually(partial(read_from, node, "m", "a, b, c"))
        assert answer is not None
        assert answer.headers["X-Monitor-Replicas"] == "3"
        assert answer.json["state"] == 1
        assert answer.headers["X-Monitor-Memory-Source"].startswith("backend, ")
        assert answer.json["memory"]["total"] > 2 * 3 * 1024 * 1024
    narrowed = d.get("/backend/monitor?model=m&node=b")
    assert (narrowed.headers["X-Monitor-Node"], narrowed.json["state"]) == ("b", 1)

    pid = next(each["pid"] for each in d.get("/backends").json["backends"] if each["node"] == "b")
    unclear = d.get(f"/backend/monitor?model=m&pid={pid}")
    assert (unclear.status, unclear.json["error"]["type"]) == (400, "invalid_request")
    assert "a, b, c" in unclear.json["error"]["message"]
    assert d.get(f"/backend/monitor?model=m&pid={pid}&node=b").status == 200

    assert d.client.shutdown("m", node="a").status == 200
    for node in (c, d):
        eventually(partial(node.merges, "m", "b", "c"))
    answer = c.client.shutdown("m", force=True)
    assert answer.status == 200
    assert answer.headers["X-Monitor-Node"] == "b, c"
    assert d.client.monitor("m").json["error"]["type"] == "model_not_loaded"
    assert d.client.monitor("other").status == 200


def test_a_model_that_has_just_ended_on_a_node_is_stopped_on_the_others(
    nats: NatsServer, make_local: MakeLocal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node that does not know of that end yet requests a stop, and does not report silence."""
    a, b, c = (make_local(name, nats.url, "m") for name in "abc")
    for node in (b, c):
        eventually(partial(node.merges, "m", "a", "b", "c"))
    monkeypatch.setattr("monitor_plugin.cluster.peers.presence._GATHER_SECONDS", 60.0)
    (backend,) = a.get("/backends?node=a").json["backends"]
    os.kill(backend["pid"], signal.SIGKILL)
    eventually(lambda: a.get("/backends?node=a").json["backends"] == [])
    answer = c.client.shutdown("m")
    assert (answer.status, answer.json) == (200, {"message": "model stopped"})
    assert answer.headers["X-Monitor-Node"] == "b, c"


def test_a_node_announces_at_once_that_it_stopped_a_model(
    nats: NatsServer,
    make_local: MakeLocal,
    make_monitor: Callable[..., Monitor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """So the node that is asked next knows that the model has ended."""
    monkeypatch.setattr("monitor_plugin.cluster.peers.presence._HEARTBEAT_SECONDS", 1000.0)
    make_local("b", nats.url, "m")
    a = make_local("a", nats.url)
    other = cluster_node(make_monitor(cluster=nats.url, node="other"))
    eventually(lambda: a.reads("m") and other.directory.holders("m"))
    monkeypatch.setattr("monitor_plugin.cluster.peers.presence._GATHER_SECONDS", 1000.0)
    assert a.client.shutdown("m").status == 200
    eventually(lambda: not other.directory.holders("m"))


@pytest.mark.once
def test_any_node_stops_processes_left_behind_on_another(
    nats: NatsServer,
    make_local: MakeLocal,
    make_monitor: Callable[..., Monitor],
    spawner: Spawner,
) -> None:
    """Also if the model is loaded on a third node; then the model is loaded on no node."""
    first, second = (make_monitor(cluster=nats.url, node=name) for name in "ab")
    a, c = NodeClient("a", first.url), make_local("c", nats.url, "m")

    def knows(holders: list[str]) -> bool:
        return [each.name for each in cluster_node(first).directory.holders("m")] == holders

    for expected in (["b", "c"], ["b"]):
        root = spawner.process("sh", "-c", "sleep 300 & echo $!; wait")
        assert root.stdout
        child = int(root.stdout.readline())
        register(second, root.pid)
        root.kill()
        eventually(lambda: any(each["left_behind"] for each in a.get("/backends").json["ended"]))
        eventually(partial(knows, expected))
        assert a.client.monitor("m").status == (200 if "c" in expected else 500)
        answer = a.client.shutdown("m")
        assert (answer.status, answer.json) == (200, {"message": "model stopped"})
        assert answer.headers["X-Monitor-Node"] == ", ".join(expected)
        assert not is_running(child)
        assert c.client.shutdown("m").json["error"]["type"] == "model_not_loaded"


@pytest.mark.once
def test_pages_list_each_backend_once(nats: NatsServer, make_local: MakeLocal) -> None:
    """Pages by `limit` and `after` list the backends in the order of nodes and PIDs."""
    nodes = [make_local(name, nats.url, *(f"{name}{n}" for n in range(3))) for name in "ab"]
    eventually(lambda: all(node.lists("a", "b") for node in nodes))
    for limit in (1, 2, 3, 4, 100):
        seen, after, pages = [], "", 0
        while True:
            answer = nodes[1].get(f"/backends?limit={limit}&after={quote(after)}").json
            assert len(answer["backends"]) <= limit
            seen += [(each["node"], each["pid"]) for each in answer["backends"]]
            pages += 1
            if answer["next"] is None:
                break
            after = answer["next"]
        assert len(seen) == 6
        assert seen == sorted(set(seen))
        assert pages == -(-6 // limit)
    for wrong in (
        "limit=0",
        "limit=x",
        "limit=99999",
        "limit=00000000199999",
        "after=a",
        "after=a/x",
        "node=nobody",
    ):
        assert nodes[0].get(f"/backends?{wrong}").status == 400


def test_refused_registrations_of_all_nodes_are_listed(
    nats: NatsServer,
    make_monitor: Callable[..., Monitor],
    make_local: MakeLocal,
    spawner: Spawner,
) -> None:
    """Each has its node. Of several pages of a node, the first one has them."""
    monitor = make_monitor(node="a", cluster=nats.url)
    b = make_local("b", nats.url, "b0")
    pids = sorted(spawner.sleeper().pid for _ in range(3))
    for pid in pids[:2]:
        register(monitor, pid, address=f"127.0.0.1:{pid}")
    with pytest.raises(InvalidBackend) as raised:
        register(monitor, pids[2], "\u202e", ["no text"])
    reason = str(raised.value).removeprefix("the backend was not registered: ")
    expected = {"model": "\u202e", "pid": pids[2], "address": "['no text']", "reason": reason}
    expected["node"] = "a"
    eventually(lambda: b.lists("a", "b"))
    assert b.get("/backends").json["refused"] == [expected]
    assert b.get("/backends?node=a").json["refused"] == [expected]
    assert b.get("/backends?node=b").json["refused"] == []
    first, second = (f"/backends?limit=1&after={after}" for after in ("", f"a/{pids[0]}"))
    assert [b.get(page).json["refused"] for page in (first, second)] == [[expected], []]


@pytest.mark.once
def test_limits_of_each_node_are_listed(
    nats: NatsServer, make_local: MakeLocal, make_node: MakeNode
) -> None:
    """A node that may run on one core says so, whichever node is asked."""
    a, b = make_local("a", nats.url, "one"), make_node("b", nats.url, "two")
    eventually(lambda: a.lists("a", "b"))

    def cores() -> dict[str, float]:
        for thread in os.listdir(f"/proc/{b.process.pid}/task"):  # threads come and go
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(int(thread), {min(os.sched_getaffinity(0))})
        nodes = a.get("/backends").json["nodes"]
        assert all(each["machine"]["memory_available"] for each in nodes)
        return {each["node"]: each["machine"]["cpu_limit"] for each in nodes}

    eventually(lambda: cores() == {"a": float(len(os.sched_getaffinity(0))), "b": 1.0})


@pytest.mark.once
def test_prometheus_discovers_the_nodes(
    nats: NatsServer, make_local: MakeLocal, tmp_path: Path
) -> None:
    """Prometheus' own tool finds all nodes by `/cluster/targets`."""
    a = make_local("a", nats.url)
    make_local("b", nats.url, cluster_url="https://b.example/monitor")
    eventually(partial(a.lists, "a", "b"))
    config = tmp_path / "prometheus.yml"
    config.write_text(
        "scrape_configs:\n- job_name: models\n  http_sd_configs:\n"
        f"  - url: {a.client.url}/cluster/targets\n"
    )
    command = [program("promtool"), "check", "service-discovery", "--timeout=3s"]
    found = subprocess.run(
        [*command, str(config), "models"], capture_output=True, text=True, timeout=60, check=False
    )
    assert found.returncode == 0, found.stderr
    labels = [each["labels"] for each in json.loads(found.stdout)]
    assert {(each["node"], each["instance"]) for each in labels} == {
        ("a", f"127.0.0.1:{a.client.port}"),
        ("b", "b.example:443"),
    }


@pytest.mark.once
def test_subscriptions_follow_the_registered_models(
    nats: NatsServer, make_monitor: Callable[..., Monitor], spawner: Spawner
) -> None:
    """A model has two subscriptions until its last backend ends; no request or thread is left."""
    before = threading.enumerate()
    monitor = make_monitor(cluster=nats.url, node="a")
    cluster = cluster_node(monitor)
    link = cluster.link
    eventually(lambda: link.subscription_count == 5)
    backends = [spawner.backend() for _ in range(2)]
    for model, backend in zip(["m", "n"], backends, strict=True):
        monitor.hook.monitor_backend_spawned(model=model, pid=backend.pid, address=backend.address)
    eventually(lambda: link.subscription_count == 9)
    backends[0].process.kill()
    eventually(lambda: link.subscription_count == 7)
    client = Client(monitor.url)
    for _ in range(50):
        assert client.monitor("elsewhere").status == 500
    assert client.shutdown("n").status == 200
    eventually(lambda: link.subscription_count == 5)
    assert len(link.requests) == 0
    monitor.close()
    eventually(lambda: not started_since(before))


def test_ended_connections_leave_no_task_descriptor_or_subscription(
    nats: NatsServer, make_monitor: Callable[..., Monitor], spawner: Spawner
) -> None:
    """NATS ends several times, and the monitor connects again each time."""
    monitor = make_monitor(cluster=nats.url, node="a")
    sleeper = spawner.sleeper()
    monitor.hook.monitor_backend_spawned(model="m", pid=sleeper.pid, address="127.0.0.1:1")
    cluster = cluster_node(monitor)
    link = cluster.link
    # The task of the heartbeat starts after the subscriptions are made.
    eventually(lambda: link.subscription_count == 7 and cluster._presence._has_heartbeat)

    def counts() -> tuple[int, int]:
        return len(asyncio.all_tasks(link._loop)), len(os.listdir("/proc/self/fd"))

    tasks, descriptors = counts()
    for _ in range(3):
        nats.kill()
        eventually(lambda: not link.connected)
        nats.start()
        eventually(lambda: link.subscription_count == 7)
    eventually(lambda: counts()[0] <= tasks and counts()[1] <= descriptors)


@pytest.mark.once
def test_the_audit_of_the_stopping_node_names_the_client(
    nats: NatsServer,
    make_node: MakeNode,
    make_monitor: Callable[..., Monitor],
    spawner: Spawner,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The node that got the request checks the role; the one that stops the model audits too.

    The token itself does not leave the node that got the request.
    """
    caplog.set_level(logging.INFO, "monitor_plugin.audit")
    holder = make_monitor(cluster=nats.url, node="holder", token="its-own-token")
    backend = spawner.backend()
    holder.hook.monitor_backend_spawned(model="m", pid=backend.pid, address=backend.address)
    edge = make_node("edge", nats.url, token="the-edge-token")
    headers = {"Authorization": "Bearer the-edge-token"}
    ask = ("POST", "/backend/shutdown", {"model": "m"})
    assert edge.client.request(*ask).status == 401
    eventually(lambda: edge.client.request(*ask, headers).status == 200)
    audit = [each for each in caplog.records if each.name == "monitor_plugin.audit"]
    lines = [json.loads(record.getMessage()) for record in audit]
    (line,) = (each for each in lines if each["from"].startswith("node "))
    assert line["who"] == "token"
    assert line["from"] == "node edge (127.0.0.1)"
    assert (line["model"], line["outcome"]) == ("m", "stopped")
    assert line["freed"].startswith("gave back ")
    assert "the-edge-token" not in caplog.text


@pytest.mark.once
def test_refused_request_for_another_node_names_its_url(
    nats: NatsServer, make_local: MakeLocal
) -> None:
    """Events, history, members, peaks and fits are answered for the requested node only."""
    a = make_local("a", nats.url, "m")
    b = make_local("b", nats.url)
    eventually(lambda: a.lists("a", "b"))
    routes = ("/events?", "/history?", "/models/peaks?", "/fits?model=m&")
    for path in (*routes, "/backend/members?model=m&"):
        assert a.get(f"{path}node=a").status == 200
        refused = a.get(f"{path}node=b")
        assert (refused.status, refused.json["error"]["type"]) == (400, "invalid_request")
        assert f"ask node 'b', at {b.client.url}" in refused.json["error"]["message"]
        assert "no node 'c' is known" in a.get(f"{path}node=c").json["error"]["message"]


def test_a_monitor_without_a_cluster_shows_nothing_of_one(
    make_monitor: Callable[..., Monitor],
) -> None:
    """Without the setting there is no thread, field, header or route of a cluster."""
    before = threading.enumerate()
    client = Client(make_monitor().url)
    assert "nodes" not in client.request("GET", "/backends").json
    assert client.request("GET", "/cluster/targets").status == 404
    assert client.monitor("m").headers["X-Monitor-Node"] is None
    assert "node_unreachable" not in client.request("GET", "/openapi.json").body.decode()
    assert not [name for name in started_since(before) if "cluster" in name]


def test_nats_is_imported_only_for_a_cluster(spawner: Spawner) -> None:
    """With the setting but without the extra the error says what to install."""
    code = """
import sys
import monitor_plugin
monitor_plugin.Monitor(monitor_plugin.Settings(listen=None)).close()
parts = [name.split(".") for name in sys.modules]
print([name for name in parts if name[0] == "nats" or name[1:2] == ["cluster"]])
sys.modules["nats"] = None
try:
    monitor_plugin.Monitor(monitor_plugin.Settings(listen=None, cluster="nats://127.0.0.1:4222"))
except monitor_plugin.SettingsError as error:
    print(error)
"""
    output, _ = spawner.python(code).communicate(timeout=60)
    loaded, error = output.splitlines()
    assert loaded == "[]"
    assert "pip install 'monitor-plugin[cluster]'" in error


def test_every_response_names_its_node(nats: NatsServer, make_local: MakeLocal) -> None:
    """Errors and answers of one node name it too, but not to clients without a token."""
    token = "0123456789abcdef"
    a = make_local("a", nats.url, token=token)
    sent = {"Authorization": f"Bearer {token}"}
    for path in ("/backend/monitor", "/backends?fresh=no", "/cluster/targets", "/version"):
        assert a.client.request("GET", path, None, sent).headers["X-Monitor-Node"] == "a", path
    assert a.client.request("POST", "/backend/shutdown", {}, sent).headers["X-Monitor-Node"] == "a"
    assert a.get("/backends").headers["X-Monitor-Node"] is None


@pytest.mark.parametrize("partly", ["a", "b"])
def test_shutdown_is_verified_partly_if_it_is_on_any_node(
    nats: NatsServer,
    make_local: MakeLocal,
    monkeypatch: pytest.MonkeyPatch,
    partly: str,
) -> None:
    """The node that is asked may see everything, and another one not."""
    nodes = {}
    for name in ("a", "b"):
        unseen = "the backs of mirrors" if name == partly else None
        monkeypatch.setattr(monitor_module, "find_unseen", lambda unseen=unseen: unseen)
        nodes[name] = make_local(name, nats.url, "m", f"only-{name}")
    a = nodes["a"]
    eventually(partial(read_from, a, "m", "a, b"))
    eventually(partial(read_from, a, "only-b", "b"))
    assert a.client.shutdown("m").headers["X-Monitor-Verified"] == "partly"
    for name in ("a", "b"):
        verified = a.client.shutdown(f"only-{name}").headers["X-Monitor-Verified"]
        assert verified == ("partly" if name == partly else None)


def test_shutdown_reports_the_freed_memory_of_all_nodes(
    nats: NatsServer, make_local: MakeLocal, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The header has the sum, even if only another node has the model."""
    driver = GpuFile(tmp_path / "gpus.json")
    monkeypatch.setenv(VARIABLE, str(driver.path))
    a = make_local("a", nats.url, "m", hook=(HOOK,), memory_release_seconds=0.3)
    make_local("b", nats.url, "m", "there", hook=(HOOK,), memory_release_seconds=0.3)
    eventually(partial(read_from, a, "m", "a, b"))
    eventually(partial(read_from, a, "there", "b"))
    listed = a.get("/backends").json["backends"]
    driver.write(make_gpu({each["pid"]: 100 for each in listed}))
    freed = a.client.shutdown("there").headers["X-Monitor-Freed"]
    assert re.fullmatch(r"memory=\d+, gpu=0, gpu_left=100, seconds=0\.\d+", freed)
    freed = a.client.shutdown("m").headers["X-Monitor-Freed"]
    assert re.fullmatch(r"memory=\d+, gpu=0, gpu_left=200, seconds=0\.\d+", freed)
