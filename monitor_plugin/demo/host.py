"""A small host that starts three real backends, and registers them with a monitor."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from ..config.settings import Settings
from ..domain.errors import MonitorError
from ..domain.known_models import KnownModel
from ..hookspecs import hookimpl
from ..monitor import Monitor

# The arguments of each model's backend. `my-model` is the name in LocalAI's documentation.
MODELS: dict[str, Sequence[str]] = {
    "my-model": ("--weights-mib", "64", "--kv-cache-mib", "32"),
    "org/busy model": ("--weights-mib", "32", "--kv-cache-mib", "16", "--state", "1"),
    "no-status": ("--weights-mib", "16", "--kv-cache-mib", "0", "--no-status"),
}


# States of `KnownModel` by the exit code of the process; None: it runs.
_STATES = {None: "running", 0: "stopped", -signal.SIGTERM: "stopped"}


class DemoHost:
    """Owns one process per model, and reports to the monitor when one has started or exited.

    It is a plugin of the monitor, which lists its models, and can start them again.
    """

    def __init__(self, monitor: Monitor) -> None:
        self._monitor = monitor
        self._arguments: dict[str, Sequence[str]] = {}
        self._newest: dict[str, subprocess.Popen[str]] = {}
        monitor.plugin_manager.register(self, "demo host")
        self._processes: list[subprocess.Popen[str]] = []
        self._waiters: list[threading.Thread] = []

    def spawn(self, model: str, arguments: Sequence[str]) -> None:
        """Start a backend, and register it once it serves; raises `MonitorError` if it exits."""
        process = subprocess.Popen(
            [sys.executable, "-m", "monitor_plugin.demo.backend", "--end-with-parent", *arguments],
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
            # Without the monitor's token, with which a backend could stop other backends.
            env={name: value for name, value in os.environ.items() if name != "MONITOR_TOKEN"},
        )
        self._arguments[model], self._newest[model] = arguments, process
        self._processes.append(process)
        assert process.stdout is not None
        address = process.stdout.readline().removeprefix("serving on ").strip()
        if not address:
            raise MonitorError(f"the backend of {model!r} ended before it served")
        self._monitor.hook.monitor_backend_spawned(model=model, pid=process.pid, address=address)
        waiter = threading.Thread(target=self._wait, args=(model, process), daemon=True)
        self._waiters.append(waiter)
        waiter.start()

    @hookimpl
    def monitor_list_models(self) -> Sequence[KnownModel]:
        """List all models, also those whose process has ended."""
        return [
            KnownModel(model, _STATES.get(process.poll(), "exited"), can_start=True)
            for model, process in list(self._newest.items())
        ]

    @hookimpl
    def monitor_start_model(self, model: str) -> bool | None:
        """Start a model whose process has ended."""
        if model not in self._newest:
            return None
        if self._newest[model].poll() is not None:
            self.spawn(model, self._arguments[model])
        return True

    def _wait(self, model: str, process: subprocess.Popen[str]) -> None:
        exit_code = process.wait()
        self._monitor.hook.monitor_backend_exited(model=model, pid=process.pid, exit_code=exit_code)

    def stop(self) -> None:
        """Stop all backends, and wait until the monitor knows that they have exited."""
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if process.stdout:
                process.stdout.close()
        for waiter in self._waiters:
            waiter.join()


@contextmanager
def demo(settings: Settings) -> Iterator[Monitor]:
    """Run a monitor and a host with three backends; the end stops all of them."""
    with Monitor(settings) as monitor:
        host = DemoHost(monitor)
        try:
            for model, arguments in MODELS.items():
                host.spawn(model, arguments)
            yield monitor
        finally:
            host.stop()
