"""Calls to servers that are not supervisord, or do not answer."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from monitor_plugin import MonitorError
from monitor_plugin.hosts.supervisord import client as supervisord_client
from monitor_plugin.hosts.supervisord.client import SupervisordClient, SupervisordError


@contextmanager
def server(answer: bytes) -> Iterator[str]:
    """A server that answers any one request with the given bytes."""
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
def test_server_that_is_not_supervisord_raises_an_error(body: bytes) -> None:
    """The error names the URL."""
    head = f"HTTP/1.0 200 OK\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    with (
        server(head + body) as url,
        pytest.raises(SupervisordError, match=f"{url} cannot be asked"),
    ):
        SupervisordClient(url).call("getState")
    with (
        server(b"SSH-2.0-OpenSSH\r\n") as url,
        pytest.raises(SupervisordError, match="cannot be asked"),
    ):
        SupervisordClient(url).call("getState")


def test_call_to_a_hanging_supervisord_times_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both on unix sockets and on TCP."""
    monkeypatch.setattr(supervisord_client, "_CALL_SECONDS", 0.1)
    with closing(socket.socket(socket.AF_UNIX)) as unix, closing(socket.socket()) as tcp:
        unix.bind(str(tmp_path / "s"))
        unix.listen()
        tcp.bind(("127.0.0.1", 0))
        tcp.listen()
        for url in (f"unix://{tmp_path}/s", f"http://127.0.0.1:{tcp.getsockname()[1]}"):
            with pytest.raises(SupervisordError, match="timed out"):
                SupervisordClient(url).call("getState")
    with pytest.raises(SupervisordError, match="cannot be asked") as caught:
        SupervisordClient(f"unix://{tmp_path}/none").call("getState")
    assert not caught.value.is_permanent


@pytest.mark.parametrize(
    ("fault", "is_permanent", "said"),
    [(1, True, r"\[rpcinterface:supervisor\]"), (6, False, "fault 6, SHUTDOWN_STATE")],
)
def test_fault_is_named_in_the_error(fault: int, is_permanent: bool, said: str) -> None:
    """A missing RPC interface is an error of the configuration."""
    body = (
        "<methodResponse><fault><value><struct><member><name>faultCode</name><value>"
        f"<int>{fault}</int></value></member><member><name>faultString</name><value>"
        "<string>SHUTDOWN_STATE</string></value></member></struct></value></fault></methodResponse>"
    ).encode()
    head = f"HTTP/1.0 200 OK\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    with server(head + body) as url, pytest.raises(SupervisordError, match=said) as caught:
        SupervisordClient(url).call("getState")
    assert (caught.value.fault, caught.value.is_permanent) == (fault, is_permanent)


def test_invalid_server_url_raises_an_error() -> None:
    """The error does not show a password."""
    for url in ("localhost:9001", "https://localhost:9001", "http://[x"):
        with pytest.raises(MonitorError, match="is neither http:"):
            SupervisordClient(url)
    for url in ("http://ops:s3cret@localhost:9001", "https://o:s3cret@h", "http://o:s3cret@[x",
                "ops:s3cret@h:9001", "http://o:s3/cret@h"):  # fmt: skip
        with pytest.raises(MonitorError, match="SUPERVISOR_PASSWORD") as caught:
            SupervisordClient(url)
        assert "cret" not in str(caught.value)
    assert SupervisordClient("unix:///run/a@b").url == "unix:///run/a@b"
    assert "s3cret" not in repr(SupervisordClient("http://localhost:9001", "ops", "s3cret"))
    with pytest.raises(SupervisordError, match="cannot be asked"):
        SupervisordClient("http://localhost:many").call("getState")
