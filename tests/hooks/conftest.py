"""Monitors in the tests' own process, with one hook of the shelf."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest

from monitor_plugin import Monitor

SHELF = Path(__file__).parents[2] / "hooks"


class Hooked(NamedTuple):
    """A started monitor, and the hook file's module in it."""

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
) -> Iterator[MakeHooked]:
    """Makes monitors with one hook: `hooked("idle_stop", {"SECONDS": "60"}, listen=None)`."""

    def make(stem: str, said: dict[str, str], **settings: Any) -> Hooked:
        folder = tmp_path / "hooks"
        folder.mkdir(mode=0o755, exist_ok=True)
        shutil.copyfile(SHELF / f"{stem}.py", folder / f"{stem}.py")
        (folder / f"{stem}.py").chmod(0o644)
        for name, value in said.items():
            monkeypatch.setenv(f"MONITOR_HOOK_{stem.upper()}_{name}", value)
        monitor = make_monitor(**{"listen": None, "hooks_dir": str(folder), **settings})
        return Hooked(monitor, sys.modules[f"monitor_plugin_hooks.{stem}"])

    yield make
    for name in list(sys.modules):
        if name.startswith("monitor_plugin_hooks."):
            del sys.modules[name]
