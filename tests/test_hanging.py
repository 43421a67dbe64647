"""A run of pytest ends, and names the test, where one hangs that no timeout reaches."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from .support import Spawner

# It is the tests' own, and the same with all Pythons.
pytestmark = [pytest.mark.slow, pytest.mark.once]

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
        (tmp_path / "test_it.py").write_text(tests + "\ndef test_is_well():\n    pass\n")
        process = spawner.process(
            *(sys.executable, "-m", "pytest", "-c", "/dev/null", f"--rootdir={tmp_path}"),
            *("-p", "tests.hanging", "-o", "timeout=1", *flags, str(tmp_path)),
            stderr=subprocess.STDOUT,
            cwd=Path(__file__).parents[1],
        )
        said, _ = process.communicate(timeout=100)
        assert process.returncode == 1, said
        return str(said)

    return run


@pytest.mark.parametrize("tests", [BLOCKED, CATCHES], ids=["blocked", "catches"])
def test_a_test_that_hangs_is_named_and_the_others_run(run: Callable[..., str], tests: str) -> None:
    """With pytest-xdist and without, the stacks show where it was."""
    said = run(tests, "-n", "1")
    assert "in test_hangs" in said
    assert "crashed while running 'test_it.py::test_hangs'" in said
    assert "1 failed, 1 passed" in said
    assert "in test_hangs" in run(tests)


def test_a_process_that_is_stopped_is_not_waited_for(run: Callable[..., str]) -> None:
    """Nor is it left behind, with all that it holds open."""
    said = run(STOPPED, "-n", "1")
    assert "nothing was heard of\ntest_it.py::test_hangs\n" in said
    assert "stopped: [" in said
