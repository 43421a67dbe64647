"""The command line with a node of a cluster."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from monitor_plugin.cli.live import Top, draw
from monitor_plugin.cli.queries import fetch_backends
from monitor_plugin.client import Client

from ...gpus import GpuFile, make_gpu
from ...support import eventually
from .conftest import MakeLocal, MakeNode, NatsServer, NodeClient

pytestmark = pytest.mark.once


def command(node: NodeClient, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command of `monitor-plugin` with a node's URL."""
    return subprocess.run(
        [sys.executable, "-m", "monitor_plugin.cli", *arguments, "--url", node.client.url],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_ps_and_stop_cover_all_nodes(nats: NatsServer, make_local: MakeLocal) -> None:
    """`ps` has a column for nodes. `stop` stops a model on all of them, or on one with --node."""
    a = make_local("node-a", nats.url, "shared")
    make_local("node-b", nats.url, "shared", "other")
    eventually(lambda: a.merges("shared", "node-a", "node-b") and a.reads("other"))
    shown = command(a, "ps").stdout
    assert "NODE" in shown
    assert shown.count("node-a") == 1
    assert shown.count("node-b") == 2
    assert "3 backends" in shown
    assert "node-a" not in command(a, "ps", "--node", "node-b").stdout
    assert command(a, "stop", "--yes", "shared", "--node", "node-b").returncode == 0
    eventually(lambda: a.merges("shared", "node-a"))
    assert command(a, "stop", "--yes", "--all").returncode == 0
    assert not a.reads("shared")
    assert not a.reads("other")
    assert command(a, "status", "other").returncode == 4


def test_gpus_lists_those_of_all_nodes(
    nats: NatsServer, make_local: MakeLocal, make_node: MakeNode, tmp_path: Path
) -> None:
    """Each GPU has its node. `--node` lists one node. A node that does not answer is named."""
    devices = {name: GpuFile(tmp_path / name) for name in ("node-a", "node-b")}
    nodes = {
        name: make_local(name, nats.url, f"of {name}", plugins=[each])
        for name, each in devices.items()
    }
    a = nodes["node-a"]
    for each in devices.values():
        each.write(make_gpu({}, used=600 * 2**20))

    def lists(*names: str) -> bool:
        shown = command(a, "gpus").stdout
        return all(f"test0  {name}  600.0 MiB" in shown for name in names)

    eventually(lambda: lists("node-a", "node-b"))
    assert "node-a" not in command(a, "gpus", "--node", "node-b").stdout
    c = make_node("node-c", nats.url)
    eventually(lambda: a.lists("node-a", "node-b", "node-c"))
    c.signal(signal.SIGKILL)
    eventually(lambda: "node 'node-c'" in command(a, "gpus").stdout)
    assert lists("node-a", "node-b")


def test_models_of_an_unreachable_node_are_not_reported_as_ended(
    nats: NatsServer, make_local: MakeLocal, make_node: MakeNode
) -> None:
    """`status`, `ps`, `stop --all` and `top` name the node that does not answer."""
    a = make_local("node-a", nats.url, "here")
    b = make_node("node-b", nats.url, "far")
    eventually(lambda: a.reads("far"))
    b.signal(signal.SIGKILL)
    b.process.wait(timeout=30)
    known, unknown = command(a, "status", "here"), command(a, "status", "far")
    assert known.returncode == 0
    assert unknown.returncode == 1
    assert "is not loaded on any node that answers" in unknown.stderr
    assert "is not loaded on any node that answers" in command(a, "ps", "--model", "far").stdout
    client = Client(a.client.url)
    top = Top(client, fetch_backends(client)[0], "name", 0.2, lambda: None)
    assert "no answer of node-b" in str(draw(top.screen(), 120, 24)[0])
    stopped, nothing = command(a, "stop", "--yes", "--all"), command(a, "stop", "--yes", "--all")
    assert "here: stopped" in stopped.stdout
    assert "No model is loaded on any node that answers." in nothing.stdout
    assert (stopped.returncode, nothing.returncode) == (1, 1)
    for result in (known, unknown, stopped, nothing):
        assert "node 'node-b' cannot be reached" in result.stderr
