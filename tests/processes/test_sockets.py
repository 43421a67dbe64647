"""Who listens at an address, with real sockets and processes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from unittest.mock import Mock

import pytest

from monitor_plugin.domain.models import ProcessName
from monitor_plugin.processes import sockets
from monitor_plugin.processes.address_probe import accepts_connection
from monitor_plugin.processes.sockets import (
    Listeners,
    ListeningSockets,
    SocketTable,
)

from ..support import Spawner, eventually, free_port, is_running, refuse_descriptors

pytestmark = pytest.mark.once

# Listens at each address of its arguments, and tells each client its PID.
LISTENER = """
import contextlib, os, select, socket, sys
listeners = []
for address in sys.argv[1:]:
    host, _, port = address.rpartition(":")
    if host == "unix":
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(port.replace("@", chr(0)))
    else:
        listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind((host, int(port)))
    listener.listen()
    listeners.append(listener)
print("ready", flush=True)
while True:
    for ready in select.select(listeners, [], [])[0]:
        with ready.accept()[0] as client, contextlib.suppress(OSError):
            client.sendall(str(os.getpid()).encode())
"""

Listen = Callable[..., int]


@pytest.fixture
def listen(spawner: Spawner) -> Listen:
    """Starts a process that listens at addresses, and returns its PID."""

    def start(*addresses: str, cwd: Path | None = None) -> int:
        process = spawner.python(LISTENER, *addresses, cwd=cwd)
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        return process.pid

    return start


@pytest.fixture
def table() -> SocketTable:
    return SocketTable()


def listens(pid: int) -> Listeners:
    """What is found if one process holds all sockets."""
    return Listeners(pid, frozenset(), True)


def find_listeners(
    table: SocketTable, address: str, pids: Iterable[int], max_age_seconds: float = 1.0
) -> Listeners:
    sockets = table.find_sockets(address, max_age_seconds)
    return table.find_listeners(sockets.inodes, pids)


NONE = Listeners(None, frozenset(), True)


@pytest.mark.parametrize(
    ("bound", "dialled"),
    [
        ("127.0.0.1", "127.0.0.1:{}"),
        ("127.0.0.1", "localhost:{}"),
        ("127.0.0.1", ":{}"),
        ("127.0.0.1", "[::]:{}"),
        ("127.0.0.1", "ipv4:127.0.0.1:{}"),
        ("0.0.0.0", "127.0.0.1:{}"),
        ("0.0.0.0", "127.3.2.1:{}"),
        ("0.0.0.0", "0.0.0.0:{}"),
        ("::", "127.0.0.1:{}"),
        ("::", "[::1]:{}"),
        ("::", "*:{}"),
        ("::1", "[::1]:{}"),
        ("::1", "grpcs://localhost:{}"),
        ("::1", "0.0.0.0:{}"),
        ("::ffff:127.0.0.1", "127.0.0.1:{}"),
    ],
)
def test_listener_of_a_tcp_address_is_found(
    listen: Listen, table: SocketTable, bound: str, dialled: str
) -> None:
    """However the server has bound it, and however the address is written."""
    port = free_port()
    pid, bystander = listen(f"{bound}:{port}"), listen(f"127.0.0.1:{free_port()}")
    address = dialled.format(port)
    assert find_listeners(table, address, [bystander, pid]) == listens(pid)
    assert table.find_listener(address, [bystander]) is None
    owner = table.owner(address)
    assert owner
    assert owner.pid == pid
    assert owner.name
    assert owner.name.startswith("python")
    assert accepts_connection(address)


@pytest.mark.parametrize(
    ("bound", "dialled"),
    [
        ("127.0.0.1", "[::1]:{}"),
        ("127.0.0.1", "127.0.0.2:{}"),
        ("::1", "127.0.0.1:{}"),
        ("0.0.0.0", "[::1]:{}"),
    ],
)
def test_socket_that_does_not_accept_at_the_address_is_no_listener(
    listen: Listen, table: SocketTable, bound: str, dialled: str
) -> None:
    """Another address of the same port is another server's."""
    port = free_port()
    pid = listen(f"{bound}:{port}")
    address = dialled.format(port)
    assert find_listeners(table, address, [pid]) == NONE
    assert table.owner(address) is None
    assert not accepts_connection(address)


def test_address_of_an_interface_is_this_machines_own(listen: Listen, table: SocketTable) -> None:
    """Not only loopback: another machine's address has no listener here, whatever listens here."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 1))  # sends nothing
        except OSError:
            pytest.skip("this machine has no address but loopback")
        own = probe.getsockname()[0]
    port = free_port()
    pid = listen(f"0.0.0.0:{port}")
    assert table.find_listener(f"{own}:{port}", [pid]) == pid
    assert find_listeners(table, f"192.0.2.1:{port}", []) == NONE
    assert find_listeners(table, f"gpu-1.example:{port}", []) == NONE


def test_kernels_choice_between_the_addresses_of_a_port_is_followed(
    listen: Listen, table: SocketTable
) -> None:
    """The address itself is preferred to 0.0.0.0, and that to the unspecified one of IPv6."""
    port = free_port()
    bound = {host: listen(f"{host}:{port}") for host in ("::", "0.0.0.0", "127.0.0.1")}
    for host in ("127.0.0.1", "127.0.0.2", "::1"):
        with socket.create_connection((host, port)) as client:
            chosen = int(client.recv(100))
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        assert find_listeners(table, address, bound.values()) == listens(chosen)
        others = find_listeners(table, address, set(bound.values()) - {chosen})
        assert (others.pid, len(others.others)) == (None, 1)


def test_each_socket_that_shares_an_address_is_found(listen: Listen, table: SocketTable) -> None:
    """With SO_REUSEPORT the kernel gives a connection to any of them."""
    port = free_port()
    address = f"127.0.0.1:{port}"
    own, other = listen(address), listen(address)
    assert find_listeners(table, address, [own, other]) == listens(own)
    found = find_listeners(table, address, [own])
    assert found.pid == own
    owner = table.find_owner(ListeningSockets(found.others, time.monotonic()))
    assert owner
    assert owner.pid == other


def test_both_families_count_where_an_address_names_no_family(
    listen: Listen, table: SocketTable
) -> None:
    """Which one a client of `localhost` dials is not known."""
    port = free_port()
    own, other = listen(f"127.0.0.1:{port}"), listen(f"::1:{port}")
    assert find_listeners(table, f"127.0.0.1:{port}", [own]) == listens(own)
    for address in (f"localhost:{port}", f":{port}"):
        found = find_listeners(table, address, [own])
        assert (found.pid, len(found.others)) == (own, 1)
        assert find_listeners(table, address, [other, own]) == listens(other)


def test_listener_of_a_unix_socket_is_found(
    listen: Listen, table: SocketTable, tmp_path: Path
) -> None:
    """The path may have any letters, be a link, or be relative for the server."""
    (tmp_path / "link").symlink_to(tmp_path)
    names = ["plain.sock", "with space", "50%", "naïve"]
    bound = [*(f"{tmp_path}/{name}" for name in names), "@abs tract", "relative"]
    pid = listen(*(f"unix:{path}" for path in bound), cwd=tmp_path)
    for written in ("plain.sock", "link/plain.sock", "with%20space", "50%25", "naïve", "relative"):
        address = f"unix:{tmp_path}/{written}"
        assert find_listeners(table, address, [pid]) == listens(pid), written
        assert accepts_connection(address)
    assert find_listeners(table, "unix-abstract:abs%20tract", [pid]) == listens(pid)
    assert accepts_connection("unix-abstract:abs%20tract")
    assert not accepts_connection("unix-abstract:other")


def test_unix_socket_that_was_replaced_is_no_listener(
    listen: Listen, table: SocketTable, tmp_path: Path
) -> None:
    """The old server listens on, but clients reach the new one; without a path they reach none."""
    path = tmp_path / "b.sock"
    address = f"unix:{path}"
    old = listen(address)
    assert table.find_listener(address, [old]) == old
    path.unlink()
    assert find_listeners(table, address, [old], 0.0) == NONE
    assert not accepts_connection(address)
    new = listen(address)
    for _ in range(2):  # the second time without a connection
        assert find_listeners(table, address, [new], 0.0) == listens(new)
        assert find_listeners(table, address, [old], 0.0).pid is None
    path.unlink()
    newest = listen(address)
    assert find_listeners(table, address, [newest], 0.0) == listens(newest)


def test_relative_path_of_another_folder_is_no_listener(
    listen: Listen, table: SocketTable, tmp_path: Path
) -> None:
    """The kernel shows a path as the server has bound it."""
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    here = listen("unix:b.sock", cwd=tmp_path / "here")
    there = listen("unix:b.sock", cwd=tmp_path / "there")
    everyone = [there, here]
    assert find_listeners(table, f"unix:{tmp_path}/here/b.sock", everyone) == listens(here)
    assert find_listeners(table, f"unix:{tmp_path}/there/b.sock", everyone) == listens(there)


def test_unix_socket_of_the_same_name_in_another_folder_is_no_listener(
    table: SocketTable, tmp_path: Path
) -> None:
    """The file of a server that has ended stays."""
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
    with socket.socket(socket.AF_UNIX) as here, socket.socket(socket.AF_UNIX) as there:
        here.bind(str(tmp_path / "here/b.sock"))
        here.listen()
        there.bind(str(tmp_path / "there/b.sock"))
        there.listen()
        there.shutdown(socket.SHUT_RDWR)
        there.close()
        assert table.find_sockets(f"unix:{tmp_path}/here/b.sock", 0.0).inodes
        assert not table.find_sockets(f"unix:{tmp_path}/there/b.sock", 0.0).inodes


def test_unix_socket_that_is_put_back_is_a_listener_again(
    listen: Listen, table: SocketTable, tmp_path: Path
) -> None:
    """Both servers listen all the time, at the same path by their own words."""
    path = tmp_path / "b.sock"
    address = f"unix:{path}"
    first = listen(address)
    path.rename(tmp_path / "kept")
    second = listen(address)
    assert find_listeners(table, address, [first, second], 0.0).pid == second
    (tmp_path / "kept").rename(path)
    assert find_listeners(table, address, [first, second], 0.0).pid == first


def test_socket_of_a_parent_and_a_child_is_the_parents(
    spawner: Spawner, table: SocketTable
) -> None:
    """A child that inherited it listens as well, also alone."""
    script = (
        "import os, socket, time\n"
        "listener = socket.create_server(('127.0.0.1', 0))\n"
        "child = os.fork()\n"
        "if child: print(listener.getsockname()[1], child, flush=True)\n"
        "time.sleep(1000)\n"
    )
    parent = spawner.python(script)
    assert parent.stdout
    port, child = map(int, parent.stdout.readline().split())
    address = f"127.0.0.1:{port}"
    assert find_listeners(table, address, [parent.pid, child]) == listens(parent.pid)
    assert find_listeners(table, address, [child]) == listens(child)
    parent.kill()
    parent.wait()
    assert find_listeners(table, address, [parent.pid, child]) == listens(child)


def test_lookup_reads_the_descriptors_of_a_group_once(
    listen: Listen, table: SocketTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As long as the process holds the socket; a new server is found, too."""
    port = free_port()
    address = f"127.0.0.1:{port}"
    pid = listen(address)
    assert table.find_listener(address, [pid]) == pid
    with monkeypatch.context() as patch:
        patch.setattr(os, "listdir", lambda path: pytest.fail(f"listed {path}"))
        assert find_listeners(table, address, [pid], 0.0) == listens(pid)
    os.kill(pid, 9)
    eventually(lambda: not is_running(pid))
    assert find_listeners(table, address, [pid], 0.0) == NONE
    new = listen(address)
    assert find_listeners(table, address, [pid, new], 0.0) == listens(new)
    assert len(table._holders) == 1


def test_descriptors_that_may_not_be_read_are_said(listen: Listen) -> None:
    """Then it is not known whether the group holds the socket, nor who does."""
    port = free_port()
    pid = listen(f"127.0.0.1:{port}")
    script = (
        "import os, sys\n"
        "from monitor_plugin.processes.sockets import SocketTable\n"
        "os.setresuid(65534, 65534, 65534)\n"
        "table, address = SocketTable(), sys.argv[1]\n"
        "found = table.find_listeners(table.find_sockets(address).inodes, [int(sys.argv[2])])\n"
        "print(found.pid, len(found.others), found.is_complete, table.owner(address))\n"
    )
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    command = [sys.executable, "-c", script, f"127.0.0.1:{port}", str(pid)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == f"None 1 False {ProcessName(None, None)}"


def test_no_free_descriptor_means_that_nothing_is_known(
    listen: Listen, table: SocketTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next lookup may succeed."""
    address = f"127.0.0.1:{free_port()}"
    pid = listen(address)
    with monkeypatch.context() as patch:
        refuse_descriptors(patch, sockets, "take_snapshot")
        assert find_listeners(table, address, [pid]) == NONE
    assert table.find_listener(address, [pid]) == pid


def test_snapshot_is_shared_for_its_maximum_age(
    table: SocketTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many backends cost one pass over /proc/net; 0 seconds need a pass that begins now."""
    take = Mock(side_effect=sockets.take_snapshot)
    monkeypatch.setattr(sockets, "take_snapshot", take)
    for port in range(1, 20):
        table.find_sockets(f"127.0.0.1:{port}", 60.0)
    assert take.call_count == 1
    table.find_sockets("127.0.0.1:1", 0.0)
    assert take.call_count == 2


def test_pass_that_had_begun_before_is_not_new(
    table: SocketTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever asks for a new snapshot during a pass gets the one after it."""
    take, began, go = sockets.take_snapshot, threading.Event(), threading.Event()
    taken: list[sockets.SocketSnapshot] = []

    def slow() -> sockets.SocketSnapshot:
        taken.append(take())
        began.set()
        go.wait(60)
        return taken[-1]

    monkeypatch.setattr(sockets, "take_snapshot", slow)
    first = threading.Thread(target=table.find_sockets, args=("127.0.0.1:1", 0.0))
    first.start()
    began.wait(60)
    asked_at = time.monotonic()
    second = threading.Thread(target=table.find_sockets, args=("127.0.0.1:1", 0.0))
    second.start()
    go.set()
    for thread in (first, second):
        thread.join()
    assert taken[-1].taken_at >= asked_at


def test_process_whose_first_thread_has_exited_is_still_a_listener(
    spawner: Spawner, table: SocketTable
) -> None:
    """The kernel shows the descriptors for its other threads only."""
    script = (
        "import ctypes, socket, threading, time\n"
        "listener = socket.create_server(('127.0.0.1', 0))\n"
        "threading.Thread(target=time.sleep, args=(1000,)).start()\n"
        "print(listener.getsockname()[1], flush=True)\n"
        "ctypes.CDLL(None).syscall(60, 0)\n"  # exit, of this thread only
    )
    process = spawner.python(script)
    assert process.stdout
    address = f"127.0.0.1:{int(process.stdout.readline())}"
    eventually(lambda: os.listdir(f"/proc/{process.pid}/fd") == [])
    assert find_listeners(table, address, [process.pid]) == listens(process.pid)


def test_zombie_holds_no_socket(spawner: Spawner, listen: Listen) -> None:
    """It may not be read by every user, and yet nothing is unknown."""
    port = free_port()
    listen(f"127.0.0.1:{port}")
    script = (
        "import os, subprocess, sys\n"
        "from monitor_plugin.processes.sockets import SocketTable\n"
        "if os.geteuid() == 0: os.setresuid(65534, 65534, 65534)\n"
        "zombie = subprocess.Popen(['true'])\n"
        "os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOWAIT)\n"
        "table = SocketTable()\n"
        "inodes = table.find_sockets(sys.argv[1]).inodes\n"
        "found = table.find_listeners(inodes, [zombie.pid, os.getpid()])\n"
        "print(found.pid, len(found.others), found.is_complete)\n"
    )
    command = [sys.executable, "-c", script, f"127.0.0.1:{port}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "None 1 True"
