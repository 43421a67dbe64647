"""The documentation says what is so: its snippets run, and its tables are whole."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from monitor_plugin import Settings, hookspecs
from monitor_plugin.demo.calls import calls

from .support import Spawner

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
SNIPPETS = re.findall(r"<!-- run -->\n```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("snippet", SNIPPETS, ids=range(len(SNIPPETS)))
def test_the_snippets_run(snippet: str, spawner: Spawner) -> None:
    """Each Python snippet of the README runs as it stands, but for the ports, without an error."""
    assert len(SNIPPETS) == README.count("```python")
    port = 20000 + hash(snippet) % 10000
    snippet = snippet.replace("50051", str(port))
    process = spawner.process(
        *(sys.executable, "-W", "error", "-c", snippet),
        stderr=subprocess.PIPE,
        env={"MONITOR_LISTEN": "127.0.0.1:0", "PATH": ""},
        cwd=ROOT,
    )
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")


def test_the_demos_commands_stand_in_the_readme() -> None:
    """What the README shows of the demo is what the demo does."""
    shown = README.partition("<!-- demo -->")[2]
    for call in calls():
        assert f"$ {call.curl('http://127.0.0.1:8080')}\nHTTP {call.expected_status}" in shown


def test_every_hook_stands_in_the_readme() -> None:
    """Each hook is in the table, with its exact arguments."""
    for name in hookspecs.HOOK_NAMES:
        arguments = ", ".join(inspect.signature(getattr(hookspecs, name)).parameters)
        assert f"`{name}({arguments})`" in README


def test_every_setting_stands_in_the_readme() -> None:
    """Each setting is in the table, with its default."""
    for field in msgspec.structs.fields(Settings):
        if field.default is not None:
            assert re.search(
                rf"\| `{field.name}` \| `?{re.escape(str(field.default))}`? \|", README
            )
        else:
            assert f"`{field.name}`" in README


def test_every_module_stands_in_the_architecture() -> None:
    """Each module is named in ARCHITECTURE.md, and none that is not there."""
    text = (ROOT / "ARCHITECTURE.md").read_text()
    package = ROOT / "monitor_plugin"
    modules = {path.name for path in [*package.glob("*.py"), *package.glob("http/*.py")]}
    named = set(re.findall(r"`(?:http/)?(\w+\.py)`", text))
    assert named == modules - {"__init__.py"}
