"""The client of a running monitor, with real monitors."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from monitor_plugin import InvalidRequest, Monitor, MonitorError, RequestFailed
from monitor_plugin.client import Client, client_of

from .support import Spawner, free_port


@pytest.mark.parametrize("kind", ["http", "unix"])
def test_client_sends_requests(
    kind: str, make_monitor: Callable[..., Monitor], spawner: Spawner, tmp_path: Path
) -> None:
    """Over TCP and over a unix socket; an error has the monitor's message and type."""
    listen = {"http": "127.0.0.1:0", "unix": f"unix:{tmp_path}/s"}[kind]
    monitor = make_monitor(listen=listen, token="s3cret")
    backend = spawner.backend()
    monitor.hook.monitor_backend_spawned(model="a b", pid=backend.pid, address=backend.address)
    client = Client(monitor.url, "s3cret")
    assert client.get("/backend/monitor", {"model": "a b"})["state"] == 2
    assert client.post("/backend/shutdown", {"model": "a b"}) == {"message": "model stopped"}
    with pytest.raises(RequestFailed, match="model 'x' is not loaded") as raised:
        client.get("/backend/monitor", {"model": "x"})
    assert (raised.value.status, raised.value.type) == (500, "model_not_loaded")
    with pytest.raises(RequestFailed) as raised:
        Client(monitor.url, "wr0ng").get("/healthz/no")
    assert raised.value.status == 401
    assert "wr0ng" not in str(raised.value)


def test_unreachable_monitor_is_an_error(tmp_path: Path) -> None:
    """A closed port, a missing socket and silence are errors with the URL."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with (
        socket.create_server(("127.0.0.1", port)),
        pytest.raises(RequestFailed, match=f"no monitor answers at {url}: timed out"),
    ):
        Client(url).get("/healthz", timeout_seconds=0.1)
    with pytest.raises(RequestFailed, match=f"no monitor answers at {url}: Connection refused"):
        Client(url).get("/healthz")
    url = f"unix:{tmp_path}/none"
    with pytest.raises(RequestFailed, match=f"no monitor answers at {url}: No such file") as raised:
        Client(url).get("/healthz")
    assert raised.value.status is None


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\nhello", "no JSON: is it a monitor"),
        (b"HTTP/1.1 404 Not Found\r\n\r\n<p>", "with 404: Not Found"),
        (b"HTTP/1.1 500 Oh\r\n\r\n[1]", "with 500: Oh"),
        (b"nonsense\r\n\r\n", "no monitor answers"),
        (b"", "no monitor answers"),
    ],
)
def test_answer_of_another_server_is_an_error(answer: bytes, words: str) -> None:
    """The answer of a server that is no monitor is an error, whatever the answer contains."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            connection.recv(10000)
            connection.sendall(answer)
            connection.close()

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(RequestFailed, match=words):
            Client(f"http://127.0.0.1:{server.getsockname()[1]}").get("/hooks")
        thread.join()


@pytest.mark.parametrize("token", ["", "two words", "s3cret\r\nX: y", "s3cr\u00e9t", "\udcff"])
def test_invalid_token_is_refused(token: str) -> None:
    """No header can carry it, and the error does not show it."""
    with pytest.raises(MonitorError, match="the token") as raised:
        Client("http://h", token)
    assert not token or token not in str(raised.value)


def test_request_that_cannot_be_sent_is_refused() -> None:
    """The error says what is wrong with the path or the query, and nothing is sent."""
    client = Client("http://127.0.0.1:1")
    with pytest.raises(InvalidRequest, match="lone surrogate"):
        client.get("/backend/monitor", {"model": "\udcff"})
    for path in ("no-slash", "/a b", "/p\u00e4th", "/\r\nX: y"):
        with pytest.raises(InvalidRequest, match="percent-encode it"):
            client.post(path, {})


def test_command_takes_url_and_token_from_the_environment(tmp_path: Path) -> None:
    """Flags take precedence over variables; a file has a token alone, or is a token file."""
    one, own, bad = tmp_path / "one", tmp_path / "own", tmp_path / "bad"
    one.write_text("t0ken\n")
    own.write_text("# ours\nread:grafana:r3ad\nadmin:ops:4dmin\n")
    bad.write_text("two words\n")
    (tmp_path / "marked").write_text("t0ken\n", encoding="utf-8-sig")

    def sent(environ: dict[str, str], token_file: Path | None = None) -> str | None:
        client = client_of(environ, None, str(token_file) if token_file else None)
        return client._headers.get("Authorization")

    assert client_of({}, None, None).url == "http://127.0.0.1:8080"
    assert client_of({"MONITOR_URL": "http://h:1/"}, None, None).url == "http://h:1"
    assert client_of({"MONITOR_URL": "http://h:1"}, "unix:/s", None).url == "unix:/s"
    assert client_of({"MONITOR_URL": ""}, None, None).url == "http://127.0.0.1:8080"
    assert sent({}) is None
    assert sent({"MONITOR_TOKEN": "a"}) == "Bearer a"
    assert sent({"MONITOR_TOKEN": "a", "MONITOR_TOKEN_FILE": "/none"}) == "Bearer a"
    assert sent({"MONITOR_TOKEN": "a"}, one) == "Bearer t0ken"
    assert sent({}, tmp_path / "marked") == "Bearer t0ken"
    assert sent({"MONITOR_TOKEN_FILE": str(own)}) == "Bearer 4dmin"
    for file in (bad, tmp_path / "none"):
        with pytest.raises(MonitorError, match=str(file)) as raised:
            sent({}, file)
        assert "words" not in str(raised.value)
