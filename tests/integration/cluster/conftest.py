from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from monitor_plugin import Monitor

from ...support import Answer, Client, Spawner, eventually, free_port, program
from .rogue import Rogue
from .starting_host import StartingHost

ROOT = Path(__file__).parents[3]
NODE = "tests.integration.cluster.node_process"


def is_listening(port: int) -> bool:
    """Whether a server accepts connections on a port of loopback."""
    with contextlib.suppress(OSError):
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
        return True
    return False


class NatsServer:
    """A real nats-server on a free port, which can be killed and started again."""

    def __init__(self, spawner: Spawner, *arguments: str) -> None:
        self._program = program("nats-server")
        self._spawner = spawner
        self._arguments = arguments
        self.port = free_port()
        self.url = f"nats://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        """Start the server, and wait until it listens."""
        self.process = self._spawner.process(
            *(self._program, "-a", "127.0.0.1", "-p", str(self.port), *self._arguments),
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        eventually(lambda: is_listening(self.port))

    def kill(self) -> None:
        """Kill the server."""
        self.process.kill()
        self.process.wait(timeout=30)


class NodeClient:
    """A client of a node's HTTP server."""

    def __init__(self, name: str, url: str) -> None:
        self.name = name
        self.client = Client(url)

    def get(self, path: str) -> Answer:
        """Make a GET request."""
        return self.client.request("GET", path)

    def models(self) -> list[tuple[str, str]]:
        """Return the node and the model of each backend of all nodes."""
        answer = self.get("/backends").json
        return [(each["node"], each["model"]) for each in answer["backends"]]

    def lists(self, *nodes: str) -> bool:
        """Whether the node lists exactly these nodes without an error."""
        found = self.get("/backends?fresh=false").json["nodes"]
        return {each["node"] for each in found if each["error"] is None} == set(nodes)

    def reads(self, model: str) -> bool:
        """Whether the node can read a model on any node."""
        return self.client.monitor(model).status == 200

    def merges(self, model: str, *nodes: str) -> bool:
        """Whether the node merges the readings of a model from exactly these nodes."""
        return self.client.monitor(model).headers["X-Monitor-Node"] == ", ".join(nodes)


class Node(NodeClient):
    """A node in its own process, and a client of the node's HTTP server."""

    def __init__(
        self, process: subprocess.Popen[str], name: str, log: Path, url: str | None
    ) -> None:
        assert process.stdout is not None
        self.process = process
        self._log = log
        printed = process.stdout.readline().strip()
        assert printed, f"node {name} did not start: {log.read_text()}"
        super().__init__(name, url or printed)

    @property
    def log(self) -> str:
        """The text that the process wrote to its standard error."""
        return self._log.read_text()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process, but not to its backends."""
        os.kill(self.process.pid, number)


MakeLocal = Callable[..., NodeClient]
MakeNode = Callable[..., Node]
MakeRogue = Callable[..., Rogue]


@pytest.fixture
def make_nats(spawner: Spawner) -> Callable[..., NatsServer]:
    """Starts NATS servers with additional arguments, and ends them after the test."""
    return lambda *arguments: NatsServer(spawner, *arguments)


@pytest.fixture
def nats(make_nats: Callable[..., NatsServer]) -> NatsServer:
    """A NATS server on loopback without access control."""
    return make_nats()


@pytest.fixture
def make_local(make_monitor: Callable[..., Monitor], spawner: Spawner) -> MakeLocal:
    """Starts nodes in the process of the tests, from name, NATS servers, models and other settings.

    `MODEL:SWITCHES` starts a demo backend; `MODEL` alone starts a process that speaks no gRPC.
    """

    def make(name: str, cluster: str, *models: str, **settings: Any) -> NodeClient:
        monitor = make_monitor(node=name, cluster=cluster, **settings)
        for each in models:
            model, is_real, switches = each.partition(":")
            if is_real:
                backend = spawner.backend(*switches.split())
                pid, address = backend.pid, backend.address
            else:
                pid, address = spawner.sleeper().pid, f"127.0.0.1:{free_port()}"
            monitor.hook.monitor_backend_spawned(model=model, pid=pid, address=address)
        return NodeClient(name, monitor.url)

    return make


@pytest.fixture
def make_node(spawner: Spawner, tmp_path: Path) -> Iterator[MakeNode]:
    """Starts nodes in their own processes, from name, NATS servers, models and other settings.

    `command` is put before the command line; `url` replaces the URL that the node prints; `program`
    is the module to run, with additional variables in `environment`.
    """
    nodes: list[Node] = []

    def make(
        name: str,
        cluster: str,
        *models: str,
        command: Sequence[str] = (),
        url: str | None = None,
        program: str = NODE,
        environment: Mapping[str, str] = MappingProxyType({}),
        **settings: str,
    ) -> Node:
        values = {
            "listen": "127.0.0.1:0",
            "node": name,
            "cluster": cluster,
            "cluster_timeout_seconds": "10",
            "status_timeout_seconds": "30",
            "respawn_watch_seconds": "0.1",
            **settings,
        }
        variables = {f"MONITOR_{key.upper()}": value for key, value in values.items()}
        log = tmp_path / f"{name}.log"
        with log.open("a") as errors:
            process = spawner.process(
                *(*command, sys.executable, "-m", program, *models),
                stdin=subprocess.PIPE,
                stderr=errors,
                env={**os.environ, **variables, **environment},
                cwd=ROOT,
            )
        nodes.append(Node(process, name, log, url))
        return nodes[-1]

    yield make
    for node in nodes:
        with contextlib.suppress(ProcessLookupError):
            node.signal(signal.SIGCONT)


@pytest.fixture
def make_rogue() -> Iterator[MakeRogue]:
    """Starts rogues from the NATS server's URL and options of the client, and closes them."""
    rogues: list[Rogue] = []

    def make(url: str, **options: Any) -> Rogue:
        rogues.append(Rogue(url, **options))
        return rogues[-1]

    yield make
    for each in rogues:
        each.close()


class LocalHost(NodeClient):
    """A node in the process of the tests, with a host that starts its programs when asked."""

    def __init__(self, name: str, monitor: Monitor, host: StartingHost) -> None:
        super().__init__(name, monitor.url)
        self.monitor = monitor
        self.host = host


MakeHost = Callable[..., LocalHost]


@pytest.fixture
def make_host(make_monitor: Callable[..., Monitor], tmp_path: Path) -> Iterator[MakeHost]:
    """Starts nodes with a host, from name, NATS servers, switches by model and other settings.

    The programs and their switches are those of `StartingHost`; none of them runs at first.
    """
    hosts: list[StartingHost] = []

    def make(name: str, cluster: str, programs: dict[str, str], **settings: Any) -> LocalHost:
        monitor = make_monitor(node=name, cluster=cluster, **settings)
        hosts.append(StartingHost(monitor, programs, tmp_path / f"{name}.starts"))
        return LocalHost(name, monitor, hosts[-1])

    yield make
    for host in hosts:
        host.close()
