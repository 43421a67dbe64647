"""Backends of several processes, started as real launchers do: a shutdown leaves none of them."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from monitor_plugin import Monitor

from ..support import Client, Spawner, eventually, free_port, register
from ..systemd_machine import SystemdMachine, start_unit_command

pytestmark = pytest.mark.slow

TESTS = Path(__file__).parents[1]
SERVER = [sys.executable, "-S", "-E", str(TESTS.parent / "benchmarks" / "light_backend.py")]
STOPPED = (200, {"message": "model stopped"})
MARKER = "MONITOR_TEST_TREE"


class Tree:
    """The processes that a program of `tests/trees` starts, and all that they may leave behind.

    Attributes:
        name: of the segments of shared memory, and in the environment of each process.
        address: at which the tree serves, if any of its processes does.
        server: the command of a backend that serves at the address.
        environment: the variables by which its processes are found.
        root: the process that the host has started.
    """

    def __init__(self, spawner: Spawner) -> None:
        self._spawner = spawner
        self.name = f"test-{uuid.uuid4().hex}"
        self.address = f"127.0.0.1:{free_port()}"
        self.server = [*SERVER, "--addr", self.address]
        self._folder = tempfile.TemporaryDirectory()  # of fork servers, which may be killed
        self.environment = {MARKER: self.name, "TMPDIR": self._folder.name}

    def start(self, program: str, *arguments: str, **options: Any) -> str:
        """Start a program; return what it prints when its processes run."""
        command = [sys.executable, str(TESTS / "trees" / f"{program}.py"), *arguments]
        return self.run(*command, **options)

    def run(self, *command: str, **options: Any) -> str:
        """Start a command, as `start` does; reap it when it ends, as a host does."""
        environment = {**os.environ, **self.environment}
        self.root = self._spawner.process(*command, env=environment, **options)
        assert self.root.stdout
        line = self.root.stdout.readline()
        assert line.startswith(("ready", "serving"))
        threading.Thread(target=self.root.wait, daemon=True).start()
        return line

    def pids(self) -> list[int]:
        """List the processes of the tree, wherever they are; zombies have no environment."""
        entry, found = f"{MARKER}={self.name}".encode(), []
        for path in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):
                if entry in path.read_bytes().split(b"\0"):
                    found.append(int(path.parent.name))
        return found

    def left(self) -> dict[str, object]:
        """Return what is left of the tree, by kind; empty if nothing is."""
        names = {pid: _read(f"/proc/{pid}/cmdline").replace("\0", " ") for pid in self.pids()}
        port = f":{int(self.address.rpartition(':')[2]):04X} "
        sockets = [
            line
            for line in _read("/proc/net/tcp").splitlines()
            if port in line and line.split()[3] == "0A"  # LISTEN
        ]
        segments = [each for each in os.listdir("/dev/shm") if each.startswith(self.name)]
        found = {"processes": names, "listening": sockets, "shared memory": segments}
        return {kind: each for kind, each in found.items() if each}

    def close(self) -> None:
        """Kill what is left."""
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for path in Path("/dev/shm").glob(f"{self.name}*"):
            path.unlink(missing_ok=True)
        self._folder.cleanup()


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


@pytest.fixture
def tree(spawner: Spawner) -> Iterator[Tree]:
    tree = Tree(spawner)
    yield tree
    tree.close()


class Case:
    """A monitor in which a tree is registered as model `m`."""

    def __init__(
        self, make_monitor: Callable[..., Monitor], stop_timeout_seconds: float = 2
    ) -> None:
        self.monitor = make_monitor(
            sweep_interval_seconds=0.1, stop_timeout_seconds=stop_timeout_seconds
        )
        self.client = Client(self.monitor.url)

    def register(self, tree: Tree, source: str, processes: int) -> None:
        """Register a tree, and wait until the monitor has seen all its processes."""
        register(self.monitor, tree.root.pid, address=tree.address)
        self.await_processes(source, processes)
        assert len(tree.pids()) == processes

    def await_processes(self, source: str, processes: int) -> None:
        """Wait for a reading from this source, and for this number of processes of the tree."""
        eventually(lambda: self.listed()["source"] == source)
        eventually(lambda: self.listed()["process"]["tree"]["processes"] == processes)

    def listed(self) -> Any:
        (backend,) = self.client.request("GET", "/backends").json["backends"]
        return backend

    def shutdown(self) -> tuple[int, Any]:
        answer = self.client.shutdown("m")
        return answer.status, answer.json


@pytest.fixture
def case(make_monitor: Callable[..., Monitor]) -> Case:
    return Case(make_monitor)


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
@pytest.mark.parametrize("deaf", [[], ["deaf"]], ids=["polite", "deaf"])
def test_shared_memory_of_workers_is_removed(
    method: str, deaf: list[str], tree: Tree, case: Case
) -> None:
    """Python's resource tracker may remove it also after its processes had to be killed."""
    tree.start("shared_memory", method, tree.name, *deaf)
    assert "shared memory" in tree.left()
    case.register(tree, "psutil", 5 if method == "forkserver" else 4)
    assert case.shutdown() == STOPPED
    assert not tree.left()


def test_ranks_that_lead_sessions_are_stopped(tree: Tree, case: Case) -> None:
    """The launcher ends them itself."""
    tree.start("torchrun", *tree.server)
    case.register(tree, "grpc", 6)
    assert case.shutdown() == STOPPED
    assert not tree.left()


def test_ranks_of_a_killed_launcher_are_stopped(tree: Tree, case: Case) -> None:
    """They are in no session, and below no process, of the launcher."""
    tree.start("torchrun", *tree.server)
    case.register(tree, "grpc", 6)
    tree.root.kill()
    eventually(lambda: case.client.monitor("m").status == 500)
    assert case.shutdown() == STOPPED
    assert not tree.left()


@pytest.mark.parametrize("session", [[], ["--setsid"]], ids=["same session", "setsid"])
def test_daemons_that_were_seen_are_stopped(session: list[str], tree: Tree, case: Case) -> None:
    """A daemon whose parents have ended serves, and is measured and stopped."""
    tree.start("daemon", *session, *tree.server, stdin=subprocess.PIPE)
    case.register(tree, "grpc", 3)
    assert tree.root.stdin
    tree.root.stdin.write("\n")
    tree.root.stdin.flush()
    eventually(lambda: len(tree.pids()) == 2)
    eventually(lambda: case.listed()["process"]["tree"]["processes"] == 2)
    assert case.client.monitor("m").headers["X-Monitor-Source"] == "grpc"
    assert case.shutdown() == STOPPED
    assert not tree.left()


def test_process_group_is_stopped_after_a_parent_in_it_was_killed(tree: Tree, case: Case) -> None:
    """The child was never seen below its parent, and the root leads no session."""
    middle = int(tree.start("middle", start_new_session=False).split()[1])
    os.kill(middle, signal.SIGKILL)
    eventually(lambda: len(tree.pids()) == 2)
    case.register(tree, "psutil", 2)
    assert case.shutdown() == STOPPED
    assert not tree.left()


def test_child_of_a_killed_shell_is_stopped(tree: Tree, case: Case) -> None:
    """Until then, the monitor tells of what the shell has left behind."""
    tree.run("sh", "-c", "sleep 300 & echo ready; wait")
    case.register(tree, "psutil", 2)
    tree.root.kill()
    (child,) = eventually(lambda: tree.pids() if len(tree.pids()) == 1 else [])

    def left_behind() -> Any:
        ended = case.client.request("GET", "/backends").json["ended"]
        return ended and ended[0].get("left_behind")

    (told,) = eventually(left_behind)
    assert (told["pid"], told["name"]) == (child, "sleep")
    assert case.shutdown() == STOPPED
    assert not tree.left()
    eventually(lambda: left_behind() == [])


def test_request_in_a_worker_is_finished_before_the_worker_ends(
    tree: Tree, make_monitor: Callable[..., Monitor]
) -> None:
    """The root gets SIGTERM first, and its worker, which does not handle SIGTERM, later."""
    case = Case(make_monitor, stop_timeout_seconds=60)
    tree.start("draining", tree.name, "1.5")
    case.register(tree, "psutil", 2)
    with ThreadPoolExecutor(1) as pool, socket.socket(socket.AF_UNIX) as client:
        client.connect(f"\0{tree.name}")
        assert tree.root.stdout
        assert tree.root.stdout.readline() == "working\n"
        stopping = pool.submit(case.shutdown)
        assert client.recv(100) == b"done\n"
        assert stopping.result() == STOPPED
    assert not tree.left()


def test_address_that_another_process_serves_fails_the_shutdown(
    tree: Tree, case: Case, spawner: Spawner, tmp_path: Path
) -> None:
    """A client of a container engine ends, but what the engine runs for it does not."""
    engine = Tree(spawner)
    docker = str(TESTS / "trees" / "docker.py")
    proxy = tmp_path / "docker-proxy"
    proxy.symlink_to(sys.executable)
    path = str(tmp_path / "engine")
    engine.run(sys.executable, docker, "daemon", path)
    try:
        line = tree.run(sys.executable, docker, "run", path, str(proxy), *tree.server[1:])
        server = int(line.split()[1])
        register(case.monitor, tree.root.pid, address=tree.address)
        answer = case.client.monitor("m")
        assert answer.headers["X-Monitor-Source"] == "psutil"
        assert answer.headers["X-Monitor-Rpc-Error"] == "UNAVAILABLE"
        assert case.listed()["address_owner"] == {"pid": server, "name": "docker-proxy"}
        status, body = case.shutdown()
        assert (status, body["error"]["type"]) == (500, "shutdown_failed")
        served = f"{tree.address} is still served by process {server} (docker-proxy)"
        assert served in body["error"]["message"]
        assert list(tree.left()) == ["listening"]
    finally:
        engine.close()


@pytest.mark.parametrize("victim", ["root", "worker"])
def test_kill_in_the_middle_of_a_stop_leaves_nothing(victim: str, tree: Tree, case: Case) -> None:
    """Whichever process somebody else kills meanwhile, the stop goes on with the others."""
    line = tree.start("shared_memory", "spawn", tree.name, "deaf")
    case.register(tree, "psutil", 4)
    pid = tree.root.pid if victim == "root" else int(line.split()[1])
    with ThreadPoolExecutor(1) as pool:
        stopping = pool.submit(case.shutdown)
        eventually(lambda: (case.listed()["shutdown"] or {}).get("phase") == "stopping")
        os.kill(pid, signal.SIGKILL)
        assert stopping.result() == STOPPED
    assert not tree.left()


def test_daemons_of_a_systemd_unit_are_stopped(
    tree: Tree, case: Case, systemd_machine: SystemdMachine
) -> None:
    """They are in no session, and below no process, of the unit's main process."""
    command = '(setsid sleep 1000 &); exec "$@"'
    systemd_machine.run(
        *start_unit_command(
            "daemons", *("sh", "-c", command, "sh", *tree.server), **tree.environment
        )
    )
    eventually(lambda: "listening" in tree.left())
    register(case.monitor, systemd_machine.main_pid("daemons"), address=tree.address)
    case.await_processes("grpc", 2)
    assert case.shutdown() == STOPPED
    assert not tree.left()


def test_unit_that_a_client_of_systemd_started_fails_the_shutdown(
    tree: Tree, case: Case, systemd_machine: SystemdMachine
) -> None:
    """The client has ended, and systemd's unit serves on."""
    unit = shlex.join(start_unit_command("served", *tree.server))
    tree.run(*systemd_machine.enter("sh", "-c", f"{unit} && echo ready && exec sleep 1000"))
    eventually(lambda: "listening" in tree.left())
    register(case.monitor, tree.root.pid, address=tree.address)
    status, body = case.shutdown()
    assert (status, body["error"]["type"]) == (500, "shutdown_failed")
    served = (
        f"{tree.address} is still served by process {systemd_machine.main_pid('served')} (python"
    )
    assert served in body["error"]["message"]
    assert list(tree.left()) == ["listening"]
    systemd_machine.run("systemctl", "stop", "served")
