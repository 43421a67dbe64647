"""A host in the tests' process that lists, starts and stops the backends of its models."""

from __future__ import annotations

import contextlib
import subprocess
import threading
from collections.abc import Mapping, Sequence

from monitor_plugin import Backend, KnownModel, Monitor, hookimpl

from .support import Spawner


class EmbeddedHost:
    """A plugin that runs one backend per model.

    Args:
        spawner: starts the processes.
        programs: the switches of the demo backend of each model, which is a light one without
            switches; None: its program exits at once.

    Attributes:
        programs: the same, which a test may change before a start.
        started: the models, in the order of their starts.
        can_start: whether the host lists its models as ones that it can start.
        lists: the models that it lists; by default all.
    """

    def __init__(self, spawner: Spawner, programs: Mapping[str, Sequence[str] | None]) -> None:
        self.programs = dict(programs)
        self.started: list[str] = []
        self.can_start = True
        self.lists = list(programs)
        self._spawner = spawner
        self._processes: dict[str, subprocess.Popen[str]] = {}
        self._monitor: Monitor | None = None

    @hookimpl
    def monitor_started(self, monitor: Monitor) -> None:
        """Start all models."""
        self._monitor = monitor
        for model in self.programs:
            self.monitor_start_model(model)
        self.started.clear()

    @hookimpl
    def monitor_list_models(self) -> list[KnownModel]:
        """List the models."""
        return [
            KnownModel(
                each,
                "running" if self._processes[each].poll() is None else "exited",
                can_start=self.can_start,
            )
            for each in self.lists
        ]

    @hookimpl
    def monitor_start_model(self, model: str) -> bool:
        """Start a process, register its backend, and reap it when it has ended."""
        self.started.append(model)
        switches = self.programs[model]
        if switches is None:
            process = self._spawner.process("false")
        else:
            start = self._spawner.backend if switches else self._spawner.light_backend
            backend = start(*switches)
            process = backend.process
            assert self._monitor
            backend.register(self._monitor, model)
        self._processes[model] = process
        threading.Thread(target=self._wait, args=(model, process), daemon=True).start()
        return True

    @hookimpl
    def monitor_stop_backend(self, backend: Backend, timeout_seconds: float) -> bool | None:
        """Kill a process of this host."""
        process = self._processes.get(backend.model)
        if process is None or process.pid != backend.pid:
            return None
        process.kill()
        process.wait(timeout_seconds)
        return True

    def _wait(self, model: str, process: subprocess.Popen[str]) -> None:
        code = process.wait()
        assert self._monitor
        with contextlib.suppress(Exception):  # the monitor has closed
            self._monitor.hook.monitor_backend_exited(model=model, pid=process.pid, exit_code=code)
