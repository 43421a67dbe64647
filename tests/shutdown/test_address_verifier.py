"""The address of a stopped backend: free, or what still serves it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from monitor_plugin import Backend, Monitor, ShutdownFailed, hookimpl
from monitor_plugin.domain.models import ProcessName
from monitor_plugin.processes.address_probe import accepts_connection
from monitor_plugin.processes.sockets import SocketTable

from ..support import Client, Spawner, eventually, refuse_descriptors, register

pytestmark = pytest.mark.slow

# Accepts connections, prints the port, and goes on until a line on standard input. Several
# processes may share a port.
SERVES = """
import socket, sys
server = socket.create_server((sys.argv[1], int(sys.argv[2])), reuse_port=True)
print(server.getsockname()[1], flush=True)
sys.stdin.readline()
"""


class Host:
    """A host that stops backends itself, and records the outcomes of shutdowns."""

    def __init__(self, stops: bool = False) -> None:
        self.stops = stops
        self.outcomes: dict[int, str] = {}

    @hookimpl
    def monitor_stop_backend(self, backend: Backend) -> bool | None:
        if self.stops:
            os.kill(backend.pid, signal.SIGKILL)
        return self.stops or None

    @hookimpl
    def monitor_shutdown_finished(self, backend: Backend, outcome: str) -> None:
        self.outcomes[backend.pid] = outcome


@pytest.fixture
def make_quick(make_monitor: Callable[..., Monitor]) -> Callable[..., Monitor]:
    """Makes monitors that wait for nothing but what a test is about."""

    def make(plugins: Sequence[object] = (), **settings: float) -> Monitor:
        waits = {
            "drain_timeout_seconds": 0,
            "stop_timeout_seconds": 0.5,
            "respawn_watch_seconds": 0,
        }
        return make_monitor(plugins, **{**waits, "status_timeout_seconds": 0.2, **settings})

    return make


@pytest.fixture
def served(spawner: Spawner) -> tuple[subprocess.Popen[str], int]:
    """A process that accepts connections, and its port."""
    process = spawner.python(SERVES, "0.0.0.0", "0", stdin=subprocess.PIPE)
    assert process.stdout
    return process, int(process.stdout.readline())


def test_shutdown_fails_while_a_stuck_process_listens_at_the_address(
    make_quick: Callable[..., Monitor], spawner: Spawner
) -> None:
    """The kernel neither accepts nor refuses a connection once the queue of a listener is full."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(listener.getsockname())
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        eventually(lambda: accepts_connection(address, 0.1) is None)
        monitor = make_quick()
        register(monitor, spawner.sleeper().pid, address=address)
        with pytest.raises(ShutdownFailed, match=f"is still served by process {os.getpid()}"):
            monitor.shutdown("m")


@pytest.mark.parametrize("by_host", [False, True])
def test_shutdown_fails_while_another_process_serves_the_address(
    make_quick: Callable[..., Monitor],
    spawner: Spawner,
    served: tuple[subprocess.Popen[str], int],
    by_host: bool,
) -> None:
    """The error names the process; the outcome is `failed` everywhere."""
    server, port = served
    client = spawner.sleeper()
    host = Host(by_host)
    monitor = make_quick([host])
    register(monitor, client.pid, address=f"127.0.0.1:{port}")
    answer = Client(monitor.url).shutdown("m")
    assert answer.status == 500
    error = answer.json["error"]
    assert error["type"] == "shutdown_failed"
    assert error["message"] == (
        "model 'm' could not be stopped: its processes have ended, but "
        f"127.0.0.1:{port} is still served by process {server.pid} (python)"
    ).replace("(python)", f"({name_of(server.pid)})")
    assert client.wait(60) != 0
    assert host.outcomes == {client.pid: "failed"}
    assert 'monitor_backend_shutdowns_total{model="m",outcome="failed"} 1' in metrics(monitor)
    events = Client(monitor.url).request("GET", "/events").json["events"]
    assert [e["outcome"] for e in events if e["type"] == "shutdown_finished"] == ["failed"]


def test_shutdown_waits_within_the_grace_until_the_address_is_free(
    make_quick: Callable[..., Monitor],
    spawner: Spawner,
    served: tuple[subprocess.Popen[str], int],
) -> None:
    """As the client of a daemon may end before what the daemon has started."""
    server, port = served
    client = spawner.sleeper()
    monitor = make_quick(stop_timeout_seconds=600)
    register(monitor, client.pid, address=f"127.0.0.1:{port}")
    with ThreadPoolExecutor(1) as pool:
        stopping = pool.submit(monitor.shutdown, "m")
        client.wait(60)
        eventually(lambda: not monitor.backends())
        assert server.poll() is None
        server.communicate("\n", timeout=60)
        stopping.result(60)


def test_address_may_be_served_by_another_backend(
    make_quick: Callable[..., Monitor],
    spawner: Spawner,
    served: tuple[subprocess.Popen[str], int],
) -> None:
    """Its own address is written in another way. Once it is unregistered, the shutdown fails."""
    server, port = served
    monitor = make_quick()
    register(monitor, server.pid, "other", f"127.0.0.1:{port}")
    register(monitor, spawner.sleeper().pid, address=f"127.0.0.2:{port}")
    monitor.shutdown("m")
    register(monitor, server.pid, "other", f"127.0.0.3:{port}")
    register(monitor, spawner.sleeper().pid, address=f"127.0.0.1:{port}")
    monitor.shutdown("m")
    stranger = spawner.python(SERVES, "127.0.0.1", str(port), stdin=subprocess.PIPE)
    assert stranger.stdout
    stranger.stdout.readline()
    register(monitor, spawner.sleeper().pid, address=f"127.0.0.1:{port}")
    with pytest.raises(ShutdownFailed, match=f"by process {stranger.pid} ") as raised:
        monitor.shutdown("m")
    assert raised.value.pids == (stranger.pid,)


def test_address_may_be_registered_for_another_backend(
    make_quick: Callable[..., Monitor],
    spawner: Spawner,
    served: tuple[subprocess.Popen[str], int],
) -> None:
    """As soon as it is, also if another process serves it there."""
    _, port = served
    monitor = make_quick(stop_timeout_seconds=600)
    client, other = spawner.sleeper(), spawner.sleeper()
    register(monitor, client.pid, address=f"127.0.0.1:{port}")
    with ThreadPoolExecutor(1) as pool:
        stopping = pool.submit(monitor.shutdown, "m")
        eventually(lambda: not monitor.backends())
        register(monitor, other.pid, "other", f"localhost:{port}")
        stopping.result(60)


def test_restart_by_the_host_is_reported_before_the_address(
    make_quick: Callable[..., Monitor],
    spawner: Spawner,
    served: tuple[subprocess.Popen[str], int],
) -> None:
    """The error is that of a restart, though the address is served."""
    _, port = served

    class Restarts:
        @hookimpl
        def monitor_backend_gone(self, backend: Backend) -> None:
            if backend.pid == first.pid:
                register(monitor, second.pid, address=backend.address)

    first, second = spawner.sleeper(), spawner.sleeper()
    monitor = make_quick([Restarts()], respawn_watch_seconds=600)
    register(monitor, first.pid, address=f"127.0.0.1:{port}")
    with pytest.raises(ShutdownFailed, match="the host started it again"):
        monitor.shutdown("m")


def test_address_of_each_replica_is_checked(
    make_quick: Callable[..., Monitor],
    spawner: Spawner,
    served: tuple[subprocess.Popen[str], int],
) -> None:
    """One that is still served does not change the outcome of another replica."""
    _, port = served
    host = Host()
    monitor = make_quick([host])
    first, second = spawner.sleeper(), spawner.sleeper()
    register(monitor, first.pid, address=f"127.0.0.1:{port}")
    register(monitor, second.pid, address=f"unix:/{second.pid}")
    with pytest.raises(ShutdownFailed, match=f"but 127.0.0.1:{port} is still served"):
        monitor.shutdown("m")
    assert host.outcomes == {first.pid: "failed", second.pid: "stopped"}


def test_socket_of_a_path_is_checked(
    make_quick: Callable[..., Monitor], spawner: Spawner, tmp_path: os.PathLike[str]
) -> None:
    """A path at which nothing listens any more is free."""
    monitor = make_quick()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"{tmp_path}/socket")
        server.listen()
        register(monitor, spawner.sleeper().pid, address=f"unix:{tmp_path}/socket")
        expected = rf"but unix:{tmp_path}/socket is still served by process {os.getpid()} "
        with pytest.raises(ShutdownFailed, match=expected):
            monitor.shutdown("m")
    register(monitor, spawner.sleeper().pid, address=f"unix:{tmp_path}/socket")
    monitor.shutdown("m")


def test_process_that_cannot_be_seen_is_not_named(
    make_quick: Callable[..., Monitor],
    spawner: Spawner,
    served: tuple[subprocess.Popen[str], int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As in another network namespace, or another user's process."""
    _, port = served
    monitor = make_quick()
    for owner in (None, ProcessName(None, None)):
        monkeypatch.setattr(SocketTable, "owner", lambda table, address, owner=owner: owner)
        register(monitor, spawner.sleeper().pid, address=f"127.0.0.1:{port}")
        with pytest.raises(ShutdownFailed, match=f":{port} is still served$") as raised:
            monitor.shutdown("m")
        assert raised.value.pids == ()


def test_address_that_cannot_be_checked_is_a_failure(
    make_quick: Callable[..., Monitor], spawner: Spawner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a free descriptor it is not known whether anything accepts there."""
    monitor = make_quick([Host(stops=True)])
    register(monitor, spawner.sleeper().pid)
    refuse_descriptors(monkeypatch, socket, "socket")
    with pytest.raises(ShutdownFailed, match=r"1 cannot be checked: .* Too many open files"):
        monitor.shutdown("m")


def metrics(monitor: Monitor) -> str:
    return Client(monitor.url).request("GET", "/metrics").body.decode()


def name_of(pid: int) -> str:
    with open(f"/proc/{pid}/comm") as file:
        return file.read().strip()
