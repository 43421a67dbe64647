"""A run of pytest ends, and names the test, where one hangs that no timeout reaches."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from .support import Spawner

# It is the tests' own, and the same with all Pythons.
pytestmark = [pytest.mark.once, pytest.mark.slow]

BLOCKED = """
import signal
def test_hangs():
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
    signal.sigwait([signal.SIGUSR1])
"""
CATCHES = """
import time
def test_hangs():
    while True:
        try:
            time.sleep(1000)
        except BaseException:
            pass
"""
STOPPED = """
import os, signal
def test_hangs():
    os.kill(os.getpid(), signal.SIGSTOP)
"""


@pytest.fixture
def run(tmp_path: Path, spawner: Spawner) -> Callable[..., str]:
    """Runs tests with a timeout of a second, which must fail, and gives what was said."""

    def run(tests: str, *flags: str) -> str:
        (tmp_path / "test_it.py").write_text(tests)
        process = spawner.process(
            *(sys.executable, "-m", "pytest", "-c", "/dev/null", f"--rootdir={tmp_path}"),
            *("-p", "tests.hanging", "-p", "pytest_timeout", "-o", "timeout=1", *flags),
            str(tmp_path),
            env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},  # others take time to load
            stderr=subprocess.STDOUT,
            cwd=Path(__file__).parents[1],
        )
        said, _ = process.communicate(timeout=100)
        assert process.returncode == 1, said
        return str(said)

    return run


@pytest.mark.parametrize(
    "flags", [("-p", "xdist", "-n", "1", "-v"), ("-v",)], ids=["xdist", "alone"]
)
@pytest.mark.parametrize("tests", [BLOCKED, CATCHES], ids=["blocked", "catches"])
def test_hanging_test_is_ended_and_named(
    run: Callable[..., str], tests: str, flags: tuple[str, ...]
) -> None:
    """The stacks show where it hung."""
    said = run(tests, *flags)
    assert "test_it.py::test_hangs" in said
    assert "in test_hangs" in said


def test_suspended_worker_does_not_block_the_run(run: Callable[..., str]) -> None:
    """The worker is also killed, with all that it holds open."""
    said = run(STOPPED, "-p", "xdist", "-n", "1")
    assert "no worker has reported on\ntest_it.py::test_hangs\n" in said
    assert "stopped: [" in said
