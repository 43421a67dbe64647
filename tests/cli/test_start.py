"""`start` and `restart`, against monitors whose host starts real backends."""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from monitor_plugin import Monitor
from monitor_plugin.cli import main, start

from ..http.test_load import Host
from ..support import Spawner, eventually, is_running, load_sleeper
from ..terminals import Terminal
from .scripted import Request, Scripted, failure


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MONITOR_URL", "MONITOR_TOKEN", "MONITOR_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def host(spawner: Spawner) -> Host:
    return Host(spawner)


def test_start_waits_until_the_model_is_ready(
    host: Host, make_monitor: Callable[..., Monitor], capsys: pytest.CaptureFixture[str]
) -> None:
    """A model that is ready already is not started again."""
    monitor = make_monitor([host])
    for _ in range(2):
        assert main(["start", "a b", "--url", monitor.url]) == 0
        assert capsys.readouterr().out.startswith("a b: ready after ")
    assert host.starts == ["a b"]
    assert [each.model for each in monitor.backends()] == ["a b"]


def test_failed_start_says_why(
    host: Host, make_monitor: Callable[..., Monitor], capsys: pytest.CaptureFixture[str]
) -> None:
    """The exit code is 1, and nothing is on stdout."""
    url = ["--url", make_monitor([host]).url]
    for model, reason in (("bad", "its host could not start it"), ("unknown", "no host")):
        for command in (["start"], ["restart", "--yes"]):
            assert main([*command, model, *url]) == 1
            output = capsys.readouterr()
            assert reason in output.err
            assert output.out == ""


def test_last_output_of_a_failed_start_is_shown_line_by_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Control characters are escaped, and so are line feeds in other errors."""
    message = "model 'm' could not be started: it exited; its last output:\n\x1b[31mCUDA\nend"
    errors = iter((failure("start_failed", message), failure("shutdown_failed", message)))
    with Scripted(lambda request: next(errors)) as scripted:
        assert main(["start", "m", "--url", scripted.url]) == 1
        lines = capsys.readouterr().err.splitlines()
        assert lines[0].endswith("its last output:")
        assert lines[1:] == ["  \\x1b[31mCUDA", "  end"]
        assert main(["restart", "--yes", "m", "--url", scripted.url]) == 1
        assert len(capsys.readouterr().err.splitlines()) == 1


def test_start_shows_its_progress(
    host: Host, make_monitor: Callable[..., Monitor], capsys: pytest.CaptureFixture[str]
) -> None:
    """While a shutdown that arrived first drains, its phase; outside a terminal a line for each."""
    answers: dict[str, Any] = {"backends": [], "ended": [], "machine": None}
    answers["models"] = [{"model": "m", "state": "waiting", "detail": "exited \x1b", "node": ""}]
    seen: list[str] = []

    def answer(request: Request) -> tuple[int, Any]:
        if request.path == "/backends":
            seen.append("backends")
            return 200, answers
        eventually(lambda: len(seen) > 1)
        return 200, {"loaded": ["m"], "message": "model loaded"}

    with Scripted(answer) as scripted:
        assert main(["start", "m", "--url", scripted.url]) == 0
    assert capsys.readouterr().err == "m: waiting: exited \\x1b\n"


def test_start_is_tried_again_while_too_many_are_under_way(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each request names the node of `--node`."""
    monkeypatch.setattr(start, "_RETRY_SECONDS", 0.01)
    answers = iter((failure("too_many_starts", code=503), (200, {"loaded": ["m"]})))
    with Scripted(lambda request: next(answers)) as scripted:
        assert main(["start", "m", "--node", "gpu-2", "--url", scripted.url]) == 0
        bodies = [each.body for each in scripted.requests if each.method == "POST"]
    assert bodies == [{"model": "m", "node": "gpu-2"}] * 2


def test_restart_stops_and_starts(
    host: Host,
    make_monitor: Callable[..., Monitor],
    spawner: Spawner,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The old process has ended, and a backend of the host is ready."""
    monitor = make_monitor([host])
    old = load_sleeper(monitor, spawner)
    assert (
        main(["restart", "--yes", "--force", "--pid", str(old.pid), "m", "--url", monitor.url]) == 0
    )
    assert capsys.readouterr().out.startswith("m: ready again after ")
    assert not is_running(old.pid)
    assert host.starts == ["m"]


def test_restart_needs_a_confirmation(
    host: Host,
    make_monitor: Callable[..., Monitor],
    spawner: Spawner,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Without a terminal the command needs `--yes`; on a terminal, `n` stops nothing."""
    monitor = make_monitor([host])
    old = load_sleeper(monitor, spawner)
    assert main(["restart", "m", "--url", monitor.url]) == 2
    assert "--yes restarts without asking" in capsys.readouterr().err
    command = (sys.executable, "-m", "monitor_plugin.cli", "restart", "m", "--url", monitor.url)
    for answer, code in (("n\r", 1), ("y\r", 0)):
        assert is_running(old.pid)
        terminal = Terminal(spawner, *command)
        terminal.wait_for("Restart model 'm'? [y/N]")
        terminal.press(answer)
        assert terminal.ended() == code
        shown = "\n".join(terminal.screen)
        terminal.close()
    assert "m: ready again after" in shown
    assert not is_running(old.pid)


def test_interrupt_ends_the_wait_alone(
    host: Host, make_monitor: Callable[..., Monitor], spawner: Spawner
) -> None:
    """Ctrl-C is 130, and the start goes on."""
    monitor = make_monitor([host])
    host.may_start.clear()
    command = (sys.executable, "-m", "monitor_plugin.cli", "start", "m", "--url", monitor.url)
    terminal = Terminal(spawner, *command)
    eventually(lambda: host.starts == ["m"])
    terminal.interrupt()
    assert terminal.ended() == 130
    terminal.wait_for("The monitor goes on with the start of m.")
    terminal.close()
    host.may_start.set()
    eventually(lambda: bool(monitor.backends()))


def test_two_starts_share_one(
    host: Host, make_monitor: Callable[..., Monitor], capsys: pytest.CaptureFixture[str]
) -> None:
    """Both commands succeed, and the host is asked once."""
    url = make_monitor([host]).url
    with ThreadPoolExecutor(2) as pool:
        codes = list(pool.map(lambda _: main(["start", "m", "--url", url]), range(2)))
    assert codes == [0, 0]
    assert host.starts == ["m"]
