"""The audit: who asked for what, and what came of it, a line of JSON each."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from falcon import testing

from monitor_plugin import (
    Backend,
    InvalidRequest,
    ModelNotLoaded,
    Monitor,
    Settings,
    StartFailed,
    hookimpl,
)
from monitor_plugin.api.audit import audited_shutdown

from ..support import Client, Spawner, await_memory, eventually

NAME = "a 'name'\u2028with {\"quotes\"} <img> 模型"


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Callable[[], list[dict[str, Any]]]:
    """The lines so far, parsed."""
    caplog.set_level(logging.INFO, "monitor_plugin.audit")

    def read() -> list[dict[str, Any]]:
        messages = [
            record.getMessage()
            for record in caplog.records
            if record.name == "monitor_plugin.audit"
        ]
        assert all(message.isascii() and message.isprintable() for message in messages)
        return [json.loads(message) for message in messages]

    return read


class Refuses:
    @hookimpl
    def monitor_before_shutdown(self, backend: Backend, force: bool) -> str | None:
        return None if force else "not now"


def test_each_shutdown_has_a_line(
    make_monitor: Callable[..., Monitor],
    spawner: Spawner,
    tmp_path: Path,
    lines: Callable[[], list[dict[str, Any]]],
) -> None:
    """Who, from where, which model, by force or not, how it ended, and how long it took."""
    (tmp_path / "tokens").write_text("admin:ops:4dmin\nread:grafana:r3ad")
    monitor = make_monitor(plugins=[Refuses()], token_file=str(tmp_path / "tokens"))
    client = Client(monitor.url)
    process = spawner.sleeper()
    monitor.hook.monitor_backend_spawned(model=NAME, pid=process.pid, address="127.0.0.1:1")

    def ask(body: Any, token: str = "4dmin") -> None:
        client.request("POST", "/v1/backend/shutdown", body, {"Authorization": f"Bearer {token}"})

    for body in ({"model": NAME}, {"model": NAME, "force": True}, {"model": NAME}, {"model": 5}):
        ask(body)
    ask({"model": NAME}, "r3ad")
    ask({"model": NAME}, "wrong-s3cret")
    expected = [
        ("ops", NAME, False, "shutdown_refused", 409),
        ("ops", NAME, True, "stopped", 200),
        ("ops", NAME, False, "model_not_loaded", 500),
        ("ops", None, False, "invalid_request", 400),
        ("grafana", None, None, "forbidden", 403),
        ("unknown", None, None, "unauthorized", 401),
    ]
    eventually(lambda: len(lines()) >= len(expected))
    fields = ("who", "model", "force", "outcome", "status")
    assert [tuple(line.get(field) for field in fields) for line in lines()] == expected
    for line in lines():
        assert line["from"] == "127.0.0.1"
        assert line["what"] == "POST /v1/backend/shutdown"
        assert 0 <= line["seconds"] < 60
        assert "s3cret" not in str(line)


def test_each_refused_request_has_a_line(
    make_monitor: Callable[..., Monitor], lines: Callable[[], list[dict[str, Any]]]
) -> None:
    """Without its query, which may hold anything; what was let through has none."""
    client = Client(make_monitor(token="l0ne").url)
    good = {"Authorization": "Bearer l0ne"}
    client.request("GET", "/backend/monitor?model=x", None, good)
    client.request("GET", "/nothing", None, good)
    client.request("GET", "/healthz")
    client.request("GET", "/backend/monitor?token=s3cret")
    client.request("GET", "/a%0a%22%ff")
    client.request("GET", "/healthz", None, {"Host": "evil.example"})
    client.request("POST", "/backend/shutdown", "{}", {**good, "Origin": "https://evil.example"})
    client.request("POST", "/backend/shutdown", "model=m", {**good, "Content-Type": "text/plain"})
    eventually(lambda: len(lines()) >= 5)
    assert [(line["what"], line["outcome"], line["status"]) for line in lines()] == [
        ("GET /backend/monitor", "unauthorized", 401),
        ('GET /a\n"\ufffd', "unauthorized", 401),
        ("GET /healthz", "forbidden", 403),
        ("POST /backend/shutdown", "forbidden", 403),
        ("POST /backend/shutdown", "unsupported_media_type", 415),
    ]


@pytest.mark.parametrize("method", ["WEBSOCKET", "PROPFIND", "BREW"])
def test_unknown_methods_are_refused(
    method: str, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    """What the framework refuses before it asks who may is answered as any error, and no fault."""
    for path in ("/backend/shutdown", "/healthz", "/nothing"):
        answer = client.request(method, path, "{}", {"Content-Type": "application/json"})
        assert 400 <= answer.json["error"]["code"] == answer.status < 500
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


class FailingRepr:
    def __repr__(self) -> str:
        raise RuntimeError("not to be shown")


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"model": FailingRepr()}, InvalidRequest),
        ({"model": {(1,): 2}}, InvalidRequest),
        ({"model": "m", "pid": 10**5000}, ModelNotLoaded),
        ({"model": "m", "force": FailingRepr()}, ModelNotLoaded),
    ],
)
def test_audit_line_survives_any_argument(
    arguments: dict[str, Any],
    error: type[Exception],
    monitor: Monitor,
    lines: Callable[[], list[dict[str, Any]]],
) -> None:
    """Where it cannot be written, its type stands in the line, and the error is the shutdown's."""
    with pytest.raises(error):
        monitor.shutdown(**arguments)
    (line,) = lines()
    assert line["outcome"] in ("invalid_request", "model_not_loaded")


def test_an_interrupted_shutdown_is_audited_as_an_error(
    lines: Callable[[], list[dict[str, Any]]],
) -> None:
    """Ctrl-C in the host's thread, say: there is a line, and it does not say `stopped`."""
    with pytest.raises(KeyboardInterrupt), audited_shutdown("m", False, None):
        raise KeyboardInterrupt
    assert lines()[-1]["outcome"] == "internal_error"


def test_an_unknown_client_address_is_audited_as_unknown(
    lines: Callable[[], list[dict[str, Any]]],
) -> None:
    """A host's own WSGI server may not say who asks, over a unix socket say."""
    monitor = Monitor(Settings(listen=None))
    environ = testing.create_environ("/healthz", host="evil.example")
    for extras, seen in (({}, "unknown"), ({"REMOTE_ADDR": ""}, "unknown"),
                         ({"REMOTE_ADDR": "10.0.0.1"}, "10.0.0.1")):  # fmt: skip
        environ.pop("REMOTE_ADDR", None)
        list(monitor.app({**environ, **extras}, testing.StartResponseMock()))
        assert lines()[-1]["from"] == seen


def test_a_hosts_own_shutdown_has_a_line(
    monitor: Monitor, spawner: Spawner, lines: Callable[[], list[dict[str, Any]]]
) -> None:
    """`Monitor.shutdown` is audited as well."""
    process = spawner.sleeper()
    await_memory(process.pid)
    monitor.hook.monitor_backend_spawned(model="m", pid=process.pid, address="127.0.0.1:1")
    monitor.shutdown("m", force=True)
    with pytest.raises(ModelNotLoaded):
        monitor.shutdown("m")
    with contextlib.suppress(Exception):
        monitor.shutdown(object())  # type: ignore[arg-type]
    fields = ("who", "from", "model", "force", "outcome")
    first, second, third = ([line[field] for field in fields] for line in lines())
    assert first == ["host", "python", "m", True, "stopped"]
    assert [line.get("freed", "")[:10] for line in lines()] == ["gave back ", "", ""]
    assert second == ["host", "python", "m", False, "model_not_loaded"]
    assert third[4] == "invalid_request"


class Starts:
    """A host that knows one model, which it cannot start."""

    @hookimpl
    def monitor_start_model(self, model: str) -> bool | None:
        raise StartFailed(model, "no disk")


def test_each_start_and_restart_has_a_line(
    make_monitor: Callable[..., Monitor],
    spawner: Spawner,
    monkeypatch: pytest.MonkeyPatch,
    lines: Callable[[], list[dict[str, Any]]],
) -> None:
    """Over HTTP and from Python; never with what the process has written."""
    monitor = make_monitor(plugins=[Starts()])
    client = Client(monitor.url)
    starter = monitor._services.operations._starter
    monkeypatch.setattr(starter, "_read_output", lambda *arguments: "a pr0mpt of a user")
    backend = spawner.backend_served_here()
    backend.register(monitor, "n")

    def ask(path: str, body: Any) -> str:
        answer = client.request("POST", path, body)
        return str(answer.json.get("message"))

    assert ask("/v1/backend/load", {"model": "n"}) == "model loaded"
    assert "no disk; its last output:\na pr0mpt of a user" in ask("/backend/load", {"model": "m"})
    assert "no disk" in ask("/backend/restart", {"model": "m", "force": True, "pid": 7})
    ask("/backend/load", {"model": "m", "x": 1})
    monitor.start_model("n")
    for start in (monitor.start_model, monitor.restart_model):
        with pytest.raises(StartFailed):
            start("m")
    expected = [
        ("anonymous", "POST /v1/backend/load", "n", "loaded", 200),
        ("anonymous", "POST /backend/load", "m", "start_failed", 500),
        ("anonymous", "POST /backend/restart", "m", "start_failed", 500),
        ("anonymous", "POST /backend/load", None, "invalid_request", 400),
        ("host", "Monitor.start_model", "n", "loaded", None),
        ("host", "Monitor.start_model", "m", "start_failed", None),
        ("host", "Monitor.restart_model", "m", "start_failed", None),
    ]
    fields = ("who", "what", "model", "outcome", "status")
    eventually(lambda: len(lines()) == len(expected))
    found = lines()
    assert [tuple(line.get(field) for field in fields) for line in found] == expected
    assert (found[2]["force"], found[2]["pid"]) == (True, 7)
    assert all(0 <= line["seconds"] < 60 for line in found)
    assert "pr0mpt" not in str(found)
