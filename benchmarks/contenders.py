"""Starts and ends backends, and the programs that the monitor is compared with."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import grpc
from naive import Target

from monitor_plugin.demo.ports import free_port
from monitor_plugin.rpc.protocol import STATUS_METHOD

_NAIVE = Path(__file__).with_name("naive.py")


@contextmanager
def process(command: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[str]]:
    """Run a process with its standard error discarded, and end it afterwards."""
    pipe = subprocess.PIPE
    options = {"stdin": pipe, "stdout": pipe, "stderr": subprocess.DEVNULL, **options}
    running = subprocess.Popen(command, text=True, **options)
    try:
        yield running
    finally:
        running.terminate()
        try:
            running.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            running.kill()
            running.communicate()


def _line(stream: IO[str] | None) -> str:
    assert stream
    return stream.readline().strip()


@contextmanager
def backend(*switches: str) -> Iterator[Target]:
    """Run a demo backend."""
    module = ("-m", "monitor_plugin.demo.backend", "--end-with-parent", "--weights-mib", "1")
    with process([sys.executable, *module, *switches]) as running:
        yield Target(running.pid, _line(running.stdout).removeprefix("serving on "))


@contextmanager
def naive(kind: str, targets: Sequence[Target], prefix: str) -> Iterator[int]:
    """Run a server of `naive.py`, and yield its port. Its models are PREFIX0, PREFIX1 and so on."""
    with process([sys.executable, str(_NAIVE), kind]) as running:
        assert running.stdin
        for number, target in enumerate(targets):
            running.stdin.write(f"{prefix}{number} {target.pid} {target.address}\n")
        running.stdin.write("\n")
        running.stdin.flush()
        yield int(_line(running.stdout))


@contextmanager
def bare_status(target: Target) -> Iterator[Callable[[], Callable[[], object]]]:
    """Yield a factory of functions that call a backend's `Status`, all over one channel."""
    with grpc.insecure_channel(target.address) as channel:
        method = channel.unary_unary(STATUS_METHOD, None, None)
        yield lambda: lambda: method(b"", timeout=10)


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port)).close()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


@contextmanager
def supervisord(folder: Path) -> Iterator[int]:
    """Run supervisord with a program `m`, and yield the port of its XML-RPC interface."""
    port = free_port()
    lines = [
        *("[supervisord]", "nodaemon=true", f"directory={folder}", f"childlogdir={folder}"),
        *(f"logfile={folder}/supervisord.log", f"pidfile={folder}/supervisord.pid"),
        *("[inet_http_server]", f"port=127.0.0.1:{port}"),
        *("[rpcinterface:supervisor]", "supervisor.rpcinterface_factory="),
        *("[program:m]", "command=sleep 1000"),
    ]
    lines[-3] += "supervisor.rpcinterface:make_main_rpcinterface"
    configuration = folder / "supervisord.conf"
    configuration.write_text("\n".join(lines) + "\n")
    command = [sys.executable, "-m", "supervisor.supervisord", "-c", str(configuration)]
    with process(command, stdout=subprocess.DEVNULL, cwd=folder):
        _wait_for(port)
        yield port


@contextmanager
def circus(folder: Path) -> Iterator[Callable[[], Callable[[], object]]]:
    """Run circusd with a watcher `m`, and yield a factory of functions that call its `stats`."""
    from circus.client import CircusClient

    ports = [free_port() for _ in range(2)]
    endpoint, pubsub = (f"tcp://127.0.0.1:{port}" for port in ports)
    configuration = folder / "circus.ini"
    configuration.write_text(
        f"[circus]\nendpoint = {endpoint}\npubsub_endpoint = {pubsub}\n"
        "[watcher:m]\ncmd = sleep 1000\n"
    )

    def make_call() -> Callable[[], object]:
        client = CircusClient(endpoint=endpoint, timeout=30)
        return lambda: client.send_message("stats", name="m")

    command = [sys.executable, "-m", "circus.circusd", str(configuration)]
    with process(command, stdout=subprocess.DEVNULL, cwd=folder):
        _wait_for(ports[0])
        make_call()()
        yield make_call
