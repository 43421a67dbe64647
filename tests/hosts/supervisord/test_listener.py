"""The event protocol, spoken by hand to the listener in its own process."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from monitor_plugin.hosts.supervisord.listener import EventProtocol

from ...support import Spawner

COMMAND = str(Path(sys.executable).with_name("monitor-plugin"))
HEADER = "ver:3.0 server:s serial:1 pool:m poolserial:1 eventname:PROCESS_STATE_RUNNING len:"


def test_event_is_acknowledged_before_the_callback() -> None:
    """The listener writes READY, reads an event, writes RESULT, and calls back."""
    payload = "processname:läma groupname:x"
    size = len(payload.encode())
    events = io.TextIOWrapper(
        io.BytesIO(f"{HEADER}{size}\n{payload}{HEADER}0\n".encode()),
        encoding="latin-1",
        newline="\n",
    )
    answers = io.StringIO()
    at_callbacks: list[str] = []
    EventProtocol(events, answers).run(lambda: at_callbacks.append(answers.getvalue()))
    assert at_callbacks == ["READY\nRESULT 2\nOK", "READY\nRESULT 2\nOKREADY\nRESULT 2\nOK"]
    assert answers.getvalue().endswith("OKREADY\n")


def listener(spawner: Spawner, tmp_path: Path, *flags: str) -> subprocess.Popen[str]:
    """Start a listener whose supervisord does not run; return it when it waits for events."""
    url = f"unix://{tmp_path}/none"
    process = spawner.process(
        *(COMMAND, "supervisord", "--server-url", url, "--listen", "127.0.0.1:0"),
        *("--hook-timeout-seconds", "30", *flags),  # otherwise a busy machine logs an overrun
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout
    assert process.stdout.readline() == "READY\n"
    assert process.stderr
    assert "cannot be asked" in process.stderr.readline()
    return process


def test_listener_ends_when_its_input_ends(spawner: Spawner, tmp_path: Path) -> None:
    """It acknowledges events although supervisord does not answer its calls."""
    process = listener(spawner, tmp_path)
    output, errors = process.communicate(f"{HEADER}3\nabc", timeout=60)
    assert (process.returncode, output) == (0, "RESULT 2\nOKREADY\n")
    assert errors == ""  # the failure is logged once


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_sigterm_and_sigint_end_the_listener(number: int, spawner: Spawner, tmp_path: Path) -> None:
    """The exit code is 0. SIGHUP makes the listener read the tokens again."""
    tokens = tmp_path / "tokens"
    tokens.write_text("admin:ops:4dmin")
    process = listener(spawner, tmp_path, "--token-file", str(tokens))
    assert process.stderr
    tokens.write_text("nonsense")
    process.send_signal(signal.SIGHUP)
    assert "tokens cannot be used" in process.stderr.readline()
    process.send_signal(number)
    assert process.wait(60) == 0
    assert process.stderr.read() == ""


def test_listener_ends_when_its_output_is_closed(spawner: Spawner, tmp_path: Path) -> None:
    """A supervisord that was killed leaves a closed pipe, which is not an error."""
    process = listener(spawner, tmp_path)
    assert process.stdin
    assert process.stdout
    process.stdout.close()
    os.write(process.stdin.fileno(), f"{HEADER}0\n".encode())
    assert process.wait(60) == 0
    assert process.stderr
    assert process.stderr.read() == ""


def test_missing_extra_is_named_in_one_line(spawner: Spawner) -> None:
    """The line says how to install supervisor."""
    code = "import sys; sys.modules['supervisor'] = None; from monitor_plugin.cli import main; "
    process = spawner.python(code + "sys.exit(main(['supervisord']))", stderr=subprocess.PIPE)
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, output, errors.count("\n")) == (1, "", 1)
    assert errors.endswith(": pip install monitor-plugin[supervisord]\n")


def test_invalid_rule_flag_is_reported_in_one_line(spawner: Spawner) -> None:
    """Nothing is written to the event protocol."""
    process = spawner.process(COMMAND, "supervisord", "--backend", "x", stderr=subprocess.PIPE)
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, output) == (1, "")
    assert errors == "monitor-plugin: 'x' is not NAME=MODEL@ADDRESS or NAME=MODEL\n"


def test_missing_server_is_reported_in_one_line(spawner: Spawner) -> None:
    """The line has the sections that supervisord needs, without escaped line breaks."""
    environment = {**os.environ, "SUPERVISOR_SERVER_URL": ""}
    process = spawner.process(COMMAND, "supervisord", stderr=subprocess.PIPE, env=environment)
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, output, errors.count("\n")) == (1, "", 1)
    assert "[unix_http_server] with file=/run/supervisor.sock" in errors
    assert "\\n" not in errors
