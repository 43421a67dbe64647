"""The HTTP contract, against a served monitor with one small process behind it."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import quote

import falcon
import pytest
from falcon import testing

from monitor_plugin import InvalidRequest, Monitor, hookimpl
from monitor_plugin.api.requests import parse_query

from ..support import Answer, Client, Spawner, eventually

MODEL = "m"


@pytest.fixture
def loaded(monitor: Monitor, spawner: Spawner) -> Monitor:
    """A monitor with one backend, which does not answer gRPC."""
    process = spawner.sleeper()
    monitor.hook.monitor_backend_spawned(model=MODEL, pid=process.pid, address="127.0.0.1:1")
    return monitor


def assert_error(answer: Answer, status: int, kind: str) -> str:
    assert answer.status == status, answer
    assert answer.headers["Content-Type"] == "application/json"
    assert list(answer.json) == ["error"]
    error = answer.json["error"]
    assert list(error) == ["code", "message", "type"]
    assert (error["code"], error["type"]) == (status, kind)
    assert "Traceback" not in error["message"]
    return str(error["message"])


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("path", ["/backend/monitor", "/v1/backend/monitor"])
def test_the_model_comes_by_query_or_by_body(
    method: str, path: str, loaded: Monitor, client: Client
) -> None:
    """GET and POST take the model from the query or from a JSON body, of any content type."""
    assert client.request(method, f"{path}?model={MODEL}").status == 200
    assert client.request(method, path, {"model": MODEL, "unknown": [1]}).status == 200
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    assert client.request(method, path, json.dumps({"model": MODEL}), form).status == 200


def test_the_query_overrides_the_body(loaded: Monitor, client: Client) -> None:
    """Where both name a model, the query's is taken."""
    assert client.request("GET", f"/backend/monitor?model={MODEL}", {"model": "x"}).status == 200
    answer = client.request("GET", "/backend/monitor?model=x", {"model": MODEL})
    assert "'x' is not loaded" in assert_error(answer, 500, "model_not_loaded")


@pytest.mark.parametrize(
    "name", ["org/name:tag v2", "模型", "a&b=c+d%", "😀", "x" * 255, "'\"<img>"]
)
def test_model_names_are_free_text(
    name: str, monitor: Monitor, client: Client, spawner: Spawner
) -> None:
    """Slashes, spaces, colons and any script work, in the query and in the body."""
    process = spawner.sleeper()
    monitor.hook.monitor_backend_spawned(model=name, pid=process.pid, address="127.0.0.1:1")
    assert client.request("GET", "/backend/monitor?model=" + quote(name, safe="")).status == 200
    assert client.monitor(name).status == 200


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'"m"',
        b"null",
        b"{}",
        b'{"model": 5}',
        b'{"model": null}',
        b'{"model": ""}',
        b'{"model": "a\\u0000b"}',
        b'{"model": "a\\u009fb"}',
        b'{"model": "\\ud800"}',
        b'{"model": "\xff"}',
        json.dumps({"model": "x" * 256}).encode(),
        b'{"model": "' + "é".encode() * 128 + b'"}',
        b"[" * 60000,
        b'{"model": "m"} x',
    ],
)
@pytest.mark.parametrize("path", ["/backend/monitor", "/backend/shutdown"])
def test_a_bad_body_is_a_400(path: str, body: bytes, loaded: Monitor, client: Client) -> None:
    """A body that is no JSON object with a usable model name is refused, and nothing is done."""
    answer = client.request("POST", path, body, {"Content-Type": "application/json"})
    assert_error(answer, 400, "invalid_request")
    assert loaded.backends()


@pytest.mark.parametrize(
    "query",
    ["model=", "model", "model=%00", "model=%ff", "model=%c0%af", "model=a&model=b", "model=%0a"],
)
def test_a_bad_query_is_a_400(query: str, loaded: Monitor, client: Client) -> None:
    """A query that is not valid UTF-8, or whose model cannot be one, is refused."""
    assert_error(client.request("GET", f"/backend/monitor?{query}"), 400, "invalid_request")


def test_unescaped_bytes_in_the_query() -> None:
    """Unescaped bytes, as another WSGI server may pass them on, are taken as UTF-8, strictly."""
    assert parse_query("model=é&x".encode().decode("latin-1")) == {"model": "é", "x": ""}
    with pytest.raises(InvalidRequest, match="UTF-8"):
        parse_query("model=\xff")


def test_force_must_be_a_boolean(loaded: Monitor, client: Client) -> None:
    """`force` is true or false, and nothing else."""
    assert_error(client.shutdown(MODEL, force="yes"), 400, "invalid_request")


@pytest.mark.parametrize("content_type", [None, "text/plain", "application/x-www-form-urlencoded"])
def test_a_shutdown_requires_json(
    content_type: str | None, loaded: Monitor, client: Client
) -> None:
    """A shutdown of another content type, which a page elsewhere could send, is refused."""
    headers = {"Content-Type": content_type} if content_type else {}
    answer = client.request("POST", "/backend/shutdown", b'{"model": "m"}', headers)
    assert_error(answer, 415, "unsupported_media_type")
    assert loaded.backends()


def test_a_content_type_may_have_parameters(loaded: Monitor, client: Client) -> None:
    """`application/json; charset=utf-8` is JSON too."""
    headers = {"Content-Type": "Application/JSON; charset=utf-8"}
    answer = client.request("POST", "/backend/shutdown", b'{"model": "m"}', headers)
    assert answer.status == 200


@pytest.mark.parametrize("path", ["/backend/monitor", "/backend/shutdown"])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_large_body_is_a_413(path: str, chunked: bool, loaded: Monitor, client: Client) -> None:
    """64 KiB are taken and one byte more is not, however it is sent."""
    fits = b'{"model": "x"}'.ljust(64 * 1024)
    headers = {"Content-Type": "application/json"}
    answer = client.request("POST", path, fits, headers)
    assert_error(answer, 500, "model_not_loaded")
    body = fits + b" "
    if chunked:
        headers["Transfer-Encoding"] = "chunked"
        body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    assert_error(client.request("POST", path, body, headers), 413, "payload_too_large")
    if not chunked:
        answer = client.request("POST", path, fits * 32, headers)
        assert_error(answer, 413, "payload_too_large")


@pytest.mark.parametrize(
    ("size", "status"), [(0, 200), (64 * 1024, 413)], ids=["small", "too large"]
)
def test_a_hosts_own_server_may_pass_on_a_body_without_a_length(
    size: int, status: int, loaded: Monitor
) -> None:
    """A chunked one, say, where it tells that the stream ends with it (`wsgi.input_terminated`)."""
    body = json.dumps({"model": MODEL}).encode() + b" " * size
    environ = testing.create_environ("/backend/monitor", method="POST", host="localhost")
    environ.pop("CONTENT_LENGTH", None)
    environ.update({"wsgi.input": io.BytesIO(body), "CONTENT_TYPE": "application/json"})
    start = testing.StartResponseMock()
    list(loaded.app(environ, start))
    assert str(start.status).startswith("400")  # without that flag the end of the body is unknown
    environ["wsgi.input"] = io.BytesIO(body)
    list(loaded.app({**environ, "wsgi.input_terminated": True}, start))
    assert str(start.status).startswith(str(status))


def test_unknown_routes_and_methods(loaded: Monitor, client: Client) -> None:
    """404 and 405 have the envelope too, and 405 says which methods there are."""
    assert "/backends/x" in assert_error(client.request("GET", "/backends/x"), 404, "not_found")
    answer = client.request("DELETE", "/backend/monitor")
    assert_error(answer, 405, "method_not_allowed")
    assert "GET" in answer.headers["Allow"]
    assert_error(client.request("GET", "/v1/backend/shutdown"), 405, "method_not_allowed")


def test_an_unexpected_error_shows_no_traceback(
    make_monitor: Callable[..., Monitor], caplog: pytest.LogCaptureFixture
) -> None:
    """What fails inside is a 500 with the envelope; the log has the traceback."""

    class Broken:
        def on_get(self, request: falcon.Request, response: falcon.Response, more: str) -> None:
            raise RuntimeError("secret")

        def on_post(self, request: falcon.Request, response: falcon.Response, more: str) -> None:
            response.media = {"fine": True}

    class Plugin:
        @hookimpl
        def monitor_add_routes(self, app: falcon.App[Any, Any]) -> None:
            app.add_route("/broken/{more}", Broken())

    client = Client(make_monitor(plugins=[Plugin()]).url)
    message = assert_error(client.request("GET", "/broken/%0aFORGED"), 500, "internal_error")
    assert "secret" not in message
    assert "secret" in caplog.text
    assert "\nFORGED" not in caplog.text
    assert client.request("POST", "/broken/x").json == {"fine": True}


def test_no_more_than_half_the_threads_wait_for_shutdowns(
    make_monitor: Callable[..., Monitor], spawner: Spawner
) -> None:
    """Shutdowns beyond half of `http_threads` get 503 and Retry-After; monitoring goes on."""
    monitor = make_monitor(http_threads=4)
    client = Client(monitor.url)
    backend = spawner.backend("--state", "1")
    monitor.hook.monitor_backend_spawned(model=MODEL, pid=backend.pid, address=backend.address)
    with ThreadPoolExecutor(4) as pool:

        def stop() -> Answer:
            # The requests below may hold a slot for a moment.
            while (answer := client.shutdown(MODEL)).status == 503:
                pass
            return answer

        waiting = [pool.submit(stop) for _ in range(2)]
        eventually(lambda: client.shutdown("other").status == 503)
        refused = client.shutdown("other")
        assert_error(refused, 503, "too_many_shutdowns")
        assert int(refused.headers["Retry-After"]) > 0
        assert client.monitor(MODEL).json["state"] == 1
        monitor.shutdown(MODEL, force=True)  # ends the draining that both requests wait for
        assert [each.result(60).status for each in waiting] == [200, 200]


def test_each_shutdown_releases_its_slot(
    make_monitor: Callable[..., Monitor], spawner: Spawner
) -> None:
    """Whether it was done or failed: no number of them leaves fewer places for later ones."""
    client = Client((monitor := make_monitor(http_threads=2)).url)  # so that there is one slot
    for _ in range(3):
        process = spawner.sleeper()
        monitor.hook.monitor_backend_spawned(model=MODEL, pid=process.pid, address="127.0.0.1:1")
        assert client.shutdown(MODEL).status == 200
        assert_error(client.shutdown(MODEL), 500, "model_not_loaded")
