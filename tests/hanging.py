"""A pytest plugin that ends tests which pytest-timeout cannot end.

pytest-timeout raises an exception in the main thread of the test. It has no effect on a test whose
process is stopped or waits in C code, or that catches the exception and tries again. So, when a
test takes twice the `timeout`, faulthandler prints the stacks of all threads and ends the process;
pytest-xdist then names the test. If that fails too, the process that waits for the
workers names their tests, and ends after three times the `timeout`. Processes that such a test has
started are left behind.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import threading
from collections.abc import Iterator

import psutil
import pytest


def pytest_configure(config: pytest.Config) -> None:
    seconds = float(config.getoption("timeout") or config.getini("timeout") or 0)
    if seconds <= 0:  # no limit, as for pytest-timeout
        return
    if config.getoption("numprocesses", None):
        config.pluginmanager.register(_Controller(3 * seconds))
    else:
        config.pluginmanager.register(_Worker(2 * seconds))


class _Worker:
    """Runs in each process that runs tests."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._stderr = os.dup(2)  # a copy, as pytest captures the original while a test runs

    @pytest.hookimpl(hookwrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self) -> Iterator[None]:
        faulthandler.dump_traceback_later(self._seconds, exit=True, file=self._stderr)
        yield
        faulthandler.cancel_dump_traceback_later()

    def pytest_unconfigure(self) -> None:
        os.close(self._stderr)


class _Controller:
    """Runs in the process that waits for the workers, and ends it if they are silent."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._running: set[str] = set()
        self._timer: threading.Timer | None = None

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._running.add(nodeid)
        self._restart_timer()

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        self._running.discard(nodeid)
        self._restart_timer()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when not in ("setup", "call", "teardown"):  # its worker has crashed
            self.pytest_runtest_logfinish(report.nodeid)

    def pytest_sessionfinish(self) -> None:
        if self._timer:
            self._timer.cancel()

    def _restart_timer(self) -> None:
        self.pytest_sessionfinish()
        self._timer = threading.Timer(self._seconds, self._end)
        self._timer.daemon = True
        self._timer.start()

    def _end(self) -> None:
        tests = "\n".join(sorted(self._running)) or "a process that is to end"
        os.write(2, f"\nfor {self._seconds:g} s no worker has reported on\n{tests}\n".encode())
        for child in psutil.Process().children(
            recursive=True
        ):  # a stopped one would stay otherwise
            with contextlib.suppress(psutil.Error):
                os.write(2, f"{child.status()}: {child.cmdline()}\n".encode())
                child.kill()
        os._exit(1)
