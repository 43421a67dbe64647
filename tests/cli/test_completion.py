"""Shell completion: the answers to bash, and a real bash that completes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitor_plugin import KnownModel, Monitor
from monitor_plugin.cli import main, options
from monitor_plugin.cli.completion import quoted

from ..support import Spawner, eventually, register
from ..terminals import Terminal
from .test_commands import Lists

NAMES = st.text(st.characters(exclude_categories=("Cc", "Cs")), min_size=1, max_size=30)


@settings(max_examples=20)
@given(st.lists(NAMES | st.text("$`\\\"'!~#*? \u202e;&|(){}[]<>=:@^-", min_size=1), min_size=20))
def test_names_come_through_bash_unchanged(names: list[str]) -> None:
    """Bash reads each escaped name unchanged, in each kind of quotes, and runs no part of it."""
    words, expected = [], []
    for name in names:
        for quote in ("", "'", '"'):
            text = quoted(name, quote)
            assert text is not None or quote
            if text is not None:
                assert text.isprintable()
                words.append(f"{quote}{text}{quote}")
                expected.append(name)
    command = "printf '%s\\0' " + " ".join(words)
    environment = {"LC_ALL": "C.UTF-8", "PATH": os.environ["PATH"]}
    printed = subprocess.check_output(["bash", "-c", command], env=environment)
    assert printed.decode().split("\0")[:-1] == expected


def complete_line(
    line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> list[str]:
    """Complete a line as bash does, which replaces only the text after a quote or a `:`."""
    word = line.rpartition("'")[2] if "'" in line else re.split(r"(?<!\\)[ :=]", line)[-1]
    monkeypatch.setenv("COMP_LINE", line)
    monkeypatch.setenv("COMP_WORD", word)
    monkeypatch.setenv("_MONITOR_PLUGIN_COMPLETE", "bash_complete")
    assert main([]) == 0
    return capsys.readouterr().out.splitlines()


def test_commands_flags_and_models_are_completed(
    monitor: Monitor,
    spawner: Spawner,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Commands, flags and their values, and models of the monitor that the line names."""
    monkeypatch.setattr(options, "_COMPLETION_SECONDS", 60.0)
    for model in ("a:b c", "a:$(x)", "other"):
        process = spawner.sleeper()
        register(monitor, process.pid, model, f"unix:/{process.pid}")

    def complete(line: str) -> list[str]:
        return complete_line(f"monitor-plugin {line}", monkeypatch, capsys)

    commands = ["start", "status", "stop", "supervisord", "systemd"]
    assert sorted(complete("s")) == [f"plain,{each}" for each in commands]
    assert complete("demo --status-t") == ["plain,--status-timeout-seconds"]
    assert "plain,--once" in complete("demo --")
    assert not any("--token\n" in f"{line}\n" for line in complete("demo --t"))
    assert complete("stop --fo") == ["plain,--force"]
    assert complete("completion z") == ["plain,zsh"]
    assert complete("top --sort c") == ["plain,cpu"]
    assert complete("ps --token-file x") == ["file,"]
    monkeypatch.setenv("MONITOR_URL", "http://127.0.0.1:1")
    assert complete("stop a") == [""]
    url = f"--url {monitor.url.replace(':', chr(92) + ':')}"
    assert complete(f"stop {url} a") == [r"plain,a\:\$\(x\)", r"plain,a\:b\ c"]
    monkeypatch.setenv("MONITOR_URL", monitor.url)
    assert complete("stop a:") == [r"plain,\$\(x\)", r"plain,b\ c"]
    assert complete("stop 'a:b") == ["plain,a:b c"]
    assert complete(r"stop a:b\ c ") == [r"plain,a\:\$\(x\)", "plain,other"]
    assert complete("ps --model=o") == ["plain,other"]
    assert complete("status o") == ["plain,other"]
    assert complete("stop $(") == [""]
    # A model without a backend can be started, and not be stopped.
    monitor.plugin_manager.register(Lists(KnownModel("off", "stopped", None, True)))
    eventually(lambda: complete("start of") == ["plain,off"])
    assert complete("stop of") == [""]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script_for_each_shell(
    shell: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`completion SHELL` prints the same script as click's variable."""
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    monkeypatch.setenv("_MONITOR_PLUGIN_COMPLETE", f"{shell}_source")
    assert main([]) == 0
    assert capsys.readouterr().out.rstrip() == script.rstrip()
    if shell == "fish":
        assert 'split -m 1 ","' in script


def test_zsh_and_fish_get_printable_names_only(
    monitor: Monitor,
    spawner: Spawner,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """These shells do not escape names. A name with a comma is complete."""
    monkeypatch.setattr(options, "_COMPLETION_SECONDS", 60.0)
    for model in ("a, b", "a\u202e"):
        process = spawner.sleeper()
        register(monitor, process.pid, model, f"unix:/{process.pid}")
    monkeypatch.setenv("MONITOR_URL", monitor.url)
    monkeypatch.setenv("COMP_WORDS", "monitor-plugin stop a")
    for shell, word, expected in (("zsh", "2", "plain\na, b\n_\n"), ("fish", "a", "plain,a, b\n")):
        monkeypatch.setenv("COMP_CWORD", word)
        monkeypatch.setenv("_MONITOR_PLUGIN_COMPLETE", f"{shell}_complete")
        assert main([]) == 0
        assert capsys.readouterr().out == expected


@pytest.fixture
def bash(monitor: Monitor, spawner: Spawner, tmp_path: Path) -> Iterator[Terminal]:
    """A bash that completes, with a monitor to ask."""
    command = tmp_path / "monitor-plugin"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m monitor_plugin.cli "$@"\n')
    command.chmod(0o755)
    (tmp_path / "rc").write_text('PS1="$ "\neval "$(monitor-plugin completion bash)"\necho ready\n')
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    environment = {"PATH": path, "MONITOR_URL": monitor.url, "LC_ALL": "C.UTF-8"}
    rc = str(tmp_path / "rc")
    terminal = Terminal(spawner, "bash", "--rcfile", rc, "-i", cwd=tmp_path, env=environment)
    yield terminal
    terminal.close()


def test_a_real_bash_completes(
    bash: Terminal, monitor: Monitor, spawner: Spawner, tmp_path: Path
) -> None:
    """Names with special characters of the shell reach the monitor unchanged."""
    for model in ("org/my model:7b", "x$(touch pwned)"):
        process = spawner.sleeper()
        register(monitor, process.pid, model, f"unix:/{process.pid}")
    bash.wait_for("ready")
    bash.press("monitor-plugin stat\t")
    bash.wait_for("$ monitor-plugin status")
    bash.press("or\t")
    bash.wait_for(r"monitor-plugin status org/my\ model\:7b")
    bash.press("--j\t\r")
    bash.wait_for('"model": "org/my model:7b"')
    bash.press("clear\rmonitor-plugin status org/my\\ model:\t")
    bash.wait_for(r"$ monitor-plugin status org/my\ model:7b")
    bash.press("\x15monitor-plugin status 'org/my mo\t")
    bash.wait_for("$ monitor-plugin status 'org/my model:7b'")
    bash.press('\x15monitor-plugin status "org/my mo\t')
    bash.wait_for('$ monitor-plugin status "org/my model:7b"')
    bash.press("\x15monitor-plugin ps --model=or\t")
    bash.wait_for(r"$ monitor-plugin ps --model=org/my\ model\:7b")
    bash.press("\x15monitor-plugin status x\t")
    bash.wait_for(r"$ monitor-plugin status x\$\(touch\ pwned\)")
    bash.press("\recho code $?\r")
    bash.wait_for("code 0")
    assert not (tmp_path / "pwned").exists()
