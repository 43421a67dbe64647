"""What the tests share: real backends in real processes, an HTTP client, and waiting."""

from __future__ import annotations

import contextlib
import functools
import http.client
import itertools
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from monitor_plugin import Monitor
from monitor_plugin.client import open_connection
from monitor_plugin.testing import RunningBackend, backend_command, end_group
from monitor_plugin.testing import eventually as eventually

Backend = RunningBackend


def free_port() -> int:
    """Find a port on which nobody listens, and which nobody else is given.

    The system gives none of these to who asks for any, or connects; each worker of pytest-xdist has
    its own; and none is given again soon. So whoever listens later, or anew, finds it free.
    """
    while True:
        port = next(_ports())
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


@functools.cache
def _ports() -> Iterator[int]:
    """Go round the ports of this worker, beginning at any, where no earlier run may have."""
    share = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 8
    ports = range(10_000 + share * 2_750, 10_000 + (share + 1) * 2_750)
    # Of the system: what has a seed, as Hypothesis sets it, would begin at the same each time.
    begin = random.SystemRandom().randrange(len(ports))
    return itertools.cycle((*ports[begin:], *ports[:begin]))


def logged(caplog: pytest.LogCaptureFixture, *others: str) -> list[str]:
    """Give what the monitor, and others, logged in a test; also once that is over.

    What earlier tests may have left others to log is left out.
    """
    names = ("monitor_plugin", *others)
    records = caplog.get_records("call")  # `caplog.records` are those of the phase, as the end is
    return [each.getMessage() for each in records if each.name.startswith(names)]


def is_running(pid: int) -> bool:
    """Whether a process exists and is no zombie; one whose other threads run on is none yet."""
    try:
        with open(f"/proc/{pid}/stat", encoding="latin-1") as file:
            state, *numbers = file.read().rpartition(")")[2].split()
    except OSError:
        return False
    return state not in "ZX" or int(numbers[16]) > 1


def descriptors() -> set[tuple[str, str]]:
    """Tell which descriptors this process has open: the number of each, and what it is of.

    What a test left open is what is there after it and was not before. Numbers alone do not tell:
    what earlier tests or libraries had open may go meanwhile, and give theirs to others.
    """
    found = set()
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # such as the one that listed the others
            found.add((number, str(Path(f"/proc/self/fd/{number}").readlink())))
    return found


def started_since(before: Collection[threading.Thread]) -> list[str]:
    """Name the threads that are new, where those of earlier tests may end at any moment."""
    return [each.name for each in threading.enumerate() if each not in before]


def suspend(pid: int) -> None:
    """Stop a child (SIGSTOP), and wait until all its threads are, which a busy machine delays."""
    os.kill(pid, signal.SIGSTOP)
    os.waitid(os.P_PID, pid, os.WSTOPPED)


def program(name: str) -> str:
    """Find a program that .ci/setup installs; skip the test where it is not, but in CI."""
    found = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin")
    if found is None:
        assert not os.environ.get("CI"), f"there is no {name}; .ci/setup installs it"
        pytest.skip(f"there is no {name} here")
    return found


class Spawner:
    """Starts processes, each in a session of its own, and ends all of them at the end."""

    def __init__(self) -> None:
        self._processes: list[subprocess.Popen[str]] = []

    def process(self, *command: str, **options: Any) -> subprocess.Popen[str]:
        options = {"stdout": subprocess.PIPE, "text": True, "start_new_session": True, **options}
        process = subprocess.Popen(command, **options)
        self._processes.append(process)
        return process

    def python(self, code: str, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        return self.process(sys.executable, "-c", code, *arguments, **options)

    def sleeper(self) -> subprocess.Popen[str]:
        return self.process("sleep", "1000")

    def backend(self, *switches: str, addr: str = "127.0.0.1:0", **options: Any) -> Backend:
        """Start a demo backend, and wait until it serves. Small unless told otherwise."""
        return Backend(self.process(*backend_command(addr=addr), *switches, **options))

    def close(self) -> None:
        for process in self._processes:
            end_group(process)
            with contextlib.suppress(ProcessLookupError):
                process.kill()  # one that was started without a session of its own
            process.wait(timeout=60)
            for pipe in (process.stdout, process.stderr, process.stdin):
                if pipe:
                    pipe.close()


def load_sleeper(monitor: Monitor, spawner: Spawner, model: str = "m") -> subprocess.Popen[str]:
    """Register a process that does nothing, and is reaped at its end, as a host does."""
    process = spawner.sleeper()
    threading.Thread(target=process.wait, daemon=True).start()
    address = f"unix:/{process.pid}"
    monitor.hook.monitor_backend_spawned(model=model, pid=process.pid, address=address)
    return process


class Answer(NamedTuple):
    """An HTTP answer; `json` is its decoded body."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Client:
    """Speaks HTTP to a monitor, at `http://HOST:PORT` or `unix:/PATH`, a connection per request."""

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
        """Send a request; a body that is no bytes or string goes as JSON, with its content type."""
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
