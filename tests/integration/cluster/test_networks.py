"""The cluster's demo, and nodes in network namespaces with a link that fails."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator

import psutil
import pytest

from monitor_plugin.demo.cluster import Place, network_namespaces

from ...support import Spawner, eventually, free_port, is_running, program
from ..browser import network_lock
from .conftest import ROOT, MakeNode, Node

pytestmark = [pytest.mark.once, pytest.mark.slow]

DEMO = (sys.executable, "-m", "monitor_plugin.demo.cluster")


@pytest.fixture(autouse=True, scope="module")
def _no_browser() -> Iterator[None]:
    """These tests add and remove network interfaces, which a browser would notice."""
    with network_lock(fcntl.LOCK_EX):
        yield


@pytest.fixture
def node_networks() -> Iterator[tuple[str, dict[str, Place]]]:
    """The networks of two nodes. The test is skipped if they cannot be made here."""
    with contextlib.ExitStack() as stack:
        if os.geteuid() != 0 or shutil.which("ip") is None:
            pytest.skip("networks need root and the program ip")
        try:
            found = stack.enter_context(network_namespaces("ab"))
        except subprocess.CalledProcessError:
            pytest.skip("networks cannot be made here")
        yield found


def remaining_networks(process: subprocess.Popen[str]) -> str:
    """List the network namespaces and links that a demo made and has not removed."""
    if shutil.which("ip") is None:
        return ""
    listed = subprocess.run(["ip", "netns"], capture_output=True, text=True, check=False).stdout
    links = subprocess.run(["ip", "link"], capture_output=True, text=True, check=False).stdout
    tag = process.pid % 100_000
    names = (f"monitor-demo-{tag}-", f" mon{tag}")
    return "\n".join(
        line for line in (listed + links).splitlines() if any(each in line for each in names)
    )


def test_the_demo_makes_its_calls_and_leaves_nothing(spawner: Spawner) -> None:
    """Every call of `make demo-cluster` gets the response that the demo expects."""
    program("nats-server")

    def run() -> str:
        process = spawner.process(*DEMO, "--once", cwd=ROOT)
        output, _ = process.communicate(timeout=100)
        assert process.returncode == 0, output
        eventually(lambda: not remaining_networks(process))  # the kernel takes its time
        return str(output)

    # The first reading may lack a node that is slow to reply, but not three times.
    both = "X-Monitor-Node: gpu-1, gpu-2\nX-Monitor-Replicas: 2"
    output = next((each for each in (run() for _ in range(3)) if both in each), "")
    assert both in output
    assert "X-Monitor-Node: gpu-3\n" in output
    assert "is not loaded on any node" in output


@pytest.mark.parametrize(
    ("switches", "number", "early"),
    [(["--plain"], signal.SIGTERM, False), ([], signal.SIGINT, True)],
)
def test_signals_end_the_demo_and_all_its_processes(
    switches: list[str], number: signal.Signals, early: bool, spawner: Spawner
) -> None:
    """Ctrl-C and SIGTERM end the demo while it starts as well as later."""
    program("nats-server")
    process = spawner.process(*DEMO, *switches, cwd=ROOT)
    assert process.stdout is not None
    started: set[psutil.Process] = set()
    if early:  # with the NATS server and one node

        def two_run() -> bool:
            started.update(psutil.Process(process.pid).children(recursive=True))
            return sum(each.is_running() for each in started) >= 2

        eventually(two_run)
    else:
        while "Ctrl-C ends all of it" not in process.stdout.readline():
            assert process.poll() is None
    started.update(psutil.Process(process.pid).children(recursive=True))
    process.send_signal(number)
    assert process.wait(timeout=100) == 0
    assert not [each for each in started if is_running(each.pid) and each.is_running()]
    eventually(lambda: not remaining_networks(process))  # the kernel takes its time


def test_a_node_with_a_failed_link_answers_alone_and_rejoins(
    node_networks: tuple[str, dict[str, Place]], spawner: Spawner, make_node: MakeNode
) -> None:
    """The other node names it in an error within the deadline."""
    host, places = node_networks
    port = free_port()
    spawner.process(
        *(program("nats-server"), "-a", host, "-p", str(port)), stderr=subprocess.DEVNULL
    )
    space = places["b"].command_prefix[-1]

    def node(name: str, model: str) -> Node:
        return make_node(
            *(name, f"nats://{host}:{port}", model),
            command=places[name].command_prefix,
            listen="0.0.0.0:8080",
            url=f"http://{places[name].host}:8080",
            insecure="true",
            cluster_timeout_seconds="3",
        )

    a, b = node("a", "here"), node("b", "there")
    set_link = [program("ip"), "-n", space, "link", "set", "eth0"]
    eventually(lambda: a.reads("there") and b.reads("here"))
    subprocess.run([*set_link, "down"], check=True)
    answer = a.client.monitor("there")
    assert (answer.status, answer.json["error"]["type"]) == (504, "node_unreachable")
    assert "node 'b'" in answer.json["error"]["message"]
    assert a.reads("here")
    command = [
        *(*places["b"].command_prefix, program("curl"), "-s", "-m", "20"),
        "http://127.0.0.1:8080/backend/monitor?model=there",
    ]
    answer_of_b = subprocess.run(command, capture_output=True, text=True, check=True)
    assert '"state":2' in answer_of_b.stdout
    subprocess.run([*set_link, "up"], check=True)
    eventually(lambda: a.reads("there") and b.reads("here"), seconds=60)
