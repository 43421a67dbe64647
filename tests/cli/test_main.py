"""The command line and the demo, as real processes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import psutil
import pytest

import monitor_plugin.cli
from monitor_plugin import Monitor, Settings
from monitor_plugin.cli import main
from monitor_plugin.demo.host import MODELS

from ..support import IGNORING_SIGINT, Client, Spawner, eventually

COMMAND = str(Path(sys.executable).with_name("monitor-plugin"))
PATIENT = {**os.environ, "MONITOR_STATUS_TIMEOUT_SECONDS": "30"}


@contextmanager
def restored_signals() -> Iterator[None]:
    """Restore the signal handlers that a command replaces."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    handlers = [signal.getsignal(number) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, handlers, strict=True):
            signal.signal(number, handler)


def test_demo_once_makes_the_calls(spawner: Spawner) -> None:
    """`demo --once` prints requests and answers, exits 0, and leaves no process behind."""
    process = spawner.process(COMMAND, "demo", "--once", stderr=subprocess.PIPE, env=PATIENT)
    output, errors = process.communicate(timeout=100)
    assert process.returncode == 0, errors
    assert errors.count("INFO monitor_plugin.audit: {") == 1
    assert all(line.startswith("INFO monitor_plugin.") for line in errors.splitlines())
    for expected in (
        '/backend/monitor \\\n  -H "Content-Type: application/json" \\\n  -d \'{"model"',
        "X-Monitor-Source: grpc",
        '{"state":2,"memory":{"total":100663296,',
        "X-Monitor-Rpc-Error: UNIMPLEMENTED",
        '{"memory_info":{"rss":',
        '{"message":"model stopped"}',
        '"type":"model_not_loaded"',
    ):
        assert expected in output
    eventually(lambda: not psutil.pid_exists(process.pid))


@pytest.mark.once
@pytest.mark.parametrize("by", ["flag", "variable"])
def test_demo_logs_json(by: str, spawner: Spawner) -> None:
    """Every line is an object, of events and of the audit."""
    switches = ("--log-format", "json") if by == "flag" else ()
    environment = {**os.environ, **({} if switches else {"MONITOR_LOG_FORMAT": "json"})}
    process = spawner.process(
        *(COMMAND, "demo", "--once", *switches), stderr=subprocess.PIPE, env=environment
    )
    _, errors = process.communicate(timeout=100)
    lines = [json.loads(line) for line in errors.splitlines()]
    assert {line["logger"] for line in lines} == {"monitor_plugin.audit", "monitor_plugin.logs"}


def test_unknown_log_format_is_a_usage_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unknown format in MONITOR_LOG_FORMAT is refused as in --log-format."""
    monkeypatch.setenv("MONITOR_LOG_FORMAT", "xml")
    assert main(["demo", "--once"]) == 2
    assert "'xml' is not one of 'text', 'json'" in capsys.readouterr().err


@pytest.mark.once
def test_demo_once_fails_with_an_unexpected_answer(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The exit code is 1 if an answer is not the expected one."""
    with restored_signals():
        assert main(["demo", "--once"]) == 0
        monkeypatch.delitem(MODELS, "no-status")
        assert main(["demo", "--once"]) == 1
    assert "HTTP 500" in capsys.readouterr().out


@pytest.mark.once
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_demo_ends_with_all_its_processes(number: int, spawner: Spawner) -> None:
    """The demo prints commands that work; Ctrl-C ends it, also where SIGINT was ignored."""
    command = (*IGNORING_SIGINT, COMMAND, "demo", "--listen", "127.0.0.1:0")
    process = spawner.process(*command, env=PATIENT)
    assert process.stdout
    lines = []
    while "Ctrl-C" not in (line := process.stdout.readline()):
        assert line
        lines.append(line)
    text = "".join(lines)
    client = Client(text.partition("answers at ")[2].partition(". Try")[0])
    assert client.monitor("my-model").json["state"] == 2
    backends = psutil.Process(process.pid).children(recursive=True)
    assert len(backends) == 3
    process.send_signal(number)
    assert process.wait(60) == 0
    assert not any(backend.is_running() for backend in backends)
    assert f"curl http://localhost:{client.port}/backend/monitor \\\n" in text
    assert f"curl -X POST http://localhost:{client.port}/backend/shutdown \\\n" in text


@pytest.mark.once
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_demo_once_at_any_time(number: int, spawner: Spawner) -> None:
    """A signal during the start ends `demo --once` with all its backends, before its calls."""
    process = spawner.process(*IGNORING_SIGINT, COMMAND, "demo", "--once", env=PATIENT)
    children = psutil.Process(process.pid).children
    eventually(lambda: bool(children()))
    backends = children()
    process.send_signal(number)
    assert process.wait(60) == 128 + number
    assert process.stdout
    assert process.stdout.read() == ""
    eventually(lambda: not any(backend.is_running() for backend in backends))


@pytest.mark.once
def test_backends_end_when_their_host_is_killed(spawner: Spawner) -> None:
    """A demo that is killed leaves no backends behind."""
    process = spawner.process(COMMAND, "demo", "--listen", "127.0.0.1:0")
    assert process.stdout
    while "Ctrl-C" not in (line := process.stdout.readline()):
        assert line
    backends = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    eventually(lambda: not any(backend.is_running() for backend in backends))


def test_taken_port_is_an_error_of_one_line(
    monitor: Monitor, capsys: pytest.CaptureFixture[str]
) -> None:
    """The error has no traceback, and the exit code is 1."""
    with restored_signals():
        assert main(["demo", "--listen", monitor.url.removeprefix("http://")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("monitor-plugin: cannot listen on")
    assert "Traceback" not in error


def test_every_setting_has_a_flag(capsys: pytest.CaptureFixture[str]) -> None:
    """Every field but the token has a flag; a bad value is named with its flag."""
    assert main(["demo", "--help"]) == 0
    text = capsys.readouterr().out
    for field in msgspec.structs.fields(Settings):
        flag = "--" + field.name.replace("_", "-")
        assert bool(re.search(rf"{flag}\b(?!-)", text)) == (field.name != "token"), flag
    assert main(["demo", "--http-threads", "many"]) == 1
    assert "--http-threads='many'" in capsys.readouterr().err
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("monitor-plugin ")


def test_main_stays_a_function() -> None:
    """The entry point `monitor_plugin.cli:main` stays callable after a command has run."""
    assert monitor_plugin.cli.main(["--version"]) == monitor_plugin.cli.main(["-h"]) == 0


@pytest.mark.parametrize("command", ["demo", "hooks", "ps"])
@pytest.mark.parametrize("words", [["--token", "s3cret"], ["--token=s3cret"]])
def test_token_flag_is_refused(
    command: str, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """`--token` does not abbreviate `--token-file`, and its value is not shown."""
    assert main([command, *words]) == 2
    error = capsys.readouterr().err
    assert "s3cret" not in error
    assert "MONITOR_TOKEN" in error


@pytest.mark.parametrize("command", ["demo", "hooks", "ps"])
@pytest.mark.parametrize("words", [["--tok", "s3cret"], ["--tok=s3cret"], ["--token-f=s3cret"]])
def test_abbreviated_flag_is_refused(
    command: str, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """The error names the flag, and does not show its value."""
    assert main([command, *words]) == 2
    error = capsys.readouterr().err
    assert "s3cret" not in error
    assert re.search(rf"No such option:? '?{words[0].partition('=')[0]}\b", error)


def test_extra_argument_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    """An argument that is no flag is shown."""
    assert main(["hooks", "now"]) == 2
    assert "unexpected extra argument (now)" in capsys.readouterr().err


@pytest.mark.once
def test_demo_reads_its_token_file(spawner: Spawner, tmp_path: Path) -> None:
    """The printed commands send the shell's token; SIGHUP reads the file again."""
    file = tmp_path / "tokens"
    file.write_text("admin:ops:4dmin")
    process = spawner.process(
        *(COMMAND, "demo", "--listen", "127.0.0.1:0", "--token-file", str(file)),
        stderr=subprocess.PIPE,
        env={**os.environ, "MONITOR_TOKEN": "l0ne"},
    )
    assert process.stdout
    assert process.stderr
    text = ""
    while "Ctrl-C" not in (line := process.stdout.readline()):
        assert line
        text += line
    assert text.count('-H "Authorization: Bearer $MONITOR_TOKEN"') == 5
    client = Client(text.partition("answers at ")[2].partition(". Try")[0])
    for backend in psutil.Process(process.pid).children():
        assert (
            "MONITOR_TOKEN" not in backend.environ()
        )  # with which a backend could stop other backends
    file.write_text("nonsense")
    process.send_signal(signal.SIGHUP)
    assert any("tokens cannot be used" in line for line in process.stderr)
    headers = {"Authorization": "Bearer 4dmin"}
    assert client.request("GET", "/backend/monitor?model=my-model", None, headers).status == 200
    assert client.monitor("my-model").status == 401
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0


@pytest.mark.once
def test_demo_once_sends_the_token_of_the_environment(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """MONITOR_TOKEN is sent, and is not shown; a token file alone is not enough."""
    (tmp_path / "tokens").write_text("admin:ops:4dmin")
    assert main(["demo", "--once", "--token-file", str(tmp_path / "tokens")]) == 1
    assert "MONITOR_TOKEN" in capsys.readouterr().err
    monkeypatch.setenv("MONITOR_TOKEN", "s3cret")
    with restored_signals():
        assert main(["demo", "--once"]) == 0
    output = capsys.readouterr()
    assert "Bearer $MONITOR_TOKEN" in output.out
    assert "s3cret" not in output.out + output.err


@pytest.mark.once
def test_demo_listens_on_a_unix_socket(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The printed commands name the socket, and curl runs them unchanged."""
    path = tmp_path / "monitor.sock"
    with restored_signals():
        assert main(["demo", "--once", "--listen", f"unix:{path}", "--socket-mode", "0660"]) == 0
    shown = capsys.readouterr().out
    assert shown.count(f"--unix-socket {path} ") == 5
    assert not path.exists()
    monitor = Monitor(Settings(listen=f"unix:{path}"))
    with monitor:
        command = shown.partition("$ ")[2].partition("\nHTTP")[0]
        answer = subprocess.check_output(["bash", "-c", command], text=True, timeout=60)
    assert "is not loaded" in answer


@pytest.mark.once
@pytest.mark.parametrize("listen", ["0.0.0.0:0", "[::]:0"])
def test_demo_needs_a_token_on_other_addresses(
    listen: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """An address other than loopback needs a token or --insecure."""
    assert main(["demo", "--once", "--listen", listen]) == 1
    error = capsys.readouterr().err
    for cure in ("MONITOR_TOKEN", "--token-file", "--insecure"):
        assert cure in error
    with restored_signals():
        assert main(["demo", "--once", "--listen", "0.0.0.0:0", "--insecure"]) == 0


def test_importing_starts_nothing() -> None:
    """The import starts no thread, opens no file, and imports nothing that takes long."""
    code = """
import os, sys, threading
before = os.listdir("/proc/self/fd")
import monitor_plugin, monitor_plugin.cli
assert os.listdir("/proc/self/fd") == before
assert not {"grpc", "falcon", "click", "rich"} & set(sys.modules)
assert threading.active_count() == 1
"""
    environment = {**os.environ, "COVERAGE_PROCESS_START": ""}
    environment.pop("COVERAGE_PROCESS_CONFIG", None)
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, env=environment)
