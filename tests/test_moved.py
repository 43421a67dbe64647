"""Tests that the old paths of modules that others import go on working."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import monitor_plugin

OLD_NAMES = {
    "activity": ["Activity", "held_bytes", "says_busy"],
    "background_stops": ["BackgroundStops"],
    "errors": ["MonitorError", "ShutdownFailed"],
    "hook_events": ["Event", "EventHooks"],
    "hook_settings": ["HookSettings", "Limits", "count", "per_model", "seconds", "size"],
    "models": ["Backend", "Reading", "State"],
    "observation": ["Observation"],
    "send_queue": ["NotSent", "SendQueue"],
    "settings": ["Settings"],
    "signed_post": ["Message", "SignedPost", "parse_url"],
    "status_hooks": ["Call", "StatusHooks"],
}


def test_every_moved_module_is_tested() -> None:
    """The folder has the modules of the table above, and no other."""
    folder = Path(monitor_plugin.__path__[0]) / "moved"
    assert {path.stem for path in folder.glob("*.py")} - {"__init__"} == set(OLD_NAMES)


@pytest.mark.parametrize("name", OLD_NAMES)
def test_old_path_has_the_names_that_others_import(name: str) -> None:
    """The old path works without a warning, also in a process that has not imported the new one."""
    code = f"from monitor_plugin.{name} import {', '.join(OLD_NAMES[name])}"
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=60)
