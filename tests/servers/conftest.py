"""Runs the real servers, and a monitor that reads them."""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import monitor_plugin
from monitor_plugin import Backend, BackendExit, Monitor, Reading, State

from ..support import Spawner, eventually, register
from .servers import Server


class Watched:
    """A real server whose process is registered with a monitor.

    Attributes:
        server: the server.
        monitor: the monitor.
        seen: the names of the states that `read` has seen, each once, in the order of the first
            time; `none` for a reading without a status.
        exits: how the process ended, once the monitor has noticed that.
    """

    MODEL = "tiny"

    def __init__(self, server: Server, make_monitor: Callable[..., Monitor]) -> None:
        self.server = server
        self.exits: list[BackendExit] = []
        self.seen: list[str] = []
        self._make_monitor = make_monitor
        self.monitor: Monitor

    def start(self, spawner: Spawner, **settings: Any) -> Watched:
        """Start the server and the monitor, and register the process, without a wait."""
        self.monitor = self._make_monitor([self], **settings)
        self.register(spawner)
        return self

    def register(self, spawner: Spawner) -> None:
        """Start the server, and register its process."""
        self.server.start(spawner)
        threading.Thread(target=self.server.process.wait, daemon=True).start()  # as a host does
        register(self.monitor, self.server.process.pid, self.MODEL, self.server.address)

    @monitor_plugin.hookimpl
    def monitor_backend_gone(self, backend: Backend, exit: BackendExit) -> None:
        self.exits.append(exit)

    def read(self) -> Reading:
        """Read the model."""
        reading = self.monitor.read(self.MODEL)
        name = State(reading.status.state).name if reading.status else "none"
        if name not in self.seen:
            self.seen.append(name)
        return reading

    def is_in(self, state: State) -> bool:
        """Whether the model is in this state now."""
        status = self.read().status
        return status is not None and status.state == state

    def await_state(self, state: State, seconds: float = 60) -> Reading:
        """Wait until the model is in this state, and return its reading.

        A server that ends before fails the test, with its log.
        """

        def found() -> Reading | None:
            assert self.server.process.poll() is None, self.server.log.read_text()[-4000:]
            reading = self.read()
            return reading if reading.status and reading.status.state == state else None

        reading = eventually(found, seconds)
        assert reading
        return reading


@pytest.fixture
def watch(
    make_monitor: Callable[..., Monitor], spawner: Spawner
) -> Iterator[Callable[..., Watched]]:
    """Starts a server and a monitor: `watch(LlamaCpp, slots=1, busy_when="full")`."""
    folders: list[Path] = []

    def watch(kind: Callable[..., Server], slots: int | None = None, **settings: Any) -> Watched:
        folder = Path(tempfile.mkdtemp())  # a short path: vLLM's sockets are in it
        folders.append(folder)
        server = kind(folder) if slots is None else kind(folder, slots)
        return Watched(server, make_monitor).start(spawner, **settings)

    yield watch
    spawner.close()
    for folder in folders:
        shutil.rmtree(folder)
