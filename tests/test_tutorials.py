"""The pages that a reader works through: their commands, run in order, print what is shown."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from .support import Spawner, eventually, free_port
from .test_documentation import without_machine

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
# The number of commands that the test runs, so that none is skipped by mistake.
COMMANDS = {
    "tutorials/first-steps": 10,
    "tutorials/your-first-hook": 8,
    "how-to/automatic-stops": 2,
}
# A step: what to press where the last program runs, or a block with its marker.
STEP = re.compile(
    r"^<!-- then (?P<key>Ctrl-C|Enter) -->$"
    r"|^(?:<!-- (?P<marker>[^\n]*) -->\n)?```(?P<language>\w+)\n(?P<text>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)


def as_pattern(output: str) -> str:
    """Return a pattern that matches the shown output; `...` matches anything."""
    return re.sub(r"(\\\.){3}", ".*?", re.escape(output.rstrip("\n")))


def without_figures(output: str) -> str:
    """Replace durations and figures, which differ each time, and the padding of columns.

    Also removes what is said of the machine alone.
    """
    output = without_machine(output)
    output = re.sub(r"\b(\d+[smhd])+\b", "T", output)
    output = re.sub(r"\d+(\.\d+(e-\d+)?)?", "N", output)
    return "\n".join(" ".join(line.split()) for line in output.strip().split("\n"))


class Reader:
    """Types the commands of a page, in a folder that looks like a checkout.

    Args:
        spawner: starts the commands.
        folder: the folder in which the commands run, which is also the reader's home.
        port: the port that stands for 8080.
    """

    def __init__(self, spawner: Spawner, folder: Path, port: int) -> None:
        self._spawner = spawner
        self._folder = folder
        self._port = str(port)
        (folder / ".venv").symlink_to(sys.prefix)
        programs = str(Path(sys.executable).parent)
        self._environment = {
            **{name: value for name, value in os.environ.items() if "COVERAGE" not in name},
            "HOME": str(folder),
            "MONITOR_GPU": "off",  # the pages show a machine without a GPU
            "PATH": f"{programs}:{os.environ['PATH']}",
            "MONITOR_LISTEN": f"127.0.0.1:{port}",
            "MONITOR_URL": f"http://127.0.0.1:{port}",
        }
        self._running: subprocess.Popen[str] | None = None
        self.commands = 0

    def follow(self, page: str) -> None:
        """Save each file, run each command, and press the keys; end what still runs by Ctrl-C."""
        address = f"127.0.0.1:{free_port()}"
        page = page.replace("8080", self._port).replace("127.0.0.1:50051", address)
        for key, marker, language, text in STEP.findall(page):
            if key:
                self._press(key)
            elif marker.startswith("file: "):
                (self._folder / marker.removeprefix("file: ")).write_text(text)
            elif language == "console" and not marker.startswith("not run: "):
                self._type(marker, text)
        if self._running and self._running.poll() is None:
            self._press("Ctrl-C")

    def _press(self, key: str) -> None:
        assert self._running
        if key == "Ctrl-C":
            os.killpg(self._running.pid, signal.SIGINT)
        output, _ = self._running.communicate("\n" if key == "Enter" else None, timeout=60)
        assert self._running.returncode == 0, output

    def _type(self, marker: str, text: str) -> None:
        command, _, shown = text.removeprefix("$ ").partition("\n")
        assert "\n$ " not in shown
        self.commands += 1
        if found := re.fullmatch(r"umask (\d+)", command):  # for the commands that follow
            os.umask(int(found[1], 8))
        if marker == "leave running":
            self._start(command.replace("make demo", "monitor-plugin demo"), shown)
        elif marker == "figures differ":
            pattern = as_pattern(without_figures(shown))
            # At first a backend may not serve yet, and the figures of its CPU are not known.
            eventually(lambda: re.fullmatch(pattern, without_figures(self._run(command))))
        else:
            output = self._run(command).rstrip("\n")
            assert re.fullmatch(as_pattern(shown), output, re.DOTALL), output

    def _start(self, command: str, shown: str) -> None:
        self._running = self._process(command)
        assert self._running.stdout
        output = ""
        while not re.search(as_pattern(shown), output, re.DOTALL):
            line = self._running.stdout.readline()
            assert line, output
            output += line

    def _run(self, command: str) -> str:
        output, _ = self._process(command).communicate(timeout=60)
        return str(output)

    def _process(self, command: str) -> subprocess.Popen[str]:
        return self._spawner.process(
            *("bash", "-c", command),
            stdin=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=self._folder,
            env=self._environment,
        )


@pytest.fixture
def group_may_write() -> Iterator[None]:
    """Sets a umask that lets the group write, as the shells of many newcomers do."""
    before = os.umask(0o002)
    yield
    os.umask(before)


@pytest.mark.slow
@pytest.mark.once
@pytest.mark.usefixtures("group_may_write")
@pytest.mark.parametrize("name", COMMANDS)
def test_page_works_as_written(name: str, spawner: Spawner, tmp_path: Path) -> None:
    """Its commands, run on its files, print the shown output, with other ports."""
    if name.startswith("how-to/"):
        (tmp_path / "hooks").symlink_to(ROOT / "hooks")
    reader = Reader(spawner, tmp_path, free_port())
    reader.follow((DOCS / f"{name}.md").read_text())
    assert reader.commands == COMMANDS[name]


def test_make_demo_runs_the_demo() -> None:
    """The test of the first steps runs `monitor-plugin demo` in place of `make demo`."""
    makefile = (ROOT / "Makefile").read_text()
    assert re.search(r"^demo: .*\n\t@\$\(VENV\)/bin/monitor-plugin demo$", makefile, re.MULTILINE)
