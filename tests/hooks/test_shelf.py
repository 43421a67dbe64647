"""All shipped hooks: every file loads, and the reference has its effect and settings."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from monitor_plugin import Monitor

from ..support import logged
from .support import SHELF, copy_hooks

# These files only say that they can be removed.
REPLACED = ["drm_memory", "nvidia_memory"]
STEMS = sorted(path.stem for path in SHELF.glob("*.py"))
PAGE = (SHELF.parent / "docs" / "reference" / "hook-files.md").read_text()
SECTIONS = {
    part.partition(".py\n")[0]: part
    for part in re.split(r"^## (?=\w+\.py$)", PAGE, flags=re.MULTILINE)[1:]
}


def settings_of(stem: str) -> set[str]:
    """Return the environment variables that a file reads, directly or through HookSettings."""
    text = (SHELF / f"{stem}.py").read_text()
    prefix = f"MONITOR_HOOK_{stem.upper()}_"
    whole = set(re.findall(r"MONITOR_HOOK_\w*[A-Z]", text))
    short = re.findall(
        r"[sS]ettings(?:\(__name__\))?\.(?:get|secret|error)\(\s*\"([A-Z_]+)\"", text
    )
    if "Watchdog(" in text:
        short += ["ACTION", "PROTECT", "RESTARTS_PER_HOUR"]
    return {each for each in whole if each + "_" != prefix} | {prefix + name for name in short}


def test_all_files_load_together(
    make_monitor: Callable[..., Monitor],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """All files load without settings; each implements the hooks of its section.

    Only the replaced files log something.
    """
    for variable in [name for stem in STEMS for name in settings_of(stem)]:
        monkeypatch.delenv(variable, raising=False)
    monitor = make_monitor(hooks_dir=str(copy_hooks(tmp_path / "hooks", *STEMS)), listen=None)
    for stem in STEMS:
        name = f"monitor_plugin_hooks.{stem}"
        module = sys.modules[name]
        assert monitor.plugin_manager.get_plugin(name) is module
        callers = monitor.plugin_manager.get_hookcallers(module) or []
        hooks = SECTIONS[stem].partition("\nHooks: ")[2].partition("\n\n")[0]
        assert set(re.findall(r"`(\w+)`", hooks)) == {caller.name for caller in callers}
    monitor.close()
    messages = logged(caplog)
    assert len(messages) == len(REPLACED)
    for stem, message in zip(REPLACED, messages, strict=True):
        assert "(setting `gpu`)" in message
        assert message.endswith(
            f"remove this file, {tmp_path}/hooks/{stem}.py, from the folder of hooks"
        )


def test_reference_has_a_section_per_file() -> None:
    """The sections are sorted, and the table at the top links to each of them."""
    assert list(SECTIONS) == STEMS
    assert sorted(re.findall(r"\[`(\w+)\.py`\]\(#\1py\)", PAGE)) == STEMS


@pytest.mark.parametrize("stem", STEMS)
def test_reference_has_value_and_default_of_each_setting(stem: str) -> None:
    """The table of a section has each variable once, with its kind of value and its default."""
    rows = re.findall(r"^\| `(\w+)` \| [^|]+ \| [^|]+ \| [^|]+ \|$", SECTIONS[stem], re.MULTILINE)
    assert len(rows) == len(set(rows))
    assert set(rows) == settings_of(stem)
    assert all(each.startswith(f"MONITOR_HOOK_{stem.upper()}_") for each in rows)


@pytest.mark.parametrize("stem", STEMS)
def test_docstring_names_settings_and_folder(stem: str) -> None:
    """Its docstring names each setting, and the folder that enables it."""
    docstring = ast.get_docstring(ast.parse((SHELF / f"{stem}.py").read_text())) or ""
    assert "`hooks_dir`" in docstring
    for variable in settings_of(stem):
        short = variable.removeprefix(f"MONITOR_HOOK_{stem.upper()}_")
        assert re.search(rf"^\s*(?:{variable}:|{short} )", docstring, re.MULTILINE), variable
