"""The real supervisord, with programs that do not serve themselves, or hide their command lines."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from monitor_plugin.processes.sockets import SocketTable

from ..support import LIGHT_BACKEND, OVERWRITE_TITLE, Spawner, eventually, free_port, is_running
from .supervisord_host import Host, program

pytestmark = pytest.mark.slow

# Overwrites its command line, then serves.
TITLED = f"""
{OVERWRITE_TITLE}
import runpy
runpy.run_module("monitor_plugin.demo.backend", run_name="__main__")
"""
# Starts a server for each address that a client writes into a FIFO, as a container daemon does.
DAEMON = """
import subprocess, sys
while True:
    with open(sys.argv[1]) as fifo:
        for address in fifo.read().split():
            subprocess.Popen([*sys.argv[2:], "--addr", address])
"""


@pytest.fixture
def make_host(tmp_path: Path) -> Iterator[Callable[..., Host]]:
    """Starts supervisords, and ends them with all their processes."""
    hosts: list[Host] = []

    def make(*sections: str) -> Host:
        hosts.append(Host(tmp_path / str(len(hosts)), "\n".join(sections)))
        return hosts[-1].start()

    yield make
    for host in hosts:
        host.close()


@pytest.fixture
def address() -> str:
    return f"127.0.0.1:{free_port()}"


def script(path: Path, text: str) -> str:
    """Write an executable file, and return its path."""
    path.write_text(text)
    path.chmod(0o755)
    return str(path)


def accepts(address: str) -> bool:
    """Whether anything listens at an address."""
    host, _, port = address.rpartition(":")
    with contextlib.suppress(OSError), socket.create_connection((host, int(port)), 5):
        return True
    return False


def listener(address: str, root: int) -> int | None:
    """Return the descendant of a process that listens at an address."""
    pids = [each.pid for each in psutil.Process(root).children(recursive=True)]
    return SocketTable().find_listener(address, pids)


def item(host: Host, model: str) -> dict[str, Any]:
    """Return a model's only backend in the list, or nothing."""
    found = host.client.request("GET", f"/backends?model={model}").json["backends"]
    return dict(found[0]) if len(found) == 1 else {}


@pytest.mark.parametrize("name", ["uv", "sh"])
def test_server_of_any_launcher_is_registered(
    name: str, address: str, make_host: Callable[..., Host], tmp_path: Path
) -> None:
    """Its PID and figures are those of the server, and a stop ends both for good."""
    path = script(tmp_path / name, f'#!/bin/sh\n{LIGHT_BACKEND} "$@" &\nwait\n')
    host = make_host(program("m", f"{path} --addr {address}"))
    launcher = host.pid("m")
    server = eventually(lambda: listener(address, launcher))
    assert server
    eventually(lambda: host.backends("m") == [server])
    shown = eventually(lambda: it if (it := item(host, "m")).get("state") == 2 else None)
    assert shown
    assert shown["process"]["rss"] > 5 * 2**20  # a shell has less
    assert shown["process"]["tree"]["processes"] == 2
    assert host.hook_calls("gone") == []
    assert host.client.shutdown("m").status == 200
    assert not is_running(launcher)
    assert not is_running(server)
    assert not accepts(address)
    assert host.state("m") == "STOPPED"


@pytest.mark.once
def test_launcher_is_registered_while_its_server_is_away(
    address: str, make_host: Callable[..., Host], tmp_path: Path
) -> None:
    """The end of the server is an exit; its launcher stands in until the next server listens."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    loop = f"while :; do {LIGHT_BACKEND} --addr {address}; read line < {fifo}; done"
    host = make_host(program("m", f"bash -c {shlex.quote(loop)}"))
    launcher = host.pid("m")
    first = eventually(lambda: listener(address, launcher))
    assert first
    eventually(lambda: host.backends("m") == [first])
    os.kill(first, signal.SIGKILL)
    (end,) = eventually(lambda: host.hook_calls("gone"))
    assert (end["pid"], end["signal"]) == (first, signal.SIGKILL)
    eventually(lambda: host.backends("m") == [launcher])
    fifo.write_text("go\n")
    second = eventually(lambda: listener(address, launcher))
    assert second
    eventually(lambda: host.backends("m") == [second])
    assert host.pid("m") == launcher
    (ended,) = host.client.request("GET", "/backends").json["ended"]
    assert ended["left_behind"] == []  # the launcher is a backend again
    assert host.client.shutdown("m").status == 200
    assert not accepts(address)


@pytest.mark.once
def test_client_of_a_daemon_is_registered_itself(
    address: str, make_host: Callable[..., Host], tmp_path: Path, spawner: Spawner
) -> None:
    """The server belongs to the daemon, and a shutdown says that it still serves."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    spawner.python(DAEMON, str(fifo), *shlex.split(LIGHT_BACKEND))
    path = script(tmp_path / "docker", f'#!/bin/sh\necho "$3" > {fifo}\nexec sleep 100000\n')
    host = make_host(program("m", f"{path} run --addr {address}"))
    eventually(lambda: accepts(address))
    eventually(lambda: host.known("m"))
    client = host.pid("m")
    assert host.backends("m") == [client]
    shown = eventually(lambda: it if (it := item(host, "m")).get("address_owner") else None)
    assert shown
    answer = host.client.shutdown("m")
    assert answer.status == 500
    message = answer.json["error"]["message"]
    server = shown["address_owner"]["pid"]
    assert f"{address} is still served by process {server}" in message
    assert host.state("m") == "STOPPED"
    assert not is_running(client)
    assert is_running(server)
    assert [call["pid"] for call in host.hook_calls("registered")] == [client]


@pytest.mark.once
@pytest.mark.parametrize("quoted", [False, True])
def test_program_that_overwrites_its_command_line_is_found(
    quoted: bool, address: str, make_host: Callable[..., Host], tmp_path: Path
) -> None:
    """It is found by its configured command, also after a restart of the listener."""
    path = tmp_path / "titled.py"
    path.write_text(TITLED)
    command = f"{sys.executable} {path} --weights-mib 1 --addr {address}"
    host = make_host(program("m", f'sh -c "exec {command}"' if quoted else command))
    eventually(lambda: accepts(address))
    pid = host.pid("m")
    assert b"--addr" not in Path(f"/proc/{pid}/cmdline").read_bytes()
    eventually(lambda: host.backends("m") == [pid])
    old = host.pid("monitor")
    os.kill(old, signal.SIGKILL)
    eventually(lambda: host.pid("monitor") != old)
    eventually(lambda: host.backends("m") == [pid])
    assert host.client.shutdown("m").status == 200
    assert not accepts(address)


@pytest.mark.once
def test_server_of_a_killed_launcher_is_stopped_with_the_new_one(
    address: str, make_host: Callable[..., Host]
) -> None:
    """The new launcher's server is refused, as the old one holds the address; both are ended."""
    # gRPC's servers share an address (SO_REUSEPORT), so the new one does not end at once.
    server_command = f"{sys.executable} -m monitor_plugin.demo.backend --weights-mib 1"
    host = make_host(program("m", f'bash -c "{server_command} --addr {address}; :"'))
    launcher = host.pid("m")
    server = eventually(lambda: listener(address, launcher))
    assert server
    eventually(lambda: host.backends("m") == [server])
    os.kill(launcher, signal.SIGKILL)
    new_launcher = eventually(lambda: pid if (pid := host.pid("m")) != launcher else 0)
    new_server = eventually(lambda: listener(address, new_launcher))
    assert new_server
    eventually(lambda: f"is held by process {server} of model 'm'" in host.monitor_log)
    refused = host.client.request("GET", "/backends").json["refused"]
    assert [(each["model"], each["pid"]) for each in refused] == [("m", new_launcher)]
    assert host.backends("m") == [server]
    assert host.client.shutdown("m").status == 200
    assert host.state("m") == "STOPPED"
    assert not any(map(is_running, (server, new_launcher, new_server)))
    assert not accepts(address)


@pytest.mark.once
def test_process_group_of_a_program_is_stopped(
    address: str, make_host: Callable[..., Host]
) -> None:
    """supervisord makes programs leaders of process groups, not of sessions."""
    tree = "sh -c 'sleep 100001 & wait' & while :; do wait; sleep 1; done"
    declared = f'environment=MONITOR_ADDRESS="{address}"'
    host = make_host(program("m", f"bash -c {shlex.quote(tree)}", declared))
    root = host.pid("m")

    def descendants() -> list[psutil.Process]:
        found = psutil.Process(root).children(recursive=True)
        return [each for each in found if "100001" in " ".join(each.cmdline())]

    middle, sleep = eventually(lambda: two if len(two := descendants()) == 2 else [])
    eventually(lambda: host.backends("m") == [root])
    middle.kill()
    eventually(lambda: not is_running(middle.pid))
    assert host.client.shutdown("m").status == 200
    assert not is_running(root)
    assert not is_running(sleep.pid)
