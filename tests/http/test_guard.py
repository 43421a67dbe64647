"""Who may ask for what: hosts, sites, tokens and roles, over real HTTP."""

from __future__ import annotations

import http.client
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import falcon
import pytest
from falcon import testing
from hypothesis import given
from hypothesis import strategies as st

from monitor_plugin import Monitor, Settings, hookimpl
from monitor_plugin.http.middleware.guard import AllowedHosts

from ..support import Answer, Client, Spawner, eventually
from .test_app import assert_error

READS = [
    ("GET", "/backend/monitor?model=m"),
    ("POST", "/v1/backend/monitor?model=m"),
    ("GET", "/openapi.json"),
]
JSON = {"Content-Type": "application/json"}
TOKENS = "# who may\nread:grafana:r3ad\n\nadmin:ops:4dmin:with:colons\n"


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


@pytest.fixture
def loaded(monitor: Monitor, spawner: Spawner) -> Monitor:
    process = spawner.sleeper()
    monitor.hook.monitor_backend_spawned(model="m", pid=process.pid, address="127.0.0.1:1")
    return monitor


@pytest.fixture
def guarded(make_monitor: Callable[..., Monitor], tmp_path: Path) -> Client:
    """A monitor with a reader's and an admin's token in a file, and a lone token beside it."""
    (tmp_path / "tokens").write_text(TOKENS)
    return Client(make_monitor(token_file=str(tmp_path / "tokens"), token="l0ne").url)


def shut_down(client: Client, **headers: str) -> Answer:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return client.request("POST", "/backend/shutdown", '{"model": "m"}', {**JSON, **named})


@pytest.mark.parametrize(("method", "path"), READS)
def test_requests_without_a_valid_token_are_refused(
    method: str, path: str, guarded: Client
) -> None:
    """No token, another scheme and a wrong token are a 401 that says what is wanted."""
    for headers in ({}, {"Authorization": "Basic bDBuZQ=="}, {"Authorization": "l0ne"}):
        answer = guarded.request(method, path, None, headers)
        assert_error(answer, 401, "unauthorized")
        assert answer.headers["WWW-Authenticate"] == 'Bearer realm="monitor-plugin"'
    for wrong in ("wrong", "", "l0ne ext", "L0NE", "l0n", "l0ne1", "\xff"):
        answer = guarded.request(method, path, None, bearer(wrong))
        message = assert_error(answer, 401, "unauthorized")
        assert 'error="invalid_token"' in answer.headers["WWW-Authenticate"]
        assert not wrong or wrong not in message.replace("token", "")


@pytest.mark.parametrize(("method", "path"), READS)
@pytest.mark.parametrize("token", ["r3ad", "4dmin:with:colons", "l0ne"])
def test_every_token_may_read(method: str, path: str, token: str, guarded: Client) -> None:
    """A reader's token, an admin's and the lone one read, whatever the case of the scheme."""
    for scheme in ("Bearer", "bearer", "BEARER"):
        answer = guarded.request(method, path, None, {"Authorization": f"{scheme} {token}"})
        if path == "/openapi.json":
            assert answer.json["openapi"] == "3.1.0"
        else:
            assert_error(answer, 500, "model_not_loaded")


def test_only_an_admin_token_may_stop_models(guarded: Client) -> None:
    """A reader's token may not stop, and is told why by its name; an admin's may."""
    assert_error(shut_down(guarded), 401, "unauthorized")
    message = assert_error(shut_down(guarded, **bearer("r3ad")), 403, "forbidden")
    assert message == (
        "the token 'grafana' has the role read, and POST /backend/shutdown wants admin"
    )
    for token in ("4dmin:with:colons", "l0ne"):
        assert_error(shut_down(guarded, **bearer(token)), 500, "model_not_loaded")


def test_a_hooks_routes_are_guarded_too(make_monitor: Callable[..., Monitor]) -> None:
    """A route that a hook adds is read by any token, and changed by an admin's alone."""

    class Own:
        def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
            response.media = request.context.caller.name
            response.set_header("Content-Security-Policy", "default-src 'self'")

        on_post = on_put = on_get

    class Plugin:
        @hookimpl
        def monitor_add_routes(self, app: falcon.App[Any, Any]) -> None:
            app.add_route("/own", Own())

    client = Client(make_monitor(plugins=[Plugin()], token="l0ne").url)
    assert client.request("GET", "/own").status == 401
    assert client.request("POST", "/own").status == 401
    answer = client.request("PUT", "/own", None, bearer("l0ne"))
    assert (answer.status, answer.json) == (200, "token")
    assert answer.headers["Content-Security-Policy"] == "default-src 'self'"


def test_only_the_page_and_health_need_no_token(guarded: Client) -> None:
    """Without a token only the page and the two health checks are answered."""
    assert guarded.request("GET", "/healthz").json == {"status": "ok"}
    assert guarded.request("GET", "/readyz").json == {"status": "ready"}
    assert b"<!doctype html>" in guarded.request("GET", "/").body
    for method, path in (("POST", "/"), ("POST", "/healthz"), ("GET", "/healthz/"), ("GET", "/x")):
        assert guarded.request(method, path).status == 401, path


def test_readyz_follows_start_and_close() -> None:
    """`/readyz` is a 503 before the start and after the close, `/healthz` is not."""
    monitor = Monitor(Settings(listen=None))
    client = testing.TestClient(monitor.app, headers={"Host": "localhost"})
    assert client.simulate_get("/readyz").status_code == 503
    assert client.simulate_get("/healthz").status_code == 200
    with monitor:
        assert client.simulate_get("/readyz").status_code == 200
    assert client.simulate_get("/readyz").json == {"status": "not ready"}


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:1", "127.0.0.1", "127.9.9.9:80", "[::1]:8080", "a.localhost."]
)
def test_loopback_hosts_are_accepted(host: str, loaded: Monitor, client: Client) -> None:
    """By default the monitor is addressed by any name of loopback, and any port."""
    answer = client.request("GET", "/backend/monitor?model=m", None, {"Host": host})
    assert answer.status == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "192.168.1.5", "",
             "localhost@evil.example", "[::2]", "evil.example#localhost", "loc\xe4lhost"]
)  # fmt: skip
def test_other_hosts_are_refused(host: str, loaded: Monitor, client: Client) -> None:
    """A page that points its own name here gets nothing, and stops nothing."""
    for method, path in (*READS, ("GET", "/healthz"), ("GET", "/x")):
        assert_error(client.request(method, path, None, {"Host": host}), 403, "forbidden")
    message = assert_error(shut_down(client, Host=host), 403, "forbidden")
    assert "allowed_hosts" in message
    assert loaded.backends()


def test_allowed_hosts_are_accepted(make_monitor: Callable[..., Monitor]) -> None:
    """`allowed_hosts` names more, and `*` any that is a name at all."""
    client = Client(make_monitor(allowed_hosts=("Monitor.example.com", "[fd00::1]")).url)
    for host, status in (
        ("monitor.example.com:8443", 200),
        ("MONITOR.example.com.", 200),
        ("[fd00::1]", 200),
        ("x.monitor.example.com", 403),
    ):
        assert client.request("GET", "/healthz", None, {"Host": host}).status == status
    client = Client(make_monitor(allowed_hosts=("*",)).url)
    assert client.request("GET", "/healthz", None, {"Host": "any.example"}).status == 200
    assert client.request("GET", "/healthz", None, {"Host": "no name"}).status == 403


def test_a_monitor_on_all_addresses_accepts_any_address_as_host(
    make_monitor: Callable[..., Monitor],
) -> None:
    """On 0.0.0.0 the monitor was told of every address of the machine, but of no name."""
    client = Client(make_monitor(listen="0.0.0.0:0", token="l0ne").url.replace("0.0.0.0", "127.1"))
    for host, status in (("10.1.2.3:8080", 200), ("[fe80::1]", 200), ("evil.example", 403)):
        assert client.request("GET", "/healthz", None, {"Host": host}).status == status


def test_the_host_of_listen_is_accepted() -> None:
    """The monitor was told of the name on which it listens."""
    for listen, host in (("10.0.0.5:80", "10.0.0.5"), ("[fd00::2]:80", "[fd00::2]:80"),
                         ("Node.example:80", "node.example")):  # fmt: skip
        assert AllowedHosts(listen, ()).allow(host)
        assert not AllowedHosts("unix:/run/monitor.sock", ()).allow(host)


@pytest.mark.parametrize(("version", "status"), [(11, 400), (10, 200)])
def test_a_request_without_a_host(version: int, status: int, client: Client) -> None:
    """HTTP/1.1 wants a `Host`; HTTP/1.0 has none, and no browser speaks it."""
    connection = http.client.HTTPConnection("127.0.0.1", client.port, timeout=60)
    connection._http_vsn = version  # type: ignore[attr-defined]
    connection._http_vsn_str = f"HTTP/{version / 10}"  # type: ignore[attr-defined]
    with closing(connection):
        connection.putrequest("GET", "/healthz", skip_host=True)
        connection.endheaders()
        assert connection.getresponse().status == status


SAME, OTHER = "http://127.0.0.1:{port}", "https://evil.example"


@pytest.mark.parametrize(
    ("headers", "allowed"),
    [
        ({}, True),
        ({"Origin": SAME}, True),
        ({"Origin": SAME, "Sec-Fetch-Site": "same-origin"}, True),
        ({"Sec-Fetch-Site": "none"}, True),
        ({"Origin": OTHER}, False),
        ({"Origin": "null"}, False),
        ({"Origin": ""}, False),
        ({"Origin": "http://127.0.0.1:1"}, False),
        ({"Origin": "http://localhost:{port}"}, False),
        ({"Origin": SAME + ".evil.example"}, False),
        ({"Origin": "http://[", "Sec-Fetch-Site": "none"}, False),
        ({"Origin": SAME, "Sec-Fetch-Site": "cross-site"}, False),
        ({"Sec-Fetch-Site": "cross-site"}, False),
        ({"Sec-Fetch-Site": "same-site"}, False),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}, False),
    ],
)
def test_a_page_of_another_site_stops_nothing(
    headers: dict[str, str], allowed: bool, loaded: Monitor, client: Client
) -> None:
    """Whoever is no browser may, and the monitor's own page; no page from elsewhere."""
    headers = {name: value.format(port=client.port) for name, value in headers.items()}
    answer = shut_down(client, **headers)
    if allowed:
        assert answer.status == 200
        assert not loaded.backends()
    else:
        assert "allowed_origins" in assert_error(answer, 403, "forbidden")
        assert loaded.backends()
        read = client.request("GET", "/backend/monitor?model=m", None, headers)
        navigates = headers.get("Sec-Fetch-Mode") == "navigate"
        assert read.status == (200 if navigates else 403)
    assert not [name for name in answer.headers if name.startswith("Access-Control-")]


def test_pages_of_an_allowed_origin_may_read_and_stop(
    make_monitor: Callable[..., Monitor], spawner: Spawner
) -> None:
    """Its pages may ask, stop and read the answers, with a preflight; those of others may not."""
    origin = "https://dashboard.example"
    monitor = make_monitor(allowed_origins=(origin + ":443",), token="l0ne")
    client = Client(monitor.url)
    process = spawner.sleeper()
    monitor.hook.monitor_backend_spawned(model="m", pid=process.pid, address="127.0.0.1:1")
    wants = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x"}
    page = {"Origin": origin, "Sec-Fetch-Site": "cross-site"}

    answer = client.request("OPTIONS", "/backend/shutdown", None, {**page, **wants})
    assert answer.status < 300
    assert answer.headers["Access-Control-Allow-Origin"] == origin
    assert "POST" in answer.headers["Access-Control-Allow-Methods"]
    assert_error(client.request("OPTIONS", "/backend/shutdown", None, page), 401, "unauthorized")
    assert_error(client.request("OPTIONS", "/backend/shutdown", None, wants), 401, "unauthorized")
    other = {**page, "Origin": OTHER}
    answer = client.request("OPTIONS", "/backend/shutdown", None, {**other, **wants})
    assert_error(answer, 403, "forbidden")
    assert "Access-Control-Allow-Origin" not in answer.headers

    answer = client.request("GET", "/backend/monitor?model=m", None, {**page, **bearer("l0ne")})
    assert answer.status == 200
    assert answer.headers["Access-Control-Allow-Origin"] == origin
    exposed = answer.headers["Access-Control-Expose-Headers"].split(", ")
    assert "X-Monitor-Source" in exposed
    assert {name for name in answer.headers if name.startswith("X-Monitor-")} <= set(exposed)
    assert_error(shut_down(client, **page), 401, "unauthorized")
    assert_error(shut_down(client, **other, **bearer("l0ne")), 403, "forbidden")
    assert shut_down(client, **page, **bearer("l0ne")).status == 200
    eventually(lambda: process.poll() is not None)


@pytest.mark.parametrize("path", ["/backend/monitor?model=m", "/x", "/healthz", "/openapi.json"])
@pytest.mark.parametrize("host", ["localhost", "evil.example"])
def test_every_response_has_the_security_headers(path: str, host: str, client: Client) -> None:
    """No sniffing, no framing, no scripts, no caches; errors and refusals included."""
    headers = client.request("GET", path, None, {"Host": host}).headers
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["X-Frame-Options"] == "DENY"
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
    assert headers["Referrer-Policy"] == "no-referrer"
    assert headers["Cache-Control"] == "no-store"
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin"


@given(st.text(max_size=60) | st.from_regex(r"[a-z0-9.:\[\]@/_-]{0,40}", fullmatch=True))
def test_any_host_is_refused_or_loopback(host: str) -> None:
    """Whatever stands in `Host`, what is allowed by default is one of loopback's names."""
    if AllowedHosts("127.0.0.1:1", ()).allow(host):
        name = host.lower()
        assert "localhost" in name or name.startswith(("127.", "["))
