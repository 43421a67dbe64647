"""A pytest plugin for tests of hooks: monitors, real backends that may misbehave, and waiting.

    pytest_plugins = ["monitor_plugin.testing"]  # in a test module, or in conftest.py

    def test_mine(make_monitor, backend):
        monitor = make_monitor([my_plugin])
        backend(no_status=True).register(monitor, "m")
        assert monitor.read("m").source == "psutil"

It is no entry point of pytest's, so that it costs nobody else's tests anything. Failures are plain
AssertionErrors; PYTEST_DONT_REWRITE.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import pytest

from .config.settings import Settings
from .monitor import Monitor

T = TypeVar("T")

_SMALL = {"weights_mib": 2, "kv_cache_mib": 1}


def eventually(condition: Callable[[], T], seconds: float = 60) -> T:
    """Wait until a condition holds, and give its value.

    Args:
        condition: asked again and again, until what it gives counts as true.
        seconds: after which to fail; generous, as a machine may be busy.

    Raises:
        AssertionError: it did not hold in time.
    """
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s")
        time.sleep(0.01)
    return value


def end_group(process: subprocess.Popen[str]) -> None:
    """Kill a process that leads a group and all of that group, also where it has ended before.

    Nobody gets the PID of one that was waited for while some of its group live: where a process has
    it, that is another one, and is left alone.
    """
    if process.poll() is None or not os.path.exists(f"/proc/{process.pid}"):  # noqa: PTH110
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


class RunningBackend:
    """A real process that serves LocalAI's protocol, and what it has.

    Attributes:
        process: the process, with a pipe to what it writes to standard output.
        pid: its PID; it leads a session of its own.
        address: where it serves gRPC.
    """

    def __init__(self, process: subprocess.Popen[str]) -> None:
        if process.stdout is None:
            raise ValueError("its standard output must be a pipe: the address comes from there")
        self._output = process.stdout
        line = self._output.readline()
        if not line.startswith("serving on "):
            raise AssertionError(f"the backend ended before it served, or said {line!r}")
        self.process = process
        self.pid = process.pid
        self.address = line.removeprefix("serving on ").strip()

    def register(self, monitor: Monitor, model: str) -> None:
        """Tell a monitor of it, as a host does."""
        monitor.hook.monitor_backend_spawned(model=model, pid=self.pid, address=self.address)

    def end(self) -> None:
        """Kill it and its children, if they still run, and wait for it. May be called again."""
        end_group(self.process)
        self.process.wait()
        self._output.close()


def backend_command(**switches: bool | int | float | str) -> list[str]:
    """Write the command of a backend; see `BackendFactory`."""
    command = [sys.executable, "-m", "monitor_plugin.demo.backend"]
    for name, value in {**_SMALL, **switches}.items():
        flag = "--" + name.replace("_", "-")
        if value is not False:
            command += [flag] if value is True else [flag, str(value)]
    return command


class BackendFactory:
    """Starts backends, waits until each serves, and ends them after the test.

    Switches are those of `python -m monitor_plugin.demo.backend --help`: `addr="unix:/PATH"`,
    `state=1`, `weights_mib=64`, `kv_cache_mib=32`, and to misbehave `no_status=True`,
    `no_memory=True`, `hang_status=True`, `status_seconds=5`, `busy_seconds=3`, `token="s3cret"`,
    `ignore_sigterm=True`, `fork_workers=2`, `crash_after=0.5`.
    """

    def __init__(self) -> None:
        self._backends: list[RunningBackend] = []

    def __call__(self, **switches: bool | int | float | str) -> RunningBackend:
        """Start one, which holds 3 MiB unless told otherwise."""
        process = subprocess.Popen(
            backend_command(**switches), stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        try:
            backend = RunningBackend(process)
        except BaseException:
            process.kill()
            process.communicate()
            raise
        self._backends.append(backend)
        return backend

    def close(self) -> None:
        """End them."""
        for backend in self._backends:
            backend.end()


class MonitorFactory:
    """Starts monitors on free ports, and closes them after the test.

    Waits are short unless given, no reading is given twice, and there are no background sweeps:
    tests that want some say `sweep_interval_seconds=0.1`.
    """

    def __init__(self) -> None:
        self._monitors: list[Monitor] = []

    def __call__(self, plugins: Iterable[object] = (), **settings: Any) -> Monitor:
        """Start one with these plugins, and fields of `monitor_plugin.Settings`."""
        quick = {
            "listen": "127.0.0.1:0",
            "reading_max_age_seconds": 0.0,
            "respawn_watch_seconds": 0.1,
            "sweep_interval_seconds": 0.0,
        }
        monitor = Monitor(Settings(**{**quick, **settings}), plugins)
        self._monitors.append(monitor)
        monitor.start()
        return monitor

    def close(self) -> None:
        """Close them."""
        for monitor in self._monitors:
            monitor.close()


@pytest.fixture
def make_monitor() -> Iterator[MonitorFactory]:
    """Starts monitors: `make_monitor([plugin], hook_timeout_seconds=0.3)`."""
    monitors = MonitorFactory()
    yield monitors
    monitors.close()


@pytest.fixture
def backend() -> Iterator[BackendFactory]:
    """Starts backends: `backend(no_status=True)`."""
    backends = BackendFactory()
    yield backends
    backends.close()
