"""The command line against a node of a cluster."""

from __future__ import annotations

import subprocess
import sys

import pytest

from ..support import eventually
from .conftest import Asked, MakeLocal, NatsServer

pytestmark = pytest.mark.once


def command(node: Asked, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command of `monitor-plugin` against a node."""
    return subprocess.run(
        [sys.executable, "-m", "monitor_plugin.cli", *arguments, "--url", node.client.url],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_ps_and_stop_are_of_all_nodes(nats: NatsServer, make_local: MakeLocal) -> None:
    """`ps` has a column for nodes; `stop` stops on all of them, or on one with --node."""
    a = make_local("node-a", nats.url, "shared")
    make_local("node-b", nats.url, "shared", "other")
    eventually(lambda: a.finds("shared", "node-a", "node-b") and a.reads("other"))
    shown = command(a, "ps").stdout
    assert "NODE" in shown
    assert shown.count("node-a") == 1
    assert shown.count("node-b") == 2
    assert "3 backends" in shown
    assert "node-a" not in command(a, "ps", "--node", "node-b").stdout
    assert command(a, "stop", "--yes", "shared", "--node", "node-b").returncode == 0
    eventually(lambda: a.finds("shared", "node-a"))
    assert command(a, "stop", "--yes", "--all").returncode == 0
    assert not a.reads("shared")
    assert not a.reads("other")
    assert command(a, "status", "other").returncode == 4
