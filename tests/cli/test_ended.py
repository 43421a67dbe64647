"""`ended`: the table of ends, and one end whole."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from monitor_plugin.cli import main

from .scripted import Request, Scripted, failure

TIMES = {"created_at": "2026-01-02T03:00:00Z", "ended_at": "2026-01-02T03:04:05Z"}
END = {
    "id": 1796067012345,
    "model": "m\u202e",
    "pid": 4711,
    "address": "127.0.0.1:5",
    "cause": "oom",
    "signal": 9,
    "signal_name": "SIGKILL",
    "oom": True,
    "oom_certain": False,
    "peak_rss": 3 * 2**30,
    "description": "was killed by SIGKILL, probably by the kernel for want of memory",
    "left_behind": [{"pid": 5, "name": "worker\x1b", "bytes": 2**20}],
    **TIMES,
}
WHOLE = {
    **END,
    "last_output": "Traceback:\n\x1b[31mMemoryError",
    "uptime_seconds": 245.0,
    "ready_seconds": 3.14,
    "ends_last_hour": 3,
    "last_reading": {
        "at": "2026-01-02T03:04:03Z",
        "state": 2,
        "state_name": "ready",
        "source": "grpc",
        "memory": {"total": 2**30, "breakdown": {}},
        "memory_source": "pss",
        "rss": 2**31,
        "cpu_percent": 99.5,
        "processes": 2,
    },
}
UNKNOWN = {"id": 7, "model": "other", "pid": 12, "cause": "unknown", "description": "?", **TIMES}


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MONITOR_URL", "MONITOR_TOKEN", "MONITOR_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)


def answer(request: Request) -> tuple[int, Any]:
    if request.path == "/backends":
        older = {**END, "id": 3, "model": "other"}
        return 200, {"backends": [], "ended": [END, UNKNOWN, older], "machine": None}
    if request.path == f"/ended/{END['id']}":
        return 200, WHOLE
    if request.path == "/ended/7":
        return 200, {**UNKNOWN, "uptime_seconds": 2.0}
    return failure("not_found", code=404)


def test_table_has_the_ids(capsys: pytest.CaptureFixture[str]) -> None:
    """The table lists the newest end first; `--json` prints the list."""
    with Scripted(answer) as scripted:
        assert main(["ended", "--url", scripted.url]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert re.match(r"ENDED +ID +PID +CAUSE", lines[0])
        assert re.match(r"m\\u202e +1796067012345 +4711 +oom ", lines[1])
        assert main(["ended", "--json", "--url", scripted.url]) == 0
        assert [each["id"] for each in json.loads(capsys.readouterr().out)] == [END["id"], 7, 3]


def test_one_end_is_shown_whole(capsys: pytest.CaptureFixture[str]) -> None:
    """An ID selects the end; all texts are escaped."""
    with Scripted(answer) as scripted:
        assert main(["ended", str(END["id"]), "--url", scripted.url]) == 0
        text = capsys.readouterr().out
    assert "\x1b" not in text
    lines = [" ".join(line.split()) for line in text.splitlines()]
    for expected in (
        r"m\u202e",
        "PID 4711",
        "cause oom: was killed by SIGKILL, probably by the kernel for want of memory",
        "signal 9 (SIGKILL)",
        "out of memory yes, probably",
        "uptime 4m5s",
        "ready after 3.1 s",
        "peak memory 3.0 GiB (RSS of its tree)",
        "last reading ready 2s before the end, memory 1.0 GiB (pss), rss 2.0 GiB, "
        "cpu 99.5 % of one core, 2 processes",
        r"left behind 5 worker\x1b (1.0 MiB)",
        "last hour 3 ends of the model, with this one",
        "Last output of process 4711:",
        "Traceback:",
        r"\x1b[31mMemoryError",
    ):
        assert expected in lines


def test_what_is_not_known_of_an_end_is_marked(capsys: pytest.CaptureFixture[str]) -> None:
    """A model's name means its newest end; unknown figures are `?`, and there is no output."""
    with Scripted(answer) as scripted:
        assert main(["ended", "other", "--url", scripted.url]) == 0
        text = capsys.readouterr().out
        assert re.search(r"^id +7$", text, re.MULTILINE)
        for name in ("ready", "last reading", "left behind", "last hour"):
            assert re.search(rf"^{name} +\?$", text, re.MULTILINE), name
        assert "Last output" not in text
        assert main(["ended", "--json", "other", "--url", scripted.url]) == 0
        assert json.loads(capsys.readouterr().out)["uptime_seconds"] == 2.0
        assert main(["ended", "none", "--url", scripted.url]) == 1
        assert "no backend of model 'none' ended lately" in capsys.readouterr().err


def test_end_on_another_node_is_asked_for_there(capsys: pytest.CaptureFixture[str]) -> None:
    """The monitor refuses it with the URL to ask; the command shows its message."""

    def refuse(request: Request) -> tuple[int, Any]:
        if request.path == "/backends":
            ended = [{**END, "node": "b"}]
            return 200, {"backends": [], "ended": ended, "machine": None, "nodes": []}
        assert request.query == {"node": "b"}
        return failure("invalid_request", "ask http://b:8080", 400)

    with Scripted(refuse) as scripted:
        assert main(["ended", str(END["id"]), "--url", scripted.url]) == 1
    assert "ask http://b:8080" in capsys.readouterr().err
