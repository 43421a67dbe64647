"""Nodes in networks of their own: the demo, and a link that is cut."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator

import psutil
import pytest

from monitor_plugin.demo.cluster import Place, networks

from ..support import Spawner, eventually, free_port, is_running, program
from .conftest import ROOT, MakeNode, Node

pytestmark = pytest.mark.once

DEMO = (sys.executable, "-m", "monitor_plugin.demo.cluster")


@pytest.fixture
def made() -> Iterator[tuple[str, dict[str, Place]]]:
    """Networks of two nodes; the test is skipped where they may not be made."""
    with contextlib.ExitStack() as stack:
        if os.geteuid() != 0 or shutil.which("ip") is None:
            pytest.skip("only root, and the program ip, can make networks")
        try:
            found = stack.enter_context(networks("ab"))
        except subprocess.CalledProcessError:
            pytest.skip("networks may not be made here")
        yield found


def networks_left(process: subprocess.Popen[str]) -> str:
    """List the network namespaces that a demo made and did not take away."""
    if shutil.which("ip") is None:
        return ""
    listed = subprocess.run(["ip", "netns"], capture_output=True, text=True, check=False).stdout
    links = subprocess.run(["ip", "link"], capture_output=True, text=True, check=False).stdout
    tag = process.pid % 100_000
    names = (f"monitor-demo-{tag}-", f" mon{tag}")
    return "\n".join(
        line for line in (listed + links).splitlines() if any(each in line for each in names)
    )


def test_the_demo_shows_one_view_and_a_remote_stop(spawner: Spawner) -> None:
    """`make demo-cluster` runs in networks or on ports, answers as it says, and leaves nothing."""
    program("nats-server")

    def run() -> str:
        process = spawner.process(*DEMO, "--once", cwd=ROOT)
        output, _ = process.communicate(timeout=100)
        assert process.returncode == 0, output
        eventually(lambda: not networks_left(process))  # the kernel takes its time
        return str(output)

    # A node that is slow to begin may be left out, which the answer says; not again and again.
    both = "X-Monitor-Node: gpu-1, gpu-2\nX-Monitor-Replicas: 2"
    output = next((each for each in (run() for _ in range(3)) if both in each), "")
    assert both in output
    assert "X-Monitor-Node: gpu-3\n" in output
    assert "is not loaded on any node" in output


@pytest.mark.parametrize(
    ("switches", "number", "early"),
    [(["--plain"], signal.SIGTERM, False), ([], signal.SIGINT, True)],
)
def test_the_demo_leaves_nothing_when_it_is_ended(
    switches: list[str], number: signal.Signals, early: bool, spawner: Spawner
) -> None:
    """Ctrl-C and SIGTERM end all that it began, while it starts as well as later."""
    program("nats-server")
    process = spawner.process(*DEMO, *switches, cwd=ROOT)
    assert process.stdout is not None
    began: set[psutil.Process] = set()
    if early:  # the NATS server and a node

        def two_run() -> bool:
            began.update(psutil.Process(process.pid).children(recursive=True))
            return sum(each.is_running() for each in began) >= 2

        eventually(two_run)
    else:
        while "Ctrl-C ends all of it" not in process.stdout.readline():
            assert process.poll() is None
    began.update(psutil.Process(process.pid).children(recursive=True))
    process.send_signal(number)
    assert process.wait(timeout=100) == 0
    assert not [each for each in began if is_running(each.pid) and each.is_running()]
    eventually(lambda: not networks_left(process))  # the kernel takes its time


def test_a_node_whose_link_is_cut(
    made: tuple[str, dict[str, Place]], spawner: Spawner, make_node: MakeNode
) -> None:
    """It is named within the deadline, answers for its own all the while, and comes back."""
    host, places = made
    port = free_port()
    spawner.process(
        *(program("nats-server"), "-a", host, "-p", str(port)), stderr=subprocess.DEVNULL
    )
    space = places["b"].command[-1]

    def node(name: str, model: str) -> Node:
        return make_node(
            *(name, f"nats://{host}:{port}", model),
            command=places[name].command,
            listen="0.0.0.0:8080",
            url=f"http://{places[name].host}:8080",
            insecure="true",
            cluster_timeout_seconds="3",
        )

    a, b = node("a", "here"), node("b", "there")
    cut = [program("ip"), "-n", space, "link", "set", "eth0"]
    eventually(lambda: a.reads("there") and b.reads("here"))
    subprocess.run([*cut, "down"], check=True)
    answer = a.client.monitor("there")
    assert (answer.status, answer.json["error"]["type"]) == (504, "node_unreachable")
    assert "node 'b'" in answer.json["error"]["message"]
    assert a.reads("here")
    ask = [
        *(*places["b"].command, program("curl"), "-s", "-m", "20"),
        "http://127.0.0.1:8080/backend/monitor?model=there",
    ]
    local_node = subprocess.run(ask, capture_output=True, text=True, check=True)
    assert '"state":2' in local_node.stdout
    subprocess.run([*cut, "up"], check=True)
    eventually(lambda: a.reads("there") and b.reads("here"), seconds=60)
