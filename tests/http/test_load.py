"""`/backend/load` and `/backend/restart`: bodies, errors, and their share of the threads."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from monitor_plugin import Monitor, hookimpl

from ..support import Client, Spawner, eventually, register

PATHS = [prefix + path for prefix in ("", "/v1") for path in ("/backend/load", "/backend/restart")]


class Host:
    """A host that registers a ready backend for each start, and can block, or fail."""

    def __init__(self, spawner: Spawner) -> None:
        self._spawner = spawner
        self.monitor: Monitor | None = None
        self.starts: list[str] = []
        self.may_start = threading.Event()
        self.may_start.set()

    @hookimpl
    def monitor_started(self, monitor: Monitor) -> None:
        self.monitor = monitor

    @hookimpl
    def monitor_start_model(self, model: str) -> bool | None:
        if model == "unknown":
            return None
        self.starts.append(model)
        self.may_start.wait(60)
        if model == "bad":
            return False
        assert self.monitor
        self._spawner.backend_served_here().register(self.monitor, model)
        return True


@pytest.fixture
def host(spawner: Spawner) -> Host:
    return Host(spawner)


@pytest.mark.parametrize("path", PATHS)
def test_start_answers_with_localais_body(
    path: str, host: Host, make_monitor: Callable[..., Monitor]
) -> None:
    """The fields and their values are those of LocalAI's `/backend/load`, for a failure as well."""
    client = Client(make_monitor([host]).url)
    answer = client.request("POST", path, {"model": "org/a:b 模型"})
    done = "restarted" if "restart" in path else "loaded"
    assert answer.status == 200
    assert answer.json == {"loaded": ["org/a:b 模型"], "message": f"model {done}"}
    for model, reason in (("bad", "its host could not start it"), ("unknown", "no host")):
        answer = client.request("POST", path, {"model": model})
        assert answer.status == 500
        assert list(answer.json) == ["loaded", "message", "error"]
        error = answer.json["error"]
        assert answer.json["loaded"] == []
        assert answer.json["message"] == error["message"]
        assert (error["code"], error["type"]) == (500, "start_failed")
        assert reason in error["message"]


@pytest.mark.once
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("body", "content_type", "status"),
    [
        (b"", "application/json", 400),
        (b"{", "application/json", 400),
        (b"{}", "application/json", 400),
        (b'{"model": ""}', "application/json", 400),
        (b'{"model": "m", "node": "a"}', "application/json", 400),
        (b'{"model": "m", "timeout": 3}', "application/json", 400),
        (b'{"model": "m", "pid": "1"}', "application/json", 400),
        (b'{"model": "m"}', "text/plain", 415),
        (b"x" * 70_000, "application/json", 413),
    ],
)
def test_malformed_start_gets_the_usual_envelope(
    path: str, body: bytes, content_type: str, status: int, host: Host,
    make_monitor: Callable[..., Monitor],
) -> None:  # fmt: skip
    """Nothing is started; an unknown field is refused as well."""
    client = Client(make_monitor([host]).url)
    answer = client.request("POST", path, body, {"Content-Type": content_type})
    assert (answer.status, list(answer.json)) == (status, ["error"])
    assert host.starts == []


def test_starts_need_an_admin(
    host: Host, make_monitor: Callable[..., Monitor], tmp_path: Any
) -> None:
    """A token of role read gets a 403, and nothing is started."""
    (tmp_path / "tokens").write_text("admin:ops:4dmin\nread:grafana:r3ad")
    client = Client(make_monitor([host], token_file=str(tmp_path / "tokens")).url)
    for path in PATHS:
        for token, status in (("r3ad", 403), ("none", 401)):
            headers = {"Authorization": f"Bearer {token}"}
            assert client.request("POST", path, {"model": "m"}, headers).status == status
    assert host.starts == []


def test_restart_that_may_not_stop_starts_nothing(
    host: Host, make_monitor: Callable[..., Monitor]
) -> None:
    """The error is that of the shutdown, with the fields of a start."""

    class Guard:
        @hookimpl
        def monitor_before_shutdown(self) -> str:
            return "it is needed"

    client = Client(make_monitor([host, Guard()]).url)
    assert client.request("POST", "/backend/load", {"model": "m"}).status == 200
    answer = client.request("POST", "/backend/restart", {"model": "m"})
    assert answer.status == 409
    assert answer.json["loaded"] == []
    assert answer.json["message"] == answer.json["error"]["message"]
    assert answer.json["error"]["type"] == "shutdown_refused"
    assert "it is needed" in answer.json["message"]
    answer = client.request("POST", "/backend/restart", {"model": "m", "pid": 1})
    assert (answer.status, answer.json["error"]["type"]) == (400, "invalid_request")
    assert host.starts == ["m"]


@pytest.mark.parametrize("threads", [2, 16])
def test_waiting_starts_leave_threads_for_other_requests(
    threads: int, host: Host, make_monitor: Callable[..., Monitor], spawner: Spawner
) -> None:
    """Starts beyond half of `http_threads` get a 503; readings and shutdowns go on."""
    monitor = make_monitor([host], http_threads=threads)
    client = Client(monitor.url)
    register(monitor, spawner.sleeper().pid, "other")
    spawner.backend_served_here().register(monitor, "loaded")
    assert client.request("POST", "/backend/load", {"model": "loaded"}).status == 200
    host.may_start.clear()
    limit = max(2, threads // 2)
    with ThreadPoolExecutor(limit) as pool:
        waiting = [
            pool.submit(client.request, "POST", "/backend/load", {"model": f"m{number}"})
            for number in range(limit)
        ]
        eventually(lambda: len(host.starts) == limit)
        for path in PATHS:
            answer = client.request("POST", path, {"model": "m"})
            assert (answer.status, answer.json["error"]["type"]) == (503, "too_many_starts")
            assert answer.json["loaded"] == []
            assert int(answer.headers["Retry-After"]) > 0
        # A model that is loaded needs no wait.
        assert client.request("POST", "/backend/load", {"model": "loaded"}).status == 200
        assert client.request("GET", "/healthz").status == 200
        assert client.monitor("other").status == 200
        assert client.shutdown("other").status == 200
        host.may_start.set()
        assert [each.result(60).status for each in waiting] == [200] * limit
    assert client.request("POST", "/backend/load", {"model": "m"}).status == 200
