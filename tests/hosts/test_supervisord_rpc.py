"""Calls to what should be a supervisord, and is not, or does not answer."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from monitor_plugin import MonitorError
from monitor_plugin.hosts.supervisord import rpc as supervisord_calls
from monitor_plugin.hosts.supervisord.rpc import CallFailed, Supervisord


@contextmanager
def server(answer: bytes) -> Iterator[str]:
    """A server that answers one request with the same bytes whatever it is."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        thread.join(30)


@pytest.mark.parametrize(
    "body", [b"<html>", b"<methodResponse></methodResponse>", b"\xff\xfe", b"<a><int>x</int></a>"]
)
def test_another_server(body: bytes) -> None:
    """A server that is no supervisord is an error that names its URL."""
    head = f"HTTP/1.0 200 OK\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    with server(head + body) as url, pytest.raises(CallFailed, match=f"{url} cannot be asked"):
        Supervisord(url).call("getState")
    with server(b"SSH-2.0-OpenSSH\r\n") as url, pytest.raises(CallFailed, match="cannot be asked"):
        Supervisord(url).call("getState")


def test_one_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A supervisord that hangs costs a call its time, on unix sockets and on TCP."""
    monkeypatch.setattr(supervisord_calls, "_CALL_SECONDS", 0.1)
    with closing(socket.socket(socket.AF_UNIX)) as unix, closing(socket.socket()) as tcp:
        unix.bind(str(tmp_path / "s"))
        unix.listen()
        tcp.bind(("127.0.0.1", 0))
        tcp.listen()
        for url in (f"unix://{tmp_path}/s", f"http://127.0.0.1:{tcp.getsockname()[1]}"):
            with pytest.raises(CallFailed, match="timed out"):
                Supervisord(url).call("getState")
    with pytest.raises(CallFailed, match="cannot be asked") as caught:
        Supervisord(f"unix://{tmp_path}/none").call("getState")
    assert not caught.value.for_good


@pytest.mark.parametrize(
    ("fault", "for_good", "said"),
    [(1, True, r"\[rpcinterface:supervisor\]"), (6, False, "fault 6, SHUTDOWN_STATE")],
)
def test_faults(fault: int, for_good: bool, said: str) -> None:
    """A fault is named; a missing RPC interface is one of the configuration's."""
    body = (
        "<methodResponse><fault><value><struct><member><name>faultCode</name><value>"
        f"<int>{fault}</int></value></member><member><name>faultString</name><value>"
        "<string>SHUTDOWN_STATE</string></value></member></struct></value></fault></methodResponse>"
    ).encode()
    head = f"HTTP/1.0 200 OK\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    with server(head + body) as url, pytest.raises(CallFailed, match=said) as caught:
        Supervisord(url).call("getState")
    assert (caught.value.fault, caught.value.for_good) == (fault, for_good)


def test_urls_that_cannot_be_used() -> None:
    """A URL of another kind is refused, and one with a password without showing it."""
    for url in ("localhost:9001", "https://localhost:9001", "http://[x"):
        with pytest.raises(MonitorError, match="is neither http:"):
            Supervisord(url)
    for url in ("http://ops:s3cret@localhost:9001", "https://o:s3cret@h", "http://o:s3cret@[x",
                "ops:s3cret@h:9001", "http://o:s3/cret@h"):  # fmt: skip
        with pytest.raises(MonitorError, match="SUPERVISOR_PASSWORD") as caught:
            Supervisord(url)
        assert "cret" not in str(caught.value)
    assert Supervisord("unix:///run/a@b").url == "unix:///run/a@b"
    assert "s3cret" not in repr(Supervisord("http://localhost:9001", "ops", "s3cret"))
    with pytest.raises(CallFailed, match="cannot be asked"):
        Supervisord("http://localhost:many").call("getState")
