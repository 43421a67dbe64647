from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest

from monitor_plugin import Monitor

from .support import copy_hooks


@pytest.fixture(autouse=True)
def _no_hooks_are_left() -> Iterator[None]:
    """Removes the loaded hook files from `sys.modules`, so that the next test loads them again."""
    yield
    for name in [each for each in sys.modules if each.startswith("monitor_plugin_hooks.")]:
        del sys.modules[name]


class Hooked(NamedTuple):
    """A started monitor in this process, and the module of its hook file."""

    monitor: Monitor
    module: ModuleType

    def spawned(self, model: str, backend: Any) -> None:
        """Register a demo backend."""
        self.monitor.hook.monitor_backend_spawned(
            model=model, pid=backend.pid, address=backend.address
        )


MakeHooked = Callable[..., Hooked]


@pytest.fixture
def hooked(
    make_monitor: Callable[..., Monitor], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> MakeHooked:
    """Makes a monitor with a hook: `hooked("idle_stop", {"SECONDS": "60"}, listen=None)`.

    Further names of hook files may follow the settings of the first one.
    """

    def make(stem: str, hook_settings: dict[str, str], *others: str, **settings: Any) -> Hooked:
        for name, value in hook_settings.items():
            monkeypatch.setenv(f"MONITOR_HOOK_{stem.upper()}_{name}", value)
        folder = str(copy_hooks(tmp_path / "hooks", stem, *others))
        monitor = make_monitor(**{"listen": None, "hooks_dir": folder, **settings})
        return Hooked(monitor, sys.modules[f"monitor_plugin_hooks.{stem}"])

    return make
