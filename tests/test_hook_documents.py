"""The hook reference is complete, its examples run, and so does the tutorial."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from monitor_plugin import ShutdownRefused, hookspecs
from monitor_plugin.hookspecs import HOOK_NAMES, HOST_CALLS
from monitor_plugin.plugins.signatures import signature_of
from monitor_plugin.testing import BackendFactory, MonitorFactory

from .support import Spawner, eventually, free_port

DOCS = Path(__file__).parent.parent / "docs"
TEXT = (DOCS / "reference" / "hooks.md").read_text()
SECTIONS = {
    part.partition("\n")[0]: part for part in re.split(r"^### ", TEXT, flags=re.MULTILINE)[1:]
}
TUTORIAL = (DOCS / "tutorials" / "your-first-hook.md").read_text()


def code(section: str, kind: str) -> str:
    (found,) = re.findall(rf"<!-- {kind} -->\n```python\n(.*?)```", section, re.DOTALL)
    return str(found)


def test_hook_document_describes_all_hooks() -> None:
    """Each hook has a section: its exact signature, when and where it runs, its result, errors."""
    assert sorted(SECTIONS) == sorted(HOOK_NAMES)
    for name, section in SECTIONS.items():
        assert f"```text\n{signature_of(name)}\n```" in section
        words = ["**When:**", "**Thread:**", "**Returns**", "**Errors:**"]
        if name != "monitor_closing":
            words.append("**Arguments:**" if name != "monitor_started" else "Monitor")
        assert [word for word in words if word not in section] == [], name
        assert code(section, "script" if name in HOST_CALLS else "hook")


def test_table_of_hooks_links_to_all_sections() -> None:
    """The table at the top of the page has each hook once."""
    assert sorted(re.findall(r"\[`(\w+)`\]\(#\1\)", TEXT)) == sorted(HOOK_NAMES)


def test_examples_for_hosts_run(spawner: Spawner) -> None:
    """They run unchanged, with warnings as errors."""
    for name in HOST_CALLS:
        script = code(SECTIONS[name], "script")
        process = spawner.process(sys.executable, "-W", "error", "-c", script, stderr=-1)
        _, errors = process.communicate(timeout=60)
        assert (process.returncode, errors) == (0, "")


def test_each_example_is_a_working_hook_file(
    make_monitor: MonitorFactory, backend: BackendFactory, tmp_path: Path
) -> None:
    """One monitor loads all of them; each hook is called, and none raises an error or is late."""
    names = [name for name in HOOK_NAMES if name not in HOST_CALLS]
    for name in names:
        (tmp_path / f"{name}.py").write_text(code(SECTIONS[name], "hook"))
    (tmp_path / "typed.py").write_text(code(TEXT, "typed"))
    tmp_path.chmod(0o755)
    monitor = make_monitor(
        hooks_dir=str(tmp_path), sweep_interval_seconds=0.1, hook_timeout_seconds=20.0
    )
    backend().register(monitor, "llama")
    assert monitor.read("llama").source == "grpc"

    def called(hook: str) -> bool:
        figures = {
            (plugin.name.removeprefix("monitor_plugin_hooks."), each.name): each
            for plugin in monitor.plugins()
            for each in plugin.hooks
        }
        assert all(each.errors == each.overruns == 0 for each in figures.values())
        return figures[hook, hook].calls > 0

    eventually(lambda: called("monitor_readings_swept"))
    try:
        monitor.shutdown("llama")
    except ShutdownRefused:  # by the example, on a fast machine
        monitor.shutdown("llama", force=True)
    eventually(lambda: called("monitor_backend_gone"))
    assert [name for name in names if name != "monitor_closing" and not called(name)] == []
    monitor.close()
    assert called("monitor_closing")


def test_documented_signatures_are_those_of_the_hookspecs() -> None:
    """The documented signatures are valid Python, and equal those of the hookspecs."""
    for name in HOOK_NAMES:
        scope: dict[str, Callable[..., object]] = {}
        exec(f"from __future__ import annotations\ndef {signature_of(name)}: ...", scope)
        assert scope[name].__annotations__ == getattr(hookspecs, name).__annotations__


def blocks(text: str) -> list[tuple[str, str, str]]:
    """Return the tutorial's blocks in order: the preceding comment, the language, the text."""
    pattern = r"(?:<!-- ([^\n]*) -->\n)?```(\w+)\n(.*?)```"
    return [(a, b, c) for a, b, c in re.findall(pattern, text, re.DOTALL)]


def as_pattern(output: str) -> str:
    """Return a pattern that matches the shown output; `...` matches anything."""
    return re.sub(r"(\\\.){3}", ".*?", re.escape(output.rstrip("\n")))


@pytest.fixture
def group_may_write() -> Iterator[None]:
    """Sets a umask that lets the group write, as the shells of many newcomers do."""
    before = os.umask(0o002)
    yield
    os.umask(before)


@pytest.mark.once
@pytest.mark.usefixtures("group_may_write")
def test_tutorial_works_as_written(spawner: Spawner, tmp_path: Path) -> None:
    """Its commands, run on its files, print the shown output, with other ports."""
    port = str(free_port())
    programs = str(Path(sys.executable).parent)
    environment = {
        **{name: value for name, value in os.environ.items() if "COVERAGE" not in name},
        "PATH": f"{programs}:{os.environ['PATH']}",
        "MONITOR_LISTEN": f"127.0.0.1:{port}",
        "MONITOR_URL": f"http://127.0.0.1:{port}",
    }
    done = 0
    for comment, language, text in blocks(TUTORIAL):
        if comment.startswith("file: "):
            file = tmp_path / comment.removeprefix("file: ")
            file.write_text(text)
            continue
        assert language == "console"
        command, _, shown = text.removeprefix("$ ").replace("8080", port).partition("\n")
        assert "\n$ " not in shown
        if command.startswith("umask "):  # of the shell in which all of it is typed
            os.umask(int(command.removeprefix("umask "), 8))
        process = spawner.process(
            *("bash", "-c", command), stderr=subprocess.STDOUT, cwd=tmp_path, env=environment
        )
        assert process.stdout
        if comment == "leave running":
            output = ""
            while not re.search(as_pattern(shown), output, re.DOTALL):
                line = process.stdout.readline()
                assert line, output
                output += line
        else:
            output, _ = process.communicate(timeout=60)
            assert re.fullmatch(as_pattern(shown), output.rstrip("\n"), re.DOTALL), output
        done += 1
    assert done == 8
