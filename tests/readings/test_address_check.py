"""A status is believed only from a member of the backend: real servers at shared addresses."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from monitor_plugin import Backend, Monitor, Reading, ShutdownFailed, Status, hookimpl
from monitor_plugin.api.results import reading_response
from monitor_plugin.backends.registry import Record
from monitor_plugin.domain.models import ProcessName
from monitor_plugin.processes import sockets
from monitor_plugin.processes.process import process_name
from monitor_plugin.processes.sockets import ListeningSockets
from monitor_plugin.readings.replicas import NO_MEMORY, NO_SAMPLE, combine
from monitor_plugin.rpc.protocol import SERVICE
from monitor_plugin.testing import backend_command

from ..support import (
    Client,
    Spawner,
    eventually,
    free_port,
    is_running,
    logged,
    program,
    register,
)


@pytest.fixture(params=["127.0.0.1", "[::]", "unix"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An address that is free."""
    if request.param == "unix":
        return f"unix:{tmp_path}/b.sock"
    return f"{request.param}:{free_port()}"


@pytest.fixture
def orphan(spawner: Spawner, address: str) -> Iterator[int]:
    """A server whose launcher was killed."""
    launcher = spawner.launcher(address)
    launcher.launch()
    launcher.process.kill()
    launcher.process.wait()
    yield launcher.server
    if is_running(launcher.server):
        launcher.end_server()


def read_until_owned(monitor: Monitor, owner: int | None) -> Reading:
    """Read until the reading names the owner; a look at the sockets is valid for some seconds."""

    def read() -> Reading | None:
        reading = monitor.read("m")
        found = reading.address_owner
        return reading if (found and found.pid) == owner else None

    return eventually(read)  # type: ignore[return-value]


def owner_events(client: Client) -> list[Any]:
    events = client.request("GET", "/events").json["events"]
    return [each["address_owner"] for each in events if each["type"] == "address_owner"]


def test_status_of_an_orphan_is_not_believed(
    make_monitor: Callable[..., Monitor],
    spawner: Spawner,
    orphan: int,
    address: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The reading is the sample, and everything says which process serves the address."""
    monitor = make_monitor()
    client = Client(monitor.url)
    process = spawner.sleeper()
    register(monitor, process.pid, address=address)
    for _ in range(3):
        answer = client.monitor("m")
        assert set(answer.json) == {"memory_info", "memory_percent", "cpu_percent"}
        assert answer.headers["X-Monitor-Source"] == "psutil"
        assert answer.headers["X-Monitor-Rpc-Error"] == "UNAVAILABLE"
        shown = answer.headers["X-Monitor-Address-Owner"]
        assert shown.startswith(f"{orphan} (python")
    name = shown.partition("(")[2].rstrip(")")
    (item,) = client.request("GET", "/backends").json["backends"]
    assert (item["state"], item["last_state"], item["served_by"]) == (None, None, None)
    assert item["address_owner"] == {"pid": orphan, "name": name}
    assert item["rpc_error"] == "UNAVAILABLE"
    assert monitor.read("m").address_owner == ProcessName(orphan, name)
    assert owner_events(client) == [{"pid": orphan, "name": name}]
    os.kill(orphan, signal.SIGKILL)
    assert read_until_owned(monitor, None).rpc_error == "UNAVAILABLE"
    assert owner_events(client) == [{"pid": orphan, "name": name}, None]
    (line,) = eventually(lambda: [each for each in logged(caplog) if "address" in each])
    assert f"process {process.pid}" in line
    assert f"is served by process {orphan} ({name}), which does not belong to the backend" in line


def test_restarted_launcher_is_ready_when_its_own_server_serves(
    make_monitor: Callable[..., Monitor], spawner: Spawner, address: str, orphan: int
) -> None:
    """While the orphan shares the address, either may answer; a unix socket is the newest's."""
    monitor = make_monitor()
    launcher = spawner.launcher(address)
    register(monitor, launcher.pid, address=address)
    assert read_until_owned(monitor, orphan).source == "psutil"
    launcher.launch()
    if not address.startswith("unix:"):
        eventually(lambda: [each.served_by for each in monitor.sweep()] == [launcher.server])
        for _ in range(20):
            reading = monitor.read("m")
            assert reading.rpc_error == "UNAVAILABLE"
            assert reading.address_owner
            assert reading.address_owner.pid == orphan
        os.kill(orphan, signal.SIGKILL)
    assert read_until_owned(monitor, None).source == "grpc"
    (item,) = Client(monitor.url).request("GET", "/backends").json["backends"]
    assert (item["state_name"], item["served_by"]) == ("ready", launcher.server)
    assert item["address_owner"] is None


def test_server_that_starts_after_the_last_snapshot_is_a_member(
    make_monitor: Callable[..., Monitor], spawner: Spawner, address: str
) -> None:
    """A process snapshot is used for a second; a new process is looked for in a new one."""
    monitor = make_monitor()
    launcher = spawner.launcher(address)
    register(monitor, launcher.pid, address=address)
    for _ in range(3):
        monitor.sweep()
        launcher.launch() if not launcher.server else None
        reading = eventually(lambda: monitor.read("m"))
        assert (reading.source, reading.address_owner) == ("grpc", None)
    assert [each.served_by for each in monitor.sweep()] == [launcher.server]


HANDING_ON = """
import socket, os, time
listener = socket.create_server(("127.0.0.1", 0))
print(f"127.0.0.1:{listener.getsockname()[1]}", flush=True)
input()
child = os.fork()
if child:
    listener.close()
    print(child, flush=True)
time.sleep(1000)
"""


def test_process_that_was_forked_after_the_snapshot_is_no_other_process(
    make_monitor: Callable[..., Monitor], spawner: Spawner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server may hand its socket to a new worker while the monitor looks who serves."""
    root = spawner.python(HANDING_ON, stdin=subprocess.PIPE)
    assert root.stdin
    assert root.stdout
    address = root.stdout.readline().strip()
    monitor = make_monitor(status_timeout_seconds=0.2)
    check = monitor._services.address_check
    find_members = check._members_since
    workers: list[int] = []
    orders, answers = root.stdin, root.stdout

    def find_members_before_fork(record: Record, time_seen: float) -> list[int]:
        found = find_members(record, time_seen)
        if not workers:
            orders.write("\n")
            orders.flush()
            workers.append(int(answers.readline()))
        return found

    monkeypatch.setattr(check, "_members_since", find_members_before_fork)
    register(monitor, root.pid, address=address)
    assert monitor.read("m").address_owner is None
    assert [each.served_by for each in monitor.sweep()] == workers
    assert owner_events(Client(monitor.url)) == []


def test_unimplemented_of_another_process_is_not_remembered(
    make_monitor: Callable[..., Monitor], spawner: Spawner
) -> None:
    """The backend's own server is asked when it serves."""
    address = f"127.0.0.1:{free_port()}"
    monitor = make_monitor()
    launcher = spawner.launcher(address)
    register(monitor, launcher.pid, address=address)
    assert monitor.read("m").rpc_error == "UNAVAILABLE"  # no answer yet
    stranger = spawner.launcher(address, no_status=True)
    stranger.launch()
    assert read_until_owned(monitor, stranger.server).rpc_error == "UNAVAILABLE"
    stranger.end_server()
    launcher.launch()
    assert read_until_owned(monitor, None).source == "grpc"


def test_backend_without_status_is_served_by_its_process(
    make_monitor: Callable[..., Monitor], spawner: Spawner
) -> None:
    """Its UNIMPLEMENTED is its own, until another process serves its address."""
    port = free_port()
    monitor = make_monitor()
    own = spawner.backend("--no-status", addr=f"127.0.0.1:{port}")
    own.register(monitor, "m")
    (observation,) = monitor.sweep()
    assert observation.reading
    assert observation.reading.rpc_error == "UNIMPLEMENTED"
    assert observation.served_by == own.pid
    stranger = spawner.backend(addr=f"127.0.0.1:{port}")
    assert read_until_owned(monitor, stranger.pid).rpc_error == "UNAVAILABLE"
    stranger.end()
    assert read_until_owned(monitor, None).rpc_error == "UNIMPLEMENTED"


class StatusPlugin:
    @hookimpl
    def monitor_query_status(self, backend: Backend) -> Status:
        return Status(2)


def test_status_of_a_hook_is_not_believed_either(
    make_monitor: Callable[..., Monitor], spawner: Spawner
) -> None:
    """The hook asks the same address."""
    monitor = make_monitor([StatusPlugin()])
    stranger, process = spawner.backend(), spawner.sleeper()
    register(monitor, process.pid, address=stranger.address)
    reading = monitor.read("m")
    assert (reading.source, reading.rpc_error) == ("psutil", "UNAVAILABLE")
    (observation,) = monitor.sweep()
    assert observation.reading
    assert observation.reading.address_owner == reading.address_owner
    stranger.end()
    eventually(lambda: monitor.read("m").source == "hook")  # no process is seen to serve


class AskingPlugin:
    """Asks the backend as a hook file does; another process begins to listen just before.

    Args:
        serve: makes that process listen.
    """

    def __init__(self, serve: Callable[[], object]) -> None:
        self._serve = serve

    @hookimpl
    def monitor_started(self, monitor: Monitor) -> None:
        self._monitor = monitor

    @hookimpl
    def monitor_query_status(self, backend: Backend) -> Status:
        self._serve()
        with self._monitor.open_channel(backend) as channel:
            grpc.channel_ready_future(channel).result(60)
        return Status(2)


def test_answer_of_a_process_that_began_to_listen_is_not_believed_from_a_hook(
    make_monitor: Callable[..., Monitor], spawner: Spawner
) -> None:
    """The sockets are looked at after the hook has connected, not before."""
    address = f"127.0.0.1:{free_port()}"
    stranger = spawner.launcher(address)
    monitor = make_monitor([AskingPlugin(stranger.launch)])
    register(monitor, spawner.sleeper().pid, address=address)
    reading = monitor.read("m")
    assert reading.source == "psutil"
    assert reading.address_owner
    assert reading.address_owner.pid == stranger.server


class CountingServer:
    """A server in this process, which counts the calls that it gets, and is always BUSY."""

    def __init__(self, address: str = "127.0.0.1:0") -> None:
        self.calls: list[str] = []

        def handler(name: str, answer: bytes) -> grpc.RpcMethodHandler[bytes, bytes]:
            def answers(request: bytes, context: grpc.ServicerContext) -> bytes:
                self.calls.append(name)
                return answer

            return grpc.unary_unary_rpc_method_handler(answers)

        handlers = {"Status": handler("Status", b"\x08\x01"), "Free": handler("Free", b"")}
        self.server = grpc.server(ThreadPoolExecutor(2))
        self.server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(SERVICE, handlers),)
        )
        self.address = f"127.0.0.1:{self.server.add_insecure_port(address)}"
        self.server.start()


@pytest.fixture
def server() -> Iterator[CountingServer]:
    server = CountingServer()
    yield server
    server.server.stop(None).wait()


def test_another_process_gets_no_call_and_delays_no_stop(
    make_monitor: Callable[..., Monitor], spawner: Spawner, server: CountingServer
) -> None:
    """Neither `Status`, which carries tokens, nor `Free`; a drain does not wait for it."""
    monitor = make_monitor(drain_timeout_seconds=200.0, stop_timeout_seconds=0.5)
    for busy in (False, True):
        serves = server.address if busy else ()
        process = spawner.sleeper(serves=serves)
        threading.Thread(target=process.wait, daemon=True).start()
        register(monitor, process.pid, address=server.address)
        assert monitor.read("m").source == ("grpc" if busy else "psutil")
        monitor.sweep()
        began = time.monotonic()
        with pytest.raises(ShutdownFailed, match="is still served by process"):
            monitor.shutdown("m", force=busy)
        assert time.monotonic() - began < 100
        assert set(server.calls) == ({"Status", "Free"} if busy else set())


def test_process_that_serves_before_the_backend_does_gets_no_call(
    make_monitor: Callable[..., Monitor], spawner: Spawner
) -> None:
    """Nothing listened at the first reading; what was seen then is used for a second."""
    address = f"127.0.0.1:{free_port()}"
    monitor = make_monitor(sweep_interval_seconds=0)
    register(monitor, spawner.sleeper().pid, address=address)
    assert monitor.read("m").rpc_error == "UNAVAILABLE"
    (record,) = monitor._services.registry.records()
    serving = record.serving
    assert serving
    server = CountingServer(address)
    eventually(lambda: time.monotonic() - serving.seen_at > 1.1)
    reading = monitor.read("m")
    server.server.stop(None).wait()
    assert reading.address_owner == ProcessName(os.getpid(), process_name(os.getpid()))
    assert server.calls == []


def test_socket_that_is_closed_meanwhile_is_no_other_process(
    make_monitor: Callable[..., Monitor], spawner: Spawner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server may end while the monitor looks for the process that holds its socket."""
    monitor = make_monitor(sweep_interval_seconds=0)
    table = monitor._services.address_check._socket_table
    find_sockets = table.find_sockets
    listener = socket.create_server(("127.0.0.1", 0))
    address = f"127.0.0.1:{listener.getsockname()[1]}"

    def find_sockets_before_close(*arguments: Any) -> ListeningSockets:
        found = find_sockets(*arguments)
        listener.close()
        return found

    monkeypatch.setattr(table, "find_sockets", find_sockets_before_close)
    register(monitor, spawner.sleeper().pid, address=address)
    assert monitor.read("m").address_owner is None


def test_status_is_believed_where_descriptors_may_not_be_read(
    spawner: Spawner, tmp_path: Path
) -> None:
    """The process that serves is then not known."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    stranger, process, other = spawner.backend(), spawner.sleeper(), spawner.backend()
    script = (
        "import os, sys\n"
        "from monitor_plugin import Monitor, Settings\n"
        "with Monitor(Settings(listen=None, status_timeout_seconds=30.0)) as monitor:\n"
        "    spawned = monitor.hook.monitor_backend_spawned\n"
        "    spawned(model='other', pid=int(sys.argv[3]), address=sys.argv[4])\n"
        "    monitor.sweep()\n"  # loads what gRPC imports at its first call
        "    spawned(model='m', pid=int(sys.argv[1]), address=sys.argv[2])\n"
        "    os.setresuid(65534, 65534, 65534)\n"
        "    for observation in monitor.sweep('m'):\n"
        "        print(observation.reading.source, observation.served_by)\n"
    )
    backends = [(process.pid, stranger.address), (other.pid, other.address)]
    arguments = [str(each) for backend in backends for each in backend]
    command = [sys.executable, "-c", script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "grpc None\n"


def test_status_is_believed_from_another_network_namespace(
    make_monitor: Callable[..., Monitor], spawner: Spawner, tmp_path: Path
) -> None:
    """A unix socket is reached from there, but /proc/net does not show it."""
    if os.geteuid() != 0:
        pytest.skip("only root can make a network namespace")
    address = f"unix:{tmp_path}/b.sock"
    command = [program("unshare"), "--net", *backend_command(addr=address)]
    process = spawner.process(*command)
    assert process.stdout
    assert process.stdout.readline().startswith("serving on ")
    monitor = make_monitor()
    register(monitor, spawner.sleeper().pid, address=address)
    (observation,) = monitor.sweep()
    assert observation.reading
    assert (observation.reading.source, observation.served_by) == ("grpc", None)


def test_status_is_believed_from_a_process_that_forwards_to_a_container(
    make_monitor: Callable[..., Monitor], spawner: Spawner
) -> None:
    """A process in another network namespace cannot listen here: docker-proxy does for it."""
    if os.geteuid() != 0:
        pytest.skip("only root can make a network namespace")
    forwarder = spawner.backend()
    container = spawner.process(program("unshare"), "--net", "sh", "-c", "echo up; sleep 1000")
    assert container.stdout
    assert container.stdout.readline() == "up\n"
    monitor = make_monitor()
    register(monitor, container.pid, address=forwarder.address)
    (observation,) = monitor.sweep()
    assert observation.reading
    assert (observation.reading.source, observation.reading.address_owner) == ("grpc", None)
    assert observation.served_by is None


def test_address_of_another_machine_is_not_checked(
    make_monitor: Callable[..., Monitor], spawner: Spawner
) -> None:
    """A local server at the same port has nothing to do with it."""
    stranger = spawner.backend(addr="0.0.0.0:0")
    port = stranger.address.rpartition(":")[2]
    monitor = make_monitor(insecure=True, status_timeout_seconds=0.2)
    register(monitor, spawner.sleeper().pid, address=f"192.0.2.1:{port}")
    reading = monitor.read("m")
    assert reading.address_owner is None
    assert reading.rpc_error


def test_check_of_a_backend_that_serves_itself_lists_no_descriptors_again(
    make_monitor: Callable[..., Monitor], spawner: Spawner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each sweep and each reading would otherwise read those of all members."""
    monitor = make_monitor()
    backend = spawner.backend("--fork-workers", "2")
    backend.register(monitor, "m")
    assert [each.served_by for each in monitor.sweep()] == [backend.pid]
    monkeypatch.setattr(sockets, "_descriptors", lambda pid: pytest.fail(f"listed {pid}"))
    table = monitor._services.address_check._socket_table
    for _ in range(3):
        table._snapshots.get(0.0)
        record = monitor._services.registry.records()[0]
        record.serving = None
        assert monitor.read("m").source == "grpc"
        assert [each.served_by for each in monitor.sweep()] == [backend.pid]


def test_reading_of_replicas_names_the_first_other_process() -> None:
    """Like their errors, it is not hidden by the replicas that answer."""
    backend = Backend("m", 5, "127.0.0.1:1", 0.0)
    fine = Reading(backend, Status(2), None, "grpc", None, 1.0)
    owned = Reading(
        backend, None, NO_SAMPLE, "psutil", "UNAVAILABLE", 1.0, address_owner=ProcessName(7, "x")
    )
    combined = combine([fine, owned], [NO_MEMORY, NO_MEMORY])
    assert combined.address_owner == ProcessName(7, "x")
    headers = reading_response(combined).headers
    assert headers["X-Monitor-Address-Owner"] == "7 (x)"
    assert "X-Monitor-Address-Owner" not in reading_response(fine).headers


@pytest.mark.parametrize(
    ("owner", "header"),
    [
        (ProcessName(4711, "docker-proxy"), "4711 (docker-proxy)"),
        (ProcessName(4711, None), "4711"),
        (ProcessName(None, None), "unknown"),
        (ProcessName(1, "a\r\nSet-Cookie: é"), "1 (a??Set-Cookie: ?)"),
    ],
)
def test_header_names_any_process(owner: ProcessName, header: str) -> None:
    """The name of a process may have any letters, a header may not."""
    backend = Backend("m", 5, "127.0.0.1:1", 0.0)
    reading = Reading(backend, None, NO_SAMPLE, "psutil", "UNAVAILABLE", 1.0, address_owner=owner)
    assert reading_response(reading).headers["X-Monitor-Address-Owner"] == header
