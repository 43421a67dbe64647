"""A real nginx, with the configuration of the examples, in front of a real monitor."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from monitor_plugin import Monitor, Settings
from monitor_plugin.concurrency.blocking import BlockingObserver
from monitor_plugin.http.server.server import Server

from ..support import Answer, Client, Spawner, eventually, free_port, is_running, program

ROOT = Path(__file__).parents[2]
CONFIGURATION = ROOT / "examples" / "nginx" / "monitor.conf"
GUIDE = ROOT / "docs" / "how-to" / "nginx.md"
NAME = "monitor.example.com"
# Around the example: what a distribution's nginx.conf has.
MAIN = """
{user}
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/error.log warn;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    include {folder}/monitor.conf;
}}
"""


class Front(Client):
    """Speaks HTTPS to nginx."""

    def __init__(self, port: int, authority: trustme.CA) -> None:
        super().__init__(f"http://127.0.0.1:{port}")
        self._context = ssl.create_default_context()
        authority.configure_trust(self._context)
        self.source = "127.0.0.1"

    def connection(self, timeout: float = 60) -> Any:
        connection = super().connection(timeout)
        plain = socket.create_connection((self.host, self.port), timeout, (self.source, 0))
        connection.sock = self._context.wrap_socket(plain, server_hostname=NAME)
        return connection

    def is_there(self) -> bool:
        with contextlib.suppress(ConnectionError), contextlib.closing(self.connection()):
            return True
        return False

    def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        headers: dict[str, str] | None = None,
        timeout: float = 60,
    ) -> Answer:
        headers = {"Host": NAME, "Authorization": "Bearer secret", **(headers or {})}
        return super().request(method, path, body, headers, timeout)


@pytest.fixture
def start_nginx(tmp_path: Path, spawner: Spawner) -> Iterator[Callable[..., Front]]:
    """Starts nginx in front of what a URL names, with further changes to the example."""
    folder = tmp_path / "nginx"
    folder.mkdir()
    authority = trustme.CA()
    certificate = authority.issue_cert(NAME)
    certificate.cert_chain_pems[0].write_to_path(folder / "monitor.crt")
    certificate.private_key_pem.write_to_path(folder / "monitor.key")

    def start(url: str, changes: dict[str, str] | None = None) -> Front:
        port = free_port()
        text = CONFIGURATION.read_text()
        for old, new in {
            "listen 443 ssl;": f"listen 127.0.0.1:{port} ssl;",
            "server 127.0.0.1:8080;": f"server {url.removeprefix('http://')};",
            "/etc/nginx/monitor.": f"{folder}/monitor.",
            **(changes or {}),
        }.items():
            assert old in text
            text = text.replace(old, new)
        (folder / "monitor.conf").write_text(text)
        user = "user root;" if os.geteuid() == 0 else ""  # the folder is ours alone
        (folder / "nginx.conf").write_text(MAIN.format(user=user, folder=folder))
        spawner.process(program("nginx"), "-p", str(folder), "-c", f"{folder}/nginx.conf")
        front = Front(port, authority)
        eventually(front.is_there)
        return front

    yield start
    log = folder / "error.log"
    assert not log.exists() or log.read_text() == ""


@pytest.fixture(params=["tcp", "unix"])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    """The settings that the example's comments tell."""
    unix = request.param == "unix"
    return {
        "listen": f"unix:{tmp_path}/monitor.sock" if unix else "127.0.0.1:0",
        "trusted_proxy": "unix" if unix else "127.0.0.1",
        "allowed_hosts": (NAME,),
    }


def test_model_is_read_and_stopped_over_tls(
    settings: dict[str, Any],
    start_nginx: Callable[..., Front],
    make_monitor: Callable[..., Monitor],
    spawner: Spawner,
) -> None:
    """Readings, errors and shutdowns pass as they are."""
    monitor = make_monitor(**settings)
    backend = spawner.backend()
    monitor.hook.monitor_backend_spawned(model="m", pid=backend.pid, address=backend.address)
    front = start_nginx(monitor.url)
    answer = front.monitor("m")
    assert (answer.status, answer.json["state"]) == (200, 2)
    assert answer.headers["X-Monitor-Source"] == "grpc"
    assert front.monitor("unknown").json["error"]["type"] == "model_not_loaded"
    assert front.shutdown("m").json == {"message": "model stopped"}
    assert not is_running(backend.pid)


def test_documented_path_and_other_port_serve_the_page_and_its_stop(
    start_nginx: Callable[..., Front], make_monitor: Callable[..., Monitor], spawner: Spawner
) -> None:
    """With the changes of the guide, the page works under a path and on another port than 443."""
    guide = GUIDE.read_text()
    lines = guide.partition("<!-- nginx path -->\n```nginx\n")[2].partition("```")[0]
    path = lines.partition("location ")[2].partition("/ {")[0]
    assert "write `$http_host`" in guide
    changes = {
        "    location / {\n        proxy_pass http://monitor_plugin;\n": lines,
        "Host $host;": "Host $http_host;",
    }
    monitor = make_monitor(trusted_proxy="127.0.0.1", allowed_hosts=(NAME,))
    backend = spawner.backend()
    monitor.hook.monitor_backend_spawned(model="m", pid=backend.pid, address=backend.address)
    front = start_nginx(monitor.url, changes)
    assert front.request("GET", f"{path}/").headers["Content-Type"].startswith("text/html")
    assert front.request("GET", f"{path}/backends").json["backends"][0]["model"] == "m"
    host = f"{NAME}:{front.port}"
    headers = {"Host": host, "Origin": f"https://{host}", "Sec-Fetch-Site": "same-origin"}
    stopped = front.request("POST", f"{path}/backend/shutdown", {"model": "m"}, headers)
    assert stopped.json == {"message": "model stopped"}


def test_client_address_and_token_arrive_behind_nginx(
    settings: dict[str, Any], start_nginx: Callable[..., Front]
) -> None:
    """The application gets the client's real address, despite forged headers, and its token."""

    def show(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        names = ("REMOTE_ADDR", "HTTP_AUTHORIZATION", "HTTP_HOST")
        return [json.dumps([environ.get(name) for name in names]).encode()]

    server = Server(show, settings["listen"], Settings(**settings), BlockingObserver())
    try:
        front = start_nginx(server.url)
        front.source = "127.0.0.5"
        spoofed = {"X-Forwarded-For": "203.0.113.7", "X-Forwarded-Host": "evil.example"}
        answer = front.request("GET", "/", headers=spoofed)
        assert answer.json == ["127.0.0.5", "Bearer secret", NAME]
    finally:
        server.close()


def test_example_waits_longer_than_a_shutdown_takes() -> None:
    """With the default settings nginx does not time out during a shutdown."""
    defaults = Settings()
    longest = (
        defaults.drain_timeout_seconds
        + 2 * defaults.stop_timeout_seconds
        + defaults.respawn_watch_seconds
        + 2 * defaults.status_timeout_seconds
    )
    waits = CONFIGURATION.read_text().partition("proxy_read_timeout ")[2].partition("s;")[0]
    assert int(waits) > longest + 10
