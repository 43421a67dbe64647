"""A pytest plugin: a test that no timeout reaches is ended, and named.

pytest-timeout raises in the test's main thread. It does not reach a test whose process is stopped,
or waits in C, nor one that catches what is raised and tries again. So each process that runs tests
is ended by a thread of C's, with the stacks of all its threads, once a test takes twice the
`timeout`; pytest-xdist then says which it was, and goes on. Where even that does not happen, the
process that waits for the others says for which tests it does, and ends. What a test that is ended
so had started is left behind.
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
    if seconds <= 0:  # as pytest-timeout takes it: no limit
        return
    if config.getoption("numprocesses", None):
        config.pluginmanager.register(_Waiting(3 * seconds))
    else:
        config.pluginmanager.register(_Running(2 * seconds))


class _Running:
    """In a process that runs tests."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._stderr = os.dup(2)  # which is taken by pytest while a test runs

    @pytest.hookimpl(hookwrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self) -> Iterator[None]:
        faulthandler.dump_traceback_later(self._seconds, exit=True, file=self._stderr)
        yield
        faulthandler.cancel_dump_traceback_later()

    def pytest_unconfigure(self) -> None:
        os.close(self._stderr)


class _Waiting:
    """In the process that waits for those of pytest-xdist: ends it once it hears of no test."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._running: set[str] = set()
        self._timer: threading.Timer | None = None

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._running.add(nodeid)
        self._again()

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        self._running.discard(nodeid)
        self._again()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when not in ("setup", "call", "teardown"):  # its process has crashed
            self.pytest_runtest_logfinish(report.nodeid)

    def pytest_sessionfinish(self) -> None:
        if self._timer:
            self._timer.cancel()

    def _again(self) -> None:
        self.pytest_sessionfinish()
        self._timer = threading.Timer(self._seconds, self._end)
        self._timer.daemon = True
        self._timer.start()

    def _end(self) -> None:
        tests = "\n".join(sorted(self._running)) or "a process that is to end"
        os.write(2, f"\nfor {self._seconds:g} s nothing was heard of\n{tests}\n".encode())
        for child in psutil.Process().children(recursive=True):  # one that is stopped stays else
            with contextlib.suppress(psutil.Error):
                os.write(2, f"{child.status()}: {child.cmdline()}\n".encode())
                child.kill()
        os._exit(1)
