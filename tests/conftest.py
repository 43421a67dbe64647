from __future__ import annotations

import contextlib
import functools
import logging
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from monitor_plugin import Monitor
from monitor_plugin.rpc.channels import open_unused_channel

from .gpu.nvml import Driver, MakeDriver
from .support import Client, Spawner, own_ports
from .systemd_machine import SystemdMachine

pytest_plugins = ["monitor_plugin.testing", "tests.hanging"]  # with `make_monitor` and `backend`


def pytest_configure() -> None:
    """Reserves ports, replaces an ignored SIGINT, and disables Hypothesis' checks of slow examples.

    These checks fail on a busy machine. The ports are reserved before the first test, as the test
    would otherwise seem to leave a descriptor open.
    """
    own_ports()
    # A shell script starts background commands with SIGINT ignored, which the processes of the
    # tests would inherit. They do not inherit a handler.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, lambda number, frame: None)
    with contextlib.suppress(
        ModuleNotFoundError
    ):  # the environments of some Pythons do not have it
        from hypothesis import HealthCheck, settings

        settings.register_profile(
            "patient", deadline=None, suppress_health_check=[HealthCheck.too_slow]
        )
        settings.load_profile("patient")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Starts files with slow tests first, so that none runs alone at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session", autouse=True)
def initialized_grpc() -> Iterator[None]:
    """Keeps gRPC 1.49 initialized until the last test has ended.

    Otherwise gRPC shuts down whenever the last channel of a test is closed. A test that opens one
    at that moment then hangs at times: gRPC spins with the interpreter's lock, for ever.
    """
    if not grpc.__version__.startswith("1.49."):
        yield
        return
    channel = open_unused_channel()
    yield
    channel.close()


@pytest.fixture(scope="session", autouse=True)
def temporary_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Gives tests and their processes a folder for temporary files, which they must leave empty."""
    tmp_path_factory.getbasetemp()  # pytest's own folder stays where it is
    usual = tempfile.gettempdir()
    folder = tempfile.mkdtemp(prefix="tests-")  # a short path, as sockets are in it
    Path(folder).chmod(0o755)  # tests run processes of other users
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", folder)
        patch.setenv("PYTEST_DEBUG_TEMPROOT", usual)  # for each pytest that a test runs
        patch.setattr(tempfile, "tempdir", folder)
        yield
    left = os.listdir(folder)
    shutil.rmtree(folder)
    assert not left, "the tests have left these files behind"


@pytest.fixture(autouse=True)
def log_levels() -> Iterator[None]:
    """Resets the levels that a command in the process of the tests sets on loggers."""
    yield
    for name in ("monitor_plugin.audit", "monitor_plugin.logs"):
        logging.getLogger(name).setLevel(logging.NOTSET)


@pytest.fixture
def spawner() -> Iterator[Spawner]:
    """Starts processes, and kills them after the test."""
    spawner = Spawner()
    yield spawner
    spawner.close()


@pytest.fixture(scope="module")
def systemd_machine() -> Iterator[SystemdMachine]:
    """A systemd that has booted, for the tests of a module."""
    machine = SystemdMachine()
    try:
        yield machine.start()
    finally:
        machine.close()


@pytest.fixture
def make_driver(tmp_path: Path) -> MakeDriver:
    """Makes a stand-in for NVIDIA's driver; the arguments are those of `Driver`."""
    return functools.partial(Driver, tmp_path / "driver")


@pytest.fixture
def make_monitor(make_monitor: Callable[..., Monitor]) -> Callable[..., Monitor]:
    """Starts monitors with long timeouts, for busy machines.

    Tests with backends or hooks that never return set shorter ones.
    """
    return functools.partial(make_monitor, status_timeout_seconds=30.0, hook_timeout_seconds=30.0)


@pytest.fixture
def monitor(make_monitor: Callable[..., Monitor]) -> Monitor:
    """A started monitor on a free port."""
    return make_monitor()


@pytest.fixture
def client(monitor: Monitor) -> Client:
    """An HTTP client of `monitor`."""
    return Client(monitor.url)
