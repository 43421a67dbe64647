"""The typed markers: what they mark, and what a type checker finds with nothing but them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from monitor_plugin import hookimpls, hookspecs
from monitor_plugin.plugins.manager import PluginManager

GOOD = """
from collections.abc import Mapping, Sequence
from typing import Any

import falcon

from monitor_plugin import Backend, BackendExit, Monitor, Status, hookimpls

@hookimpls.monitor_backend_gone
def monitor_backend_gone(backend: Backend, exit: BackendExit) -> None:
    print(backend.model, exit.cause)

@hookimpls.monitor_memory_components
def components(backend: Backend, pids: Sequence[int]) -> dict[str, int]:
    return {"a": len(pids)}

class Plugin:
    @hookimpls.monitor_started
    def start(self, monitor: Monitor) -> None: ...

    @hookimpls.monitor_closing
    def monitor_closing(self) -> None: ...

    @hookimpls.monitor_query_status
    def monitor_query_status(self, backend: Backend, timeout_seconds: float) -> Status | None:
        return None

    @hookimpls.monitor_add_routes
    def monitor_add_routes(self, app: falcon.App[Any, Any]) -> None: ...

Plugin().monitor_query_status(Backend("m", 1, "a:1", 0.0), 1.0)
"""

HEAD = """
from collections.abc import Sequence
from monitor_plugin import Backend, BackendExit, hookimpls
"""

BAD = [
    "@hookimpls.monitor_backend_goen\ndef f(backend: Backend, exit: BackendExit) -> None: ...",
    "@hookimpls.monitor_backend_gone\ndef f(backend: Backend, ext: BackendExit) -> None: ...",
    "@hookimpls.monitor_backend_gone\ndef f(backend: Backend, exit: str) -> None: ...",
    "@hookimpls.monitor_backend_gone\ndef f(exit: BackendExit, backend: Backend) -> None: ...",
    "@hookimpls.monitor_backend_gone\ndef f(b: Backend, exit: BackendExit, c: int) -> None: ...",
    "@hookimpls.monitor_backend_gone\ndef f(backend: Backend, exit: BackendExit, /) -> None: ...",
    "@hookimpls.monitor_backend_gone\ndef f(*args: int) -> None: ...",
    "@hookimpls.monitor_closing\nasync def f() -> None: ...",
    "@hookimpls.monitor_memory_components\n"
    "def f(backend: Backend, pids: Sequence[int]) -> dict[str, str]:\n    return {}",
    "class P:\n  @hookimpls.monitor_backend_gone\n"
    "  def f(self, backend: Backend, reason: str) -> None: ...",
    "class P:\n  @hookimpls.monitor_backend_gone\n"
    "  def f(backend: Backend, exit: BackendExit) -> None: ...",
    "class P:\n  @hookimpls.monitor_closing\n  async def f(self) -> None: ...",
    "class P:\n  @hookimpls.monitor_closing\n  def f() -> None: ...",
]


def test_each_hook_has_a_marker() -> None:
    """Except for the hooks that hosts call. Each marks its own hook, in modules and classes."""
    names = {name for name in vars(hookimpls) if name.startswith("monitor_")}
    assert names == {*hookspecs.HOOK_NAMES} - {*hookspecs.HOST_CALLS}
    scope: dict[str, Any] = {"__name__": "snippet"}
    exec(GOOD, scope)
    manager = PluginManager()
    manager.register(scope["Plugin"]())
    for hook in ("started", "closing", "query_status", "add_routes"):
        assert len(getattr(manager.hook, f"monitor_{hook}").get_hookimpls()) == 1


@pytest.mark.slow
@pytest.mark.once
def test_mypy_finds_a_wrong_signature(tmp_path: Path) -> None:
    """In strict mode and without a plugin, mypy reports wrong signatures and no correct ones."""
    (tmp_path / "good.py").write_text(GOOD)
    for number, text in enumerate(BAD):
        (tmp_path / f"bad{number}.py").write_text(HEAD + text + "\n")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", *tmp_path.glob("*.py")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.stderr == ""
    found = {line.partition(".py:")[0] for line in done.stdout.splitlines() if ": error: " in line}
    assert found == {f"bad{number}" for number in range(len(BAD))}, done.stdout
