"""`events`, against monitors that run, end and come back."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable

import pytest

from monitor_plugin import Monitor
from monitor_plugin.cli import main
from monitor_plugin.cli.queries import EventItem
from monitor_plugin.cli.views.events import describe_event, is_alarming

from ..support import Spawner, free_port, load_sleeper
from ..terminals import Terminal
from .scripted import Scripted

COMMAND = (sys.executable, "-m", "monitor_plugin.cli", "events")


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MONITOR_URL", "MONITOR_TOKEN", "MONITOR_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)


def test_events_print_what_happened(
    monitor: Monitor, spawner: Spawner, capsys: pytest.CaptureFixture[str]
) -> None:
    """The oldest first, of all models or of one, as text or as JSON lines."""
    url = ["--url", monitor.url]
    for model in ("a\u202e b", "other"):
        load_sleeper(monitor, spawner, model)
    assert main(["events", *url]) == 0
    lines = capsys.readouterr().out.splitlines()
    at = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"
    assert re.fullmatch(rf"{at}  a\\u202e b \(\d+\)  registered", lines[0])
    assert re.fullmatch(rf"{at}  other \(\d+\)  registered", lines[1])
    assert main(["events", "--model", "other", "--json", *url]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["type"] == "registered"
    assert json.loads(line)["model"] == "other"


def test_follow_goes_on_while_the_monitor_is_restarted(
    make_monitor: Callable[..., Monitor], spawner: Spawner
) -> None:
    """The retry is said once, and the events of the new monitor follow; Ctrl-C is 130."""
    listen = f"127.0.0.1:{free_port()}"
    monitor = make_monitor(listen=listen)
    load_sleeper(monitor, spawner, "first")
    terminal = Terminal(spawner, *COMMAND, "-f", "--url", monitor.url, columns=200)
    terminal.wait_for("first (")
    load_sleeper(monitor, spawner, "second")
    terminal.wait_for("second (")
    monitor.close()
    terminal.wait_for("trying again")
    again = make_monitor(listen=listen)
    load_sleeper(again, spawner, "third")
    screen = "\n".join(terminal.wait_for("third ("))
    assert screen.count("first (") == 1
    assert screen.count("second (") == 1
    terminal.interrupt()
    assert terminal.ended() == 130
    terminal.close()


def test_follow_ends_quietly_when_its_reader_ends(monitor: Monitor, spawner: Spawner) -> None:
    """The command also ends if no further event happens."""
    load_sleeper(monitor, spawner)
    process = subprocess.Popen(
        [*COMMAND, "-f", "--url", monitor.url],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout
        assert process.stderr
        assert "registered" in process.stdout.readline()
        process.stdout.close()
        assert process.wait(60) == 1
        assert process.stderr.read() == ""
    finally:
        process.kill()
        process.wait()
        assert process.stderr
        process.stderr.close()


def test_first_failure_ends_the_command(
    make_monitor: Callable[..., Monitor], capsys: pytest.CaptureFixture[str]
) -> None:
    """An unreachable monitor is 3, a missing token is 1; both also with `-f`."""
    assert main(["events", "-f", "--url", "http://127.0.0.1:1"]) == 3
    assert main(["events", "-f", "--url", make_monitor(token="s3cret").url]) == 1
    assert "MONITOR_TOKEN" in capsys.readouterr().err


def test_lost_events_are_reported(capsys: pytest.CaptureFixture[str]) -> None:
    """A line on stderr says so if the answer has a `gap`."""
    answer = {"events": [], "next": 5, "gap": True, "poll_after_seconds": 0}
    with Scripted(lambda request: (200, answer)) as scripted:
        assert main(["events", "--url", scripted.url]) == 0
    assert capsys.readouterr().err == "monitor-plugin: some events are missing\n"


def test_act_of_a_watchdog_is_described() -> None:
    """The line says what happens, and why; control characters are escaped."""
    event = EventItem(1, "watchdog", model="m", pid=7, action="restart", reason="\x1bidle")
    assert describe_event(event) == r"m (7)  is being restarted: \x1bidle"
    assert is_alarming(event)
    assert not is_alarming(EventItem(1, "ended", cause="shutdown"))
    assert is_alarming(EventItem(1, "ended", cause="killed"))
