"""`GET /backend/log` over real HTTP: what it answers, and to whom."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from monitor_plugin import LogTail, Monitor, hookimpl

from ..support import Client, Spawner, eventually, register
from .test_app import assert_error

TOKENS = "read:grafana:r3ad\nadmin:ops:4dmin\n"
READER = {"Authorization": "Bearer r3ad"}
ADMIN = {"Authorization": "Bearer 4dmin"}


@pytest.fixture
def guarded(make_monitor: Callable[..., Monitor], tmp_path: Path) -> Monitor:
    (tmp_path / "tokens").write_text(TOKENS)
    return make_monitor(token_file=str(tmp_path / "tokens"))


def load(monitor: Monitor, spawner: Spawner, path: Path, data: bytes) -> int:
    """Register a process whose standard error is a file with some bytes; return its PID."""
    path.write_bytes(data)
    with path.open("ab") as file:
        process = spawner.process("sleep", "1000", stderr=file)
    register(monitor, process.pid)
    return process.pid


def test_log_is_answered(
    monitor: Monitor, client: Client, spawner: Spawner, tmp_path: Path
) -> None:
    """The default is the end of the standard error; the next requests get what follows."""
    pid = load(monitor, spawner, tmp_path / "log", "Grüße\0\xff\n".encode("latin-1") + b"\x1b[0m")
    answer = client.request("GET", "/backend/log?model=m")
    assert (answer.status, answer.headers["Content-Type"]) == (200, "application/json")
    assert answer.json == {
        "model": "m",
        "pid": pid,
        "stream": "stderr",
        "source": "file",
        "text": "Gr\\xfc\\xdfe\0\\xff\n\x1b[0m",
        "start": 0,
        "next": 12,
        "gap": False,
        "poll_after_seconds": 1.0,
    }
    with (tmp_path / "log").open("ab") as file:
        file.write(b"more")
    more = client.request("GET", f"/backend/log?model=m&pid={pid}&after=12&bytes=4").json
    assert (more["text"], more["start"], more["next"], more["gap"]) == ("more", 12, 16, False)
    less = client.request("GET", "/backend/log?model=m&after=0&bytes=3").json
    assert (less["text"], less["start"], less["next"], less["gap"]) == ("ore", 13, 16, True)


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("", "names no model"),
        ("model=", "model"),
        ("model=m&stream=stdin", "stream='stdin' is neither of stdout and stderr"),
        ("model=m&bytes=0", "bytes='0' is no number from 1 to 1048576"),
        ("model=m&bytes=1048577", "bytes='1048577' is no number"),
        ("model=m&bytes=ten", "bytes='ten'"),
        ("model=m&after=-1", "after='-1' is no offset in a log"),
        ("model=m&pid=x", "pid='x'"),
    ],
)
def test_invalid_query_is_refused(query: str, words: str, client: Client) -> None:
    assert words in assert_error(
        client.request("GET", f"/backend/log?{query}"), 400, "invalid_request"
    )


def test_lack_of_a_log_is_explained(
    monitor: Monitor, client: Client, spawner: Spawner, tmp_path: Path
) -> None:
    """The model is not known, has no such backend, or its output is not in a file."""
    answer = client.request("GET", "/backend/log?model=m")
    assert_error(answer, 500, "model_not_loaded")
    pid = load(monitor, spawner, tmp_path / "log", b"")
    answer = client.request("GET", "/backend/log?model=m&stream=stdout")
    assert f"process {pid}: it writes to a pipe" in assert_error(answer, 404, "log_unavailable")
    answer = client.request("GET", "/backend/log?model=m&pid=1")
    assert_error(answer, 400, "invalid_request")
    assert_error(client.request("POST", "/backend/log?model=m"), 405, "method_not_allowed")


def test_only_admins_read_logs(guarded: Monitor, spawner: Spawner, tmp_path: Path) -> None:
    """A log may hold what users sent to the model, so that a reader's token is refused."""
    load(guarded, spawner, tmp_path / "log", b"a prompt")
    client = Client(guarded.url)
    for path in ("/backend/log?model=m", "/backend/lo%67?model=m"):
        for method in ("GET", "HEAD", "POST"):
            assert client.request(method, path, None, READER).status == 403, path
            assert client.request(method, path).status == 401, path
        assert client.request("GET", path, None, ADMIN).json["text"] == "a prompt"


def test_reading_of_a_log_is_audited_once(
    guarded: Monitor, spawner: Spawner, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A client that follows the log writes no further lines. The text is in none."""
    caplog.set_level(logging.INFO, "monitor_plugin.audit")
    pid = load(guarded, spawner, tmp_path / "log", b"a prompt")
    client = Client(guarded.url)
    client.request("GET", f"/backend/log?model=m&pid={pid}", None, ADMIN)
    client.request("GET", "/backend/log?model=m&after=8", None, ADMIN)
    client.request("GET", "/backend/log?model=n&stream=stdout&after=0", None, ADMIN)
    client.request("GET", "/backend/log?model=m&after=8", None, READER)

    def lines() -> list[dict[str, object]]:
        records = caplog.get_records("call")
        named = [each for each in records if each.name == "monitor_plugin.audit"]
        return [json.loads(each.getMessage()) for each in named]

    eventually(lambda: len(lines()) == 3)
    first, second, refused = lines()
    assert first["who"] == "ops"
    assert (first["what"], first["outcome"], first["status"]) == ("GET /backend/log", "read", 200)
    assert (first["model"], first["pid"], first["stream"]) == ("m", pid, "stderr")
    assert (second["model"], second["outcome"]) == ("n", "model_not_loaded")
    assert (refused["who"], refused["outcome"]) == ("grafana", "forbidden")
    assert "prompt" not in caplog.text


def test_log_of_a_hook_is_answered(make_monitor: Callable[..., Monitor], spawner: Spawner) -> None:
    class Host:
        @hookimpl
        def monitor_read_log(self, stream: str, max_bytes: int) -> LogTail:
            return LogTail(f"{stream} {max_bytes}".encode(), 1000)

    monitor = make_monitor(plugins=[Host()])
    register(monitor, spawner.sleeper().pid)
    answer = Client(monitor.url).request("GET", "/backend/log?model=m&stream=stdout&bytes=9")
    assert (answer.json["source"], answer.json["text"]) == ("host", "stdout 9"[-9:])
    assert (answer.json["start"], answer.json["next"]) == (992, 1000)
