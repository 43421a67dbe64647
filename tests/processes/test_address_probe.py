from __future__ import annotations

import contextlib
import select
import socket
import threading
import time
from pathlib import Path

import pytest

from monitor_plugin.processes import address_probe
from monitor_plugin.processes.address_probe import accepts_connection

from ..support import free_port

pytestmark = pytest.mark.once


def test_nothing_accepts_where_a_server_does_not_answer(tmp_path: Path) -> None:
    """The probe ends after its time, also if a name is resolved slowly."""
    assert not accepts_connection(f"127.0.0.1:{free_port()}")
    assert not accepts_connection(f"localhost:{free_port()}")
    assert not accepts_connection(f"unix:{tmp_path}/none.sock")
    (tmp_path / "file").touch()
    assert not accepts_connection(f"unix:{tmp_path}/file")
    assert not accepts_connection("gpu-1.invalid:1")
    with socket.socket() as bound:  # not listening
        bound.bind(("127.0.0.1", 0))
        assert not accepts_connection(f"127.0.0.1:{bound.getsockname()[1]}")


def test_probe_waits_no_longer_than_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A full queue drops connections, and name servers may not answer."""
    with socket.socket() as full, contextlib.ExitStack() as stack:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(3):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(full.getsockname())
        began = time.monotonic()
        assert not accepts_connection(f"127.0.0.1:{full.getsockname()[1]}", 0.2)
        assert time.monotonic() - began < 30
    resolve, go = socket.getaddrinfo, threading.Event()

    def slow(host: str, *arguments: int, **options: int) -> object:
        if options.get("flags"):
            return resolve(host, *arguments, **options)
        go.wait(60)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    assert not accepts_connection("gpu-1.example:1", 0.2)
    go.set()


def test_full_queue_of_a_unix_socket_is_a_server(tmp_path: Path) -> None:
    """Its kernel answer differs from that of a path without a server."""
    with socket.socket(socket.AF_UNIX) as full, contextlib.ExitStack() as stack:
        full.bind(f"{tmp_path}/full.sock")
        full.listen(0)
        for _ in range(3):
            client = stack.enter_context(socket.socket(socket.AF_UNIX))
            client.setblocking(False)
            client.connect_ex(f"{tmp_path}/full.sock")
        assert accepts_connection(f"unix:{tmp_path}/full.sock")


def test_connection_of_a_socket_with_itself_is_no_server() -> None:
    """TCP connects a socket with its own port if the kernel chooses that one for it."""
    with socket.socket() as itself:
        itself.bind(("127.0.0.1", 0))
        itself.connect(itself.getsockname())
        assert select.select([], [itself], [], 10)[1]
        assert not address_probe._has_peer(itself)
