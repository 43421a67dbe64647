"""All commands alike: exit codes, errors of one line, Ctrl-C and SIGTERM."""

from __future__ import annotations

import contextlib
import json
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from importlib import import_module
from types import SimpleNamespace
from typing import NamedTuple

import pytest

from monitor_plugin import Monitor, Settings
from monitor_plugin.cli import main
from monitor_plugin.cli.options import UNREACHABLE

from ..support import IGNORING_SIGINT, Spawner, refuse_descriptors, refuse_thread
from ..terminals import Terminal

PROGRAM = (sys.executable, "-m", "monitor_plugin.cli")
# Every command that asks a monitor.
ASKING = (
    "ps",
    "ps --json",
    "status m",
    "stop --yes m",
    "stop --all --yes",
    "hooks",
    "gpus",
    "gpus --json",
    "top",
)


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Removes the variables that name a monitor, and lets `top` run without a terminal."""
    for name in ("MONITOR_URL", "MONITOR_TOKEN", "MONITOR_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    terminal = SimpleNamespace(isatty=lambda: True)
    streams = SimpleNamespace(stdin=terminal, stdout=terminal)
    monkeypatch.setattr(import_module("monitor_plugin.cli.top"), "sys", streams)


@contextlib.contextmanager
def serve_bytes(answer: bytes) -> Iterator[str]:
    """A server that is no monitor: it sends the same bytes to every client."""

    def serve() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError):
                connection.recv(65536)
                connection.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)


class Failure(NamedTuple):
    """A kind of failure: what a user gives, and what every command answers."""

    flags: str
    variables: Mapping[str, str]
    code: int
    words: str


FAILURES = [
    Failure("--url http://a..b", {}, 2, "the host is neither"),
    Failure("--url http://127.0.0.1:1/p\u00e4th", {}, 2, "write /p%C3%A4th"),
    Failure("--url http://me:s3cret@h", {}, 2, "must not contain a user name"),
    Failure("", {"MONITOR_URL": "http://.x"}, 2, "the host is neither"),
    Failure("", {"MONITOR_URL": "unix:/" + "x" * 107}, 2, "at most 107 bytes"),
    Failure("", {"MONITOR_URL": "nonsense"}, 2, "'nonsense' is neither http://HOST:PORT nor unix:"),
    Failure("--url=", {"MONITOR_URL": "http://127.0.0.1:1"}, 2, "'' is neither http://HOST:PORT"),
    Failure("--token-file /none", {}, 2, "/none cannot be used: No such file"),
    Failure("--token-file /", {}, 2, "/ cannot be used: Is a directory"),
    Failure("--token-file /dev/zero", {}, 2, "/dev/zero cannot be used"),
    Failure("--token-file=", {"MONITOR_TOKEN": "a"}, 2, "cannot be used: No such file"),
    Failure("--token-file \0s", {}, 2, "cannot be used"),
    Failure("", {"MONITOR_TOKEN_FILE": "/none"}, 2, "/none cannot be used"),
    Failure("", {"MONITOR_TOKEN": "s3cret s3cret"}, 2, "MONITOR_TOKEN: the token holds a space"),
    Failure("--nonsense", {}, 2, "No such option"),
    Failure("--url http://127.0.0.1:1", {}, 3, "Connection refused"),
    Failure("--url unix:/none", {}, 3, "No such file"),
    Failure("--url {monitor}", {}, 1, "--token-file, gives the token"),
    Failure("--url {monitor}", {"MONITOR_TOKEN": "wr0ng"}, 1, "--token-file, gives the token"),
]


@pytest.fixture(scope="module")
def guarded() -> Iterator[Monitor]:
    """A monitor that wants a token."""
    with Monitor(Settings(listen="127.0.0.1:0", token="s3cret")) as monitor:
        yield monitor


@pytest.mark.parametrize("failure", FAILURES, ids=lambda each: each.flags or str(each.variables))
@pytest.mark.parametrize("command", ASKING)
def test_commands_have_the_same_exit_codes(
    command: str,
    failure: Failure,
    guarded: Monitor,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each kind of failure is the same code and the same error in every command."""
    for name, value in failure.variables.items():
        monkeypatch.setenv(name, value)
    flags = failure.flags.format(monitor=guarded.url).split(" ") if failure.flags else []
    assert main([*command.split(), *flags]) == failure.code
    error = capsys.readouterr().err
    assert failure.words in error
    assert error.splitlines()[-1].startswith(("monitor-plugin: ", "Error: "))
    assert "s3cret" not in error


def _answer(body: bytes, head: bytes = b"HTTP/1.1 200 OK") -> bytes:
    return b"%s\r\nContent-Length: %d\r\n\r\n%s" % (head, len(body), body)


def _backends(**fields: object) -> bytes:
    backend = {"model": "m", "pid": 1, "created_at": "2026-01-01T00:00:00Z", "uptime_seconds": 1}
    return _answer(json.dumps({"backends": [{**backend, **fields}], "ended": []}).encode())


@pytest.mark.parametrize("command", ASKING)
@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\0" * 100,
        b"\x1b[31mSSH-2.0\r\n",
        b"\x15\x03\x01\x00\x02\x02\x50",  # an alert of TLS
        b"x" * 200_000,
        b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n{",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz",
        b"HTTP/1.1 500 " + b"x" * 60_000 + b"\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: https://h/\r\n\r\n",
        _answer(b"<p>hello"),
        _answer(b"<p>hello", b"HTTP/1.1 404 Not Found"),
        _answer(b'{"error": "x"}', b"HTTP/1.1 500 Oh"),
        _answer(b"{}"),
        _answer(b"null"),
        _answer(b"\xff"),
        _answer(b"[" * 200_000),
        _answer(b'{"backends": [1], "ended": []}'),
        _backends(uptime_seconds=float("nan")),
        _backends(uptime_seconds=float("inf")),
        _backends(uptime_seconds=10**400),
        _backends(model="\udcff"),
        _backends(memory={"total": 10**400, "breakdown": {}}),
    ],
    ids=lambda answer: repr(answer[-30:]),
)
def test_answers_of_another_server_are_errors(
    answer: bytes, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The error is one line with the URL, and the exit code is 3."""
    with serve_bytes(answer) as url:
        assert main([*command.split(), "--url", url]) == UNREACHABLE == 3
    error = capsys.readouterr().err
    assert url in error
    assert error.count("\n") == 1
    assert error[:-1].isprintable()
    assert len(error) < 500


@pytest.mark.parametrize("model", ["", "a\x1b[31m", "\udcff", "x" * 256])
@pytest.mark.parametrize("command", ["ps --model", "status", "stop --yes"])
def test_invalid_model_name_is_a_usage_error(
    command: str, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command line is refused, and no request is sent."""
    assert main([*command.split(), model]) == 2
    assert "\x1b" not in capsys.readouterr().err


@pytest.mark.parametrize("node", ["", "a b", "\udcff"])
@pytest.mark.parametrize("command", ["ps", "stop --all --yes"])
def test_invalid_node_name_is_a_usage_error(
    command: str, node: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command line is refused, and no request is sent."""
    assert main([*command.split(), "--node", node]) == 2
    assert "is no node's name" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["demo --once", "supervisord --server-url unix:///none"])
@pytest.mark.parametrize("resource", ["thread", "descriptor"])
def test_exhausted_system_is_an_error_of_one_line(
    resource: str,
    command: str,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A monitor that gets no thread or no descriptor at its start: the line says what to raise."""
    listener = import_module("monitor_plugin.hosts.supervisord.listener")
    monkeypatch.setattr(listener, "Signals", SimpleNamespace)  # handlers would stay installed
    monkeypatch.setattr(listener, "EventProtocol", SimpleNamespace(claim=SimpleNamespace))
    if resource == "thread":
        refuse_thread(monkeypatch, "monitor-http")
    else:
        refuse_descriptors(monkeypatch, select, "epoll")
    assert main([*command.split(), "--listen", "127.0.0.1:0"]) == 1
    last = capfd.readouterr().err.splitlines()[-1]
    assert last.startswith("monitor-plugin: ")
    assert {"thread": "ulimit -u", "descriptor": "ulimit -n"}[resource] in last


def test_demo_without_backends_is_an_error_of_one_line(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the program of a backend ends at once, which says why on stderr."""
    monkeypatch.setattr("monitor_plugin.demo.host.MODELS", {"m": ["--no-such-flag"]})
    assert main(["demo", "--once"]) == 1
    error = capfd.readouterr().err
    assert "Traceback" not in error
    assert "monitor-plugin: the backend of 'm' ended before it served" in error


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("command", ["ps", "status m", "stop --yes m", "hooks", "top"])
def test_signals_end_each_command(number: signal.Signals, command: str, spawner: Spawner) -> None:
    """Ctrl-C is 130 and SIGTERM 143, also where the parent has ignored SIGINT."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        terminal = Terminal(spawner, *IGNORING_SIGINT, *PROGRAM, *command.split(), "--url", url)
        silent.settimeout(60)
        with silent.accept()[0] as connection:
            assert connection.recv(3) == b"GET"  # the command waits for the answer
            terminal.process.send_signal(number)
            assert terminal.ended() == 128 + number
        assert "Traceback" not in "\n".join(terminal.screen)
        terminal.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_a_command_that_is_still_importing(number: signal.Signals) -> None:
    """Most of the time of a short command is that of its imports."""
    script = f"""
import os, sys

class Impatient:
    def find_spec(self, name, *_):
        if name == "click":
            os.kill(os.getpid(), {number})

sys.meta_path.insert(0, Impatient())
from monitor_plugin.cli import main
sys.exit(main(["ps", "--url", "http://127.0.0.1:1"]))
"""
    run = subprocess.run(
        [*IGNORING_SIGINT, sys.executable, "-c", script], capture_output=True, text=True, timeout=60
    )
    assert (run.returncode, run.stderr.strip()) == (128 + number, "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_the_wait_but_not_the_shutdown(
    number: signal.Signals, monitor: Monitor, spawner: Spawner
) -> None:
    """An interrupted `stop` names the models that are being stopped, and those that are not."""
    for model in "abcde":  # one more than are stopped at the same time
        backend = spawner.backend_served_here("--state", "1")
        monitor.hook.monitor_backend_spawned(model=model, pid=backend.pid, address=backend.address)
    command = (*IGNORING_SIGINT, *PROGRAM, "stop", "--yes", *"abcde")
    terminal = Terminal(spawner, *command, env={"MONITOR_URL": monitor.url})
    terminal.wait_for("draining, until it is not busy")
    if number == signal.SIGINT:
        terminal.press("\x03")
    else:
        terminal.process.send_signal(number)
    assert terminal.ended() == 128 + number
    terminal.wait_for("The monitor goes on stopping a, b, c, d. Not stopped: e.")
    terminal.close()
    assert len(monitor.backends()) == 5


def test_handlers_are_restored() -> None:
    """A program that calls `main` keeps its own handlers; in another thread none is installed."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    assert main(["--help"]) == 0
    assert [signal.getsignal(number) for number in numbers] == before
    codes = []
    thread = threading.Thread(target=lambda: codes.append(main(["--help"])))
    thread.start()
    thread.join()
    assert codes == [0]
