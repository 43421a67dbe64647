"""Helpers for the tests of the shipped hooks: a monitor in its own process, with one hook."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ..support import Client, Spawner

ROOT = Path(__file__).parents[2]
SHELF = ROOT / "hooks"

# Registers each MODEL:PID with the status READY, and ends when its standard input is closed.
MONITOR = """
import logging, sys
import monitor_plugin

class Ready:
    @monitor_plugin.hookimpl
    def monitor_query_status(self, backend):
        return monitor_plugin.Status(monitor_plugin.State.READY)

logging.basicConfig(format="%(name)s: %(message)s")
folder, *backends = sys.argv[1:]
settings = monitor_plugin.Settings(
    listen="127.0.0.1:0",
    hooks_dir=folder,
    hook_timeout_seconds=30,
    memory_release_seconds=600,
    reading_max_age_seconds=0,
    sweep_interval_seconds=0,
)
with monitor_plugin.Monitor(settings, [Ready()]) as monitor:
    for number, backend in enumerate(backends, 1):
        model, _, pid = backend.partition(":")
        address = f"127.0.0.1:{number}"
        monitor.hook.monitor_backend_spawned(model=model, pid=int(pid), address=address)
    print(monitor.url, flush=True)
    sys.stdin.read()
"""


class Watched(NamedTuple):
    """A monitor's process, a client of it, and the file of its log."""

    process: subprocess.Popen[str]
    client: Client
    log_path: Path

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    def breakdown(self, model: str = "m") -> dict[str, int]:
        """Return the memory breakdown of a model in `/backend/monitor`."""
        answer = self.client.monitor(model)
        assert answer.status == 200, answer
        found: dict[str, int] = answer.json["memory"]["breakdown"]
        return found

    def close(self) -> None:
        """Close the monitor's standard input, and wait for its regular end."""
        assert self.process.stdin
        self.process.stdin.close()
        assert self.process.wait(timeout=60) == 0, self.log


def copy_hooks(folder: Path, *stems: str) -> Path:
    """Copy shipped hooks into a new folder that no other user can write to; return the folder."""
    folder.mkdir(mode=0o755)
    for stem in stems:
        shutil.copyfile(SHELF / f"{stem}.py", folder / f"{stem}.py")
        (folder / f"{stem}.py").chmod(0o644)
    return folder


def watch(
    spawner: Spawner, tmp_path: Path, stem: str | None, pids: Mapping[str, int], **environment: str
) -> Watched:
    """Start a monitor, with one shipped hook or none, and register a process for each model."""
    folder = copy_hooks(tmp_path / "hooks", *([stem] if stem else []))
    log_path = tmp_path / "log"
    with log_path.open("w") as log:
        options: dict[str, Any] = {"stdin": subprocess.PIPE, "stderr": log, "cwd": ROOT}
        backends = [f"{model}:{pid}" for model, pid in pids.items()]
        process = spawner.python(
            *(MONITOR, str(folder), *backends), env={**os.environ, **environment}, **options
        )
    assert process.stdout
    url = process.stdout.readline().strip()
    assert url, log_path.read_text()
    return Watched(process, Client(url), log_path)


def spawn_tree(spawner: Spawner) -> tuple[int, int]:
    """Start a process with a child; return the PIDs of both."""
    process = spawner.process("sh", "-c", "sleep 1000 & echo $!; wait")
    assert process.stdout
    return process.pid, int(process.stdout.readline())
