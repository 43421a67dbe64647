"""`logs`, `ended` and `status` with the logs of real processes, which end and come back."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from monitor_plugin import Monitor
from monitor_plugin.cli import main

from ..support import Client, Spawner, eventually, free_port, register
from ..terminals import Terminal

PROGRAM = (sys.executable, "-m", "monitor_plugin.cli")
# Writes each line of its input to its standard error.
ECHO = """
import os, sys
while line := sys.stdin.buffer.readline():
    os.write(2, line)
"""


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MONITOR_URL", "MONITOR_TOKEN", "MONITOR_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)


class Writer:
    """A registered backend that writes what a test tells it to a file."""

    def __init__(self, spawner: Spawner, monitor: Monitor, file: Path, mode: str) -> None:
        with file.open(mode) as opened:
            self.process = spawner.python(ECHO, stdin=subprocess.PIPE, stderr=opened)
        register(monitor, self.process.pid, "m", f"unix:/{self.process.pid}")

    def write(self, data: bytes) -> None:
        assert self.process.stdin
        self.process.stdin.buffer.write(data)  # type: ignore[attr-defined]
        self.process.stdin.flush()

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


MakeWriter = Callable[..., Writer]


@pytest.fixture
def make_writer(spawner: Spawner, tmp_path: Path) -> Iterator[MakeWriter]:
    """Makes writers."""
    made: list[Writer] = []

    def make(monitor: Monitor, file: str = "log", mode: str = "a") -> Writer:
        made.append(Writer(spawner, monitor, tmp_path / file, mode))
        return made[-1]

    yield make
    for each in made:
        assert each.process.stdin
        each.process.stdin.close()


def test_binary_and_escape_sequences_do_not_reach_the_terminal(
    make_monitor: Callable[..., Monitor], make_writer: MakeWriter, spawner: Spawner
) -> None:
    """Each byte that would act on a terminal is escaped, also bytes that are not UTF-8."""
    monitor = make_monitor()
    hostile = bytes(range(256)).replace(b"\n", b"") + "\x1b]52;c;eA==\x07\u202e模型".encode()
    make_writer(monitor).write(hostile + b"\nend\n")
    client = Client(monitor.url)
    eventually(lambda: "end" in client.request("GET", "/backend/log?model=m").json["text"])
    terminal = Terminal(spawner, *PROGRAM, "logs", "m", "--url", monitor.url, columns=200)
    assert terminal.ended() == 0
    screen = "\n".join(terminal.wait_for("end"))
    terminal.close()
    printed = terminal.printed.decode()
    assert all(each.isprintable() or each in "\r\n\t" for each in printed)
    for words in (r"\x1b]52;c;eA==\x07\u202e", "模 型"[:1], r"\xff", r"\x00"):
        assert words in screen.replace("\n", "")


@pytest.mark.parametrize(
    ("file", "mode"),
    [("log", "a"), ("log", "w"), ("other", "w")],
    ids=["append", "truncate", "new"],
)
def test_follow_shows_the_next_backend_and_the_next_monitor(
    file: str,
    mode: str,
    make_monitor: Callable[..., Monitor],
    make_writer: MakeWriter,
    spawner: Spawner,
    tmp_path: Path,
) -> None:
    """Each line is printed once and in order, however the host opens the file."""
    listen = f"127.0.0.1:{free_port()}"
    monitor = make_monitor(listen=listen)
    first = make_writer(monitor)
    first.write(b"one one one one one\n")
    command = (*PROGRAM, "logs", "-f", "m", "--url", monitor.url)
    output: list[str] = []
    process = spawner.process(*command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout
    stdout = process.stdout
    reader = threading.Thread(target=lambda: output.extend(iter(stdout.readline, "")))
    reader.start()
    eventually(lambda: output == ["one one one one one\n"])
    first.write(b"two\n")
    eventually(lambda: output[1:] == ["two\n"])
    if mode == "a" or file == "other":
        first.write(b"last words\n")
        eventually(lambda: "last words" in (tmp_path / "log").read_text())
        first.end()
        expected = ["last words\n", "three\n"]
    else:
        first.end()
        expected = ["three\n"]
    second = make_writer(monitor, file, mode)
    second.write(b"three\n")
    eventually(lambda: output[2:] == expected)
    monitor.close()
    again = make_monitor(listen=listen)
    register(again, second.process.pid, "m", f"unix:/{second.process.pid}")
    second.write(b"four\n")
    eventually(lambda: output[2:] == [*expected, "four\n"])
    process.kill()
    process.wait()
    reader.join()


def test_follow_ends_by_a_key_or_with_its_reader(
    monitor: Monitor, make_writer: MakeWriter, spawner: Spawner
) -> None:
    """Ctrl-C is 130; a closed pipe ends it quietly, also if nothing is written any more."""
    make_writer(monitor).write(b"one\n")
    command = (*PROGRAM, "logs", "-f", "m", "--url", monitor.url)
    terminal = Terminal(spawner, *command)
    terminal.wait_for("one")
    terminal.interrupt()
    assert terminal.ended() == 130
    terminal.close()
    process = spawner.process(*command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout
    assert process.stderr
    assert process.stdout.readline() == "one\n"
    process.stdout.close()
    assert process.wait(60) == 1
    assert process.stderr.read() == ""


def test_end_is_shown_with_its_last_output(
    make_monitor: Callable[..., Monitor],
    make_writer: MakeWriter,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """To an admin, in `ended` and `status`; a reader sees the end without it, and no log."""
    (tmp_path / "tokens").write_text("admin:ops:4dmin\nread:grafana:r3ad")
    monitor = make_monitor(token_file=str(tmp_path / "tokens"))
    monkeypatch.setenv("MONITOR_TOKEN", "4dmin")
    url = ["--url", monitor.url]
    writer = make_writer(monitor)
    writer.write(b"CUDA out of memory\nsecret prompt\n")
    shown = "  CUDA out of memory\n  secret prompt\n"
    eventually(lambda: [main(["logs", "m", *url]), "secret" in capsys.readouterr().out][1])
    writer.end()

    def is_complete() -> bool:
        assert main(["status", "m", *url]) == 4
        return shown in capsys.readouterr().out

    def find_end() -> dict[str, Any]:
        assert main(["ended", "--json", *url]) == 0
        (end,) = json.loads(capsys.readouterr().out)
        return dict(end)

    eventually(lambda: monitor.backends() == [])
    eventually(is_complete)
    id = str(find_end()["id"])
    for end in ("m", id):
        assert main(["ended", end, *url]) == 0
        text = capsys.readouterr().out
        assert text.endswith(f"Last output of process {writer.process.pid}:\n{shown}")
        assert re.search(r"^cause +killed: was killed by SIGKILL$", text, re.MULTILINE)
    assert main(["logs", "--pid", str(writer.process.pid), "m", *url]) == 0
    assert "secret prompt" in capsys.readouterr().out
    monkeypatch.setenv("MONITOR_TOKEN", "r3ad")
    assert main(["ended", id, *url]) == 0
    assert main(["ended", "--json", id, *url]) == 0
    assert main(["ended", *url]) == 0
    assert main(["status", "m", *url]) == 4
    assert main(["ps", "--json", *url]) == 0
    assert main(["events", "--json", *url]) == 0
    assert main(["logs", "m", *url]) == 1
    output = capsys.readouterr()
    assert "secret" not in output.out + output.err
    assert "role" in output.err
