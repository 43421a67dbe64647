"""`doctor`, against monitors that run, and its table."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from monitor_plugin import Monitor
from monitor_plugin.api.results import CheckItem
from monitor_plugin.cli import main
from monitor_plugin.cli.doctor import checks_table

from ..api.test_doctor import Host
from .scripted import Scripted


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MONITOR_URL", "MONITOR_TOKEN", "MONITOR_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)


def test_doctor_fails_if_something_is_missing(
    make_monitor: Callable[..., Monitor], capsys: pytest.CaptureFixture[str]
) -> None:
    """A host without hooks is marked, with advice; `--json` is the answer of the monitor."""
    monitor = make_monitor(gpu="off")
    assert main(["doctor", "--url", monitor.url]) == 1
    lines = capsys.readouterr().out.splitlines()
    (line,) = [each for each in lines if " stop_hook " in each]
    assert line.startswith("!")
    assert any(each.strip().startswith("-> implement monitor_stop_backend") for each in lines)
    assert main(["doctor", "--json", "--url", monitor.url]) == 1
    answer = json.loads(capsys.readouterr().out)
    assert answer["status"] == "ready"
    failed = {each["name"] for each in answer["checks"] if each["ok"] is False}
    assert {"stop_hook", "start_hook", "known_models"} <= failed


def test_doctor_succeeds_if_all_is_well(
    make_monitor: Callable[..., Monitor],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A host with all hooks on a machine that refuses nothing."""
    monitor = make_monitor([Host()], gpu="off")
    assert main(["doctor", "--json", "--url", monitor.url]) in (0, 1)
    checks = json.loads(capsys.readouterr().out)["checks"]
    machine = {each["name"] for each in checks if each["ok"] is False}
    if machine:
        pytest.skip(f"this machine has failed checks: {machine}")
    assert main(["doctor", "--url", monitor.url]) == 0
    assert not any(line.startswith("!") for line in capsys.readouterr().out.splitlines())


def test_doctor_needs_a_token_where_others_do(
    make_monitor: Callable[..., Monitor],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A reader's token is enough."""
    (tmp_path / "tokens").write_text("read:grafana:r34d")
    monitor = make_monitor([Host()], token_file=str(tmp_path / "tokens"), gpu="off")
    assert main(["doctor", "--url", monitor.url]) == 1
    assert "MONITOR_TOKEN" in capsys.readouterr().err
    monkeypatch.setenv("MONITOR_TOKEN", "r34d")
    main(["doctor", "--url", monitor.url])
    assert " descriptors " in capsys.readouterr().out


def test_monitor_without_checks_is_older(capsys: pytest.CaptureFixture[str]) -> None:
    """The message says to update it."""
    with Scripted(lambda request: (200, {"status": "ready"})) as old:
        assert main(["doctor", "--url", old.url]) == 1
    assert "is older than this command and checks nothing: update it" in capsys.readouterr().err


def test_table_escapes_and_wraps() -> None:
    """No line is wider than the terminal, and no control character of an answer reaches it."""
    checks = [
        CheckItem("a", True, "fine", "not shown"),
        CheckItem("long_name", False, "\x1b[2J" + "word " * 30, "do " * 30),
        CheckItem("c", None, "unknown"),
    ]
    text = checks_table(checks, 60)
    lines = text.splitlines()
    assert all(len(line) <= 60 for line in lines)
    assert "\x1b" not in text
    assert lines[0] == "ok  a          fine"
    assert lines[1].startswith("!   long_name  \\x1b[2Jword")
    assert any(line.startswith(" " * 15 + "-> do do") for line in lines)
    assert lines[-1] == "?   c          unknown"
