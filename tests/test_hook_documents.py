"""The hook reference is complete, and its examples run."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from monitor_plugin import ShutdownRefused, StartFailed, hookspecs
from monitor_plugin.hookspecs import HOOK_NAMES, HOST_CALLS
from monitor_plugin.plugins.signatures import signature_of
from monitor_plugin.testing import BackendFactory, MonitorFactory

from .support import Client, Spawner, eventually, register

DOCS = Path(__file__).parent.parent / "docs"
TEXT = (DOCS / "reference" / "hooks.md").read_text()
SECTIONS = {
    part.partition("\n")[0]: part for part in re.split(r"^### ", TEXT, flags=re.MULTILINE)[1:]
}


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
    make_monitor: MonitorFactory, backend: BackendFactory, spawner: Spawner, tmp_path: Path
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
    assert Client(monitor.url).request("GET", "/backends").json["backends"][0]["unit"]

    def called(hook: str) -> bool:
        figures = {
            (plugin.name.removeprefix("monitor_plugin_hooks."), each.name): each
            for plugin in monitor.plugins()
            for each in plugin.hooks
        }
        assert all(each.errors == each.overruns == 0 for each in figures.values())
        return figures[hook, hook].calls > 0

    eventually(lambda: called("monitor_readings_swept"))
    monitor.report_watchdog(monitor.backends()[0], "mine", "tell", "it is too warm")
    monitor.known_models()
    with pytest.raises(StartFailed):
        monitor.start_model("none")
    try:
        monitor.shutdown("llama")
    except ShutdownRefused:  # by the example, on a fast machine
        monitor.shutdown("llama", force=True)
    eventually(lambda: called("monitor_backend_gone"))
    launcher = spawner.process("sh", "-c", "sleep 1000 & echo; wait")
    assert launcher.stdout
    launcher.stdout.readline()
    register(monitor, launcher.pid)
    launcher.kill()
    eventually(lambda: called("monitor_backend_left_behind"))
    eventually(lambda: called("monitor_backend_postmortem"))
    assert [name for name in names if name != "monitor_closing" and not called(name)] == []
    monitor.close()
    assert called("monitor_closing")


def test_documented_signatures_are_those_of_the_hookspecs() -> None:
    """The documented signatures are valid Python, and equal those of the hookspecs."""
    for name in HOOK_NAMES:
        scope: dict[str, Callable[..., object]] = {}
        exec(f"from __future__ import annotations\ndef {signature_of(name)}: ...", scope)
        assert scope[name].__annotations__ == getattr(hookspecs, name).__annotations__
