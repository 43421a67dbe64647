"""Helpers of the tests: real backends in real processes, an HTTP client, and free ports."""

from __future__ import annotations

import contextlib
import errno
import functools
import http.client
import itertools
import json
import os
import random
import shlex
import shutil
import signal
import socket
import socketserver
import subprocess
import sys
import threading
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import pytest

from monitor_plugin import Monitor
from monitor_plugin.client import open_connection
from monitor_plugin.demo.backend import Service, parse_arguments
from monitor_plugin.processes.members import Members
from monitor_plugin.processes.process_table import read_row
from monitor_plugin.processes.sockets import SocketTable
from monitor_plugin.testing import RunningBackend, backend_command, end_group
from monitor_plugin.testing import eventually as eventually

Backend = RunningBackend

# A backend that starts in a twentieth of a demo backend's CPU time. Each of its calls is answered.
# Switches: `--addr`, `--no-status` and `--ignore-sigterm`.
LIGHT_BACKEND = shlex.join(
    (sys.executable, "-S", "-E", str(Path(__file__).parents[1] / "benchmarks" / "light_backend.py"))
)

# Put this before a command to start it with SIGINT ignored, as a script starts background commands.
IGNORING_SIGINT = ("bash", "-c", "trap '' INT; exec \"$@\"", "bash")

_WITH_ZOMBIE = """
import os, subprocess, time
children = [subprocess.Popen(["sleep", "1000"]) for _ in range(2)]
children[0].kill()
os.waitid(os.P_PID, children[0].pid, os.WEXITED | os.WNOWAIT)
print("killed", flush=True)
time.sleep(1000)
"""

# Python code that overwrites the command line and the environment of its process in /proc, as the
# package `setproctitle` does. proc(5): fields 48 and 51 of `stat` are `arg_start` and `env_end`.
OVERWRITE_TITLE = """
import ctypes
with open("/proc/self/stat", encoding="latin-1") as file:
    fields = file.read().rpartition(")")[2].split()
start, end = int(fields[45]), int(fields[48])
ctypes.memset(start, 0, end - start)
ctypes.memmove(start, b"vllm::worker", 12)
"""


def free_port() -> int:
    """Return a port on which no process listens, and which no other test gets.

    The ports are outside the range of ephemeral ports, each process that runs tests has its own,
    and none is returned again soon. So the port is still free when a server listens later.
    """
    while True:
        port = next(own_ports())
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


@functools.cache
def own_ports() -> Iterator[int]:
    """Cycle through a range of ports that this process reserves until it ends.

    The reservation is the name of a socket. The socket stays open, so that the kernel frees the
    name when the process ends.
    """
    for first in range(10_000, 32_000, 220):
        reservation = socket.socket(socket.AF_UNIX)
        with contextlib.suppress(OSError):
            reservation.bind(f"\0monitor-plugin-tests-{first}")
            reservation.detach()
            ports = range(first, first + 220)
            # Hypothesis seeds `random`, so its functions would always give the same start.
            start = random.SystemRandom().randrange(len(ports))
            return itertools.cycle((*ports[start:], *ports[:start]))
        reservation.close()
    raise RuntimeError("100 processes run tests, and each has reserved a range of ports: end some")


def logged(caplog: pytest.LogCaptureFixture, *others: str) -> list[str]:
    """Return what the monitor and the named loggers logged in a test, also after its end.

    Other loggers are left out, as threads of earlier tests may still use them.
    """
    names = ("monitor_plugin", *others)
    records = caplog.get_records("call")  # `caplog.records` has those of the current phase only
    return [each.getMessage() for each in records if each.name.startswith(names)]


def is_running(pid: int) -> bool:
    """Whether a process exists and is no zombie. While any of its threads runs, it is not one."""
    try:
        with open(f"/proc/{pid}/stat", encoding="latin-1") as file:
            state, *numbers = file.read().rpartition(")")[2].split()
    except OSError:
        return False
    return state not in "ZX" or int(numbers[16]) > 1


def descriptors() -> set[tuple[str, str]]:
    """Return the open descriptors of this process: the number of each, and its target.

    A test left open what is in the set after it and was not before it. The numbers alone do not
    suffice: a descriptor of an earlier test may be closed meanwhile, and its number used again.
    """
    found = set()
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # such as the descriptor that listed the folder
            found.add((number, str(Path(f"/proc/self/fd/{number}").readlink())))
    return found


def count_pidfds() -> int:
    """Count the pidfds of this process."""
    return sum("pidfd" in target for _, target in descriptors())


def listening_descriptors(address: str) -> tuple[int, ...]:
    """Return the descriptors of the sockets with which this process listens at an address."""
    links = {f"socket:[{inode}]" for inode in SocketTable().find_sockets(address, 0.0).inodes}
    return tuple(int(number) for number, target in descriptors() if target in links)


def started_since(before: Collection[threading.Thread]) -> list[str]:
    """Return the names of new threads. Threads of earlier tests may end at any time."""
    return [each.name for each in threading.enumerate() if each not in before]


def refuse_thread(patch: pytest.MonkeyPatch, name: str | None = None) -> None:
    """Make `start` of threads fail, as if the system had no thread left.

    Args:
        patch: undoes it.
        name: the name of the threads; None: all threads.
    """
    start = threading.Thread.start

    def start_others(thread: threading.Thread) -> None:
        if name in (None, thread.name):
            raise RuntimeError("can't start new thread")
        start(thread)

    patch.setattr(threading.Thread, "start", start_others)


def refuse_descriptors(patch: pytest.MonkeyPatch, target: object, name: str) -> None:
    """Make a function raise OSError (EMFILE), as if the process had no descriptor left."""

    def refuse(*arguments: object, **options: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    patch.setattr(target, name, refuse)


def members_of(pid: int) -> Members:
    """Return the members of a backend whose registered process has this PID."""
    row = read_row(pid)
    return Members((pid, row.started if row else 0.0))


def read_line(process: subprocess.Popen[str]) -> str:
    """Read a line of the standard output of a process."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


def send_line(process: subprocess.Popen[str]) -> None:
    """Write an empty line to the standard input of a process."""
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def await_memory(pid: int) -> None:
    """Wait until the kernel reports memory of a new process, which may show 0 bytes at first."""
    eventually(lambda: (row := read_row(pid)) is not None and row.rss > 0)


def suspend(pid: int) -> None:
    """Send SIGSTOP to a child, and wait until all its threads have stopped."""
    os.kill(pid, signal.SIGSTOP)
    os.waitid(os.P_PID, pid, os.WSTOPPED)


def program(name: str) -> str:
    """Return the path of a program of .ci/setup. If it is missing, skip the test; fail in CI."""
    found = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin")
    if found is None:
        assert not os.environ.get("CI"), f"there is no {name}; .ci/setup installs it"
        pytest.skip(f"there is no {name} here")
    return found


class Launcher:
    """A process that starts a backend as its child when it is told to, and lives on without it.

    Args:
        process: runs COMMAND, with the command line of the backend.

    Attributes:
        process: the launcher.
        pid: the PID of the launcher.
        server: the PID of the backend; 0 before `launch`.
    """

    COMMAND = ("bash", "-c", 'read _; "$@" & wait; sleep 1000', "bash")

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.pid = process.pid
        self.server = 0

    def launch(self) -> None:
        """Start the backend, and wait until it serves."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline().startswith("serving on ")
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text()
        (self.server,) = map(int, children.split())

    def end_server(self) -> None:
        """Kill the backend alone."""
        os.kill(self.server, signal.SIGKILL)
        eventually(lambda: not is_running(self.server))


class Spawner:
    """Starts processes, each in a session of its own, and kills them at the end."""

    def __init__(self) -> None:
        self._processes: list[subprocess.Popen[str]] = []
        self._servers: list[grpc.Server] = []

    def process(self, *command: str, **options: Any) -> subprocess.Popen[str]:
        options = {"stdout": subprocess.PIPE, "text": True, "start_new_session": True, **options}
        process = subprocess.Popen(command, **options)
        self._processes.append(process)
        return process

    def python(self, code: str, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        return self.process(sys.executable, "-c", code, *arguments, **options)

    def sleeper(self, serves: str | Sequence[str] = ()) -> subprocess.Popen[str]:
        """Start a process that does nothing.

        Args:
            serves: addresses at which this process listens: the new process holds the sockets as
                well, as if it listened itself.
        """
        addresses = [serves] if isinstance(serves, str) else serves
        held = [number for each in addresses for number in listening_descriptors(each)]
        return self.process("sleep", "1000", pass_fds=held)

    def with_zombie(self) -> subprocess.Popen[str]:
        """Start a process with two children, of which one was killed and is not waited for."""
        process = self.python(_WITH_ZOMBIE)
        assert process.stdout
        assert process.stdout.readline() == "killed\n"
        return process

    def backend(self, *switches: str, addr: str = "127.0.0.1:0", **options: Any) -> Backend:
        """Start a demo backend, small by default, and wait until it serves."""
        return Backend(self.process(*backend_command(addr=addr), *switches, **options))

    def light_backend(self, *switches: str) -> Backend:
        """Start a light backend, and wait until it serves; see LIGHT_BACKEND."""
        return Backend(self.process(*shlex.split(LIGHT_BACKEND), *switches))

    def launcher(self, addr: str, **switches: bool | int | float | str) -> Launcher:
        """Start a launcher of a demo backend, which does not launch it yet."""
        command = backend_command(addr=addr, **switches)
        return Launcher(self.process(*Launcher.COMMAND, *command, stdin=subprocess.PIPE))

    def serve_here(self, *switches: str) -> str:
        """Serve as a demo backend with these switches in this process; return the address."""
        server = grpc.server(ThreadPoolExecutor(4))
        service = Service(parse_arguments(["--weights-mib", "2", "--kv-cache-mib", "1", *switches]))
        server.add_generic_rpc_handlers((service.handlers(),))
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        self._servers.append(server)
        return f"127.0.0.1:{port}"

    def backend_served_here(self, *switches: str) -> Backend:
        """Start a process that only sleeps, and for its backend a server in this process.

        The switches are those of a demo backend. The backend starts in milliseconds. The process
        holds the server's sockets, as if it listened itself. Use it only in tests of its answers:
        its server does not end with its process.
        """
        address = self.serve_here(*switches)
        script = f"echo serving on {address}; exec sleep 1000"
        held = listening_descriptors(address)
        return Backend(self.process("sh", "-c", script, pass_fds=held))

    def close(self) -> None:
        for server in self._servers:
            server.stop(grace=None)
        for process in self._processes:
            end_group(process)
            with contextlib.suppress(ProcessLookupError):
                process.kill()  # if it was started without a session of its own
            process.wait(timeout=60)
            for pipe in (process.stdout, process.stderr, process.stdin):
                if pipe:
                    pipe.close()


class ForeignServer(socketserver.ThreadingTCPServer):
    """A TCP server of another protocol than gRPC, which counts its connections."""

    allow_reuse_address = True  # so that another server can take its place at once

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.accepted: list[socket.socket] = []

    @property
    def connections(self) -> int:
        return len(self.accepted)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server_address[1]}"

    def get_request(self) -> tuple[socket.socket, Any]:
        accepted, client = super().get_request()
        self.accepted.append(accepted)
        return accepted, client


def sends(
    data: bytes, *, first: bool = False, closes: bool = True
) -> type[socketserver.BaseRequestHandler]:
    """Return a handler for `foreign_server` that sends some bytes.

    Args:
        data: the bytes.
        first: whether to send them before the client has sent anything.
        closes: whether to close the connection then, and not to wait for the client to do so.
    """

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with contextlib.suppress(OSError):
                if not first:
                    self.request.recv(65536)
                self.request.sendall(data)
                while not closes and self.request.recv(65536):
                    pass

    return Handler


@contextlib.contextmanager
def foreign_server(handler: type[socketserver.BaseRequestHandler]) -> Iterator[ForeignServer]:
    """Serve on a free port of loopback until the end of the `with` statement."""
    with ForeignServer(("127.0.0.1", free_port()), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
            for each in server.accepted:  # so that no handler waits for its client any more
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)


def register(monitor: Monitor, pid: Any, model: Any = "m", address: Any = "127.0.0.1:1") -> None:
    """Register a process as a backend, by default at an address where no server listens."""
    monitor.hook.monitor_backend_spawned(model=model, pid=pid, address=address)


def load_sleeper(monitor: Monitor, spawner: Spawner, model: str = "m") -> subprocess.Popen[str]:
    """Register a process that does nothing, and reap it when it exits, as a host does."""
    process = spawner.sleeper()
    threading.Thread(target=process.wait, daemon=True).start()
    register(monitor, process.pid, model, f"unix:/{process.pid}")
    return process


class Answer(NamedTuple):
    """An HTTP response; `json` is its decoded body."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Client:
    """An HTTP client for `http://HOST:PORT` or `unix:/PATH`, with one connection a request."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.path = url.removeprefix("unix:") if url.startswith("unix:") else None
        self.host, _, port = url.removeprefix("http://").rpartition(":")
        self.port = 0 if self.path else int(port)

    def connection(self, timeout: float = 60) -> http.client.HTTPConnection:
        return open_connection(self.url, timeout)

    def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        headers: dict[str, str] | None = None,
        timeout: float = 60,
    ) -> Answer:
        """Send a request. A body that is neither bytes nor str is sent as JSON."""
        sent = dict(headers or {})
        if body is not None and not isinstance(body, (bytes, str)):
            body = json.dumps(body)
            sent.setdefault("Content-Type", "application/json")
        with contextlib.closing(self.connection(timeout)) as connection:
            connection.request(method, path, body, sent)
            response = connection.getresponse()
            return Answer(response.status, response.headers, response.read())

    def monitor(self, model: str) -> Answer:
        return self.request("GET", "/backend/monitor", {"model": model})

    def shutdown(self, model: str, **fields: Any) -> Answer:
        return self.request("POST", "/backend/shutdown", {"model": model, **fields})
