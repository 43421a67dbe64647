"""A pytest plugin for tests of hooks: monitors, real backends with faults, and waiting.

For example::

    pytest_plugins = ["monitor_plugin.testing"]  # in a test module, or in conftest.py

    def test_mine(make_monitor, backend):
        monitor = make_monitor([my_plugin])
        backend(no_status=True).register(monitor, "m")
        assert monitor.read("m").source == "psutil"

The plugin is not an entry point of pytest, so the tests of other projects do not load it. Failures
are plain AssertionErrors; PYTEST_DONT_REWRITE.
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
    """Call a condition until it returns a true value, and return that value.

    Args:
        condition: called about every 10 ms.
        seconds: the maximum time; the default allows for a busy machine.

    Raises:
        AssertionError: the condition did not return a true value in time.
    """
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"the condition was not true within {seconds} s")
        time.sleep(0.01)
    return value


def end_group(process: subprocess.Popen[str]) -> None:
    """Kill the process group that a process leads, also if the process itself has ended.

    While members of the group run, the kernel does not reuse the PID of their leader. So if the
    leader was waited for and a process has its PID, the group no longer exists.
    """
    if process.poll() is None or not os.path.exists(f"/proc/{process.pid}"):  # noqa: PTH110
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


class RunningBackend:
    """A running process that serves LocalAI's protocol.

    Attributes:
        process: the process; its standard output is a pipe.
        pid: the PID of the process, which leads its own session.
        address: the address at which it serves gRPC.
    """

    def __init__(self, process: subprocess.Popen[str]) -> None:
        if process.stdout is None:
            raise ValueError("stdout of the process must be a pipe: the address is read from it")
        self._output = process.stdout
        line = self._output.readline()
        if not line.startswith("serving on "):
            raise AssertionError(f"the backend ended before it served, or printed {line!r}")
        self.process = process
        self.pid = process.pid
        self.address = line.removeprefix("serving on ").strip()

    def register(self, monitor: Monitor, model: str) -> None:
        """Register the backend with a monitor, as a host does."""
        monitor.hook.monitor_backend_spawned(model=model, pid=self.pid, address=self.address)

    def end(self) -> None:
        """Kill the process and its children if they still run, and wait. May be called again."""
        end_group(self.process)
        self.process.wait()
        self._output.close()


def backend_command(**switches: bool | int | float | str) -> list[str]:
    """Return the command line of a backend; see `BackendFactory`."""
    command = [sys.executable, "-m", "monitor_plugin.demo.backend"]
    for name, value in {**_SMALL, **switches}.items():
        flag = "--" + name.replace("_", "-")
        if value is not False:
            command += [flag] if value is True else [flag, str(value)]
    return command


class BackendFactory:
    """Starts backends, waits until each serves, and ends them after the test.

    The switches are those of `python -m monitor_plugin.demo.backend --help`: `addr="unix:/PATH"`,
    `state=1`, `weights_mib=64`, `kv_cache_mib=32`, and for faults `no_status=True`,
    `no_memory=True`, `hang_status=True`, `status_seconds=5`, `busy_seconds=3`, `token="s3cret"`,
    `ignore_sigterm=True`, `fork_workers=2`, `crash_after=0.5`.
    """

    def __init__(self) -> None:
        self._backends: list[RunningBackend] = []

    def __call__(self, **switches: bool | int | float | str) -> RunningBackend:
        """Start a backend, with 3 MiB of memory unless the switches say otherwise."""
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
        """End all backends."""
        for backend in self._backends:
            backend.end()


class MonitorFactory:
    """Starts monitors on free ports, and closes them after the test.

    By default, waits are short, every request is a new reading, and there are no background sweeps;
    a test that needs sweeps passes `sweep_interval_seconds=0.1`.
    """

    def __init__(self) -> None:
        self._monitors: list[Monitor] = []

    def __call__(self, plugins: Iterable[object] = (), **settings: Any) -> Monitor:
        """Start a monitor with plugins and with fields of `monitor_plugin.Settings`."""
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
        """Close all monitors."""
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
