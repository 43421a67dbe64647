"""Tests of the check whether a driver lists PIDs of the monitor's own PID namespace."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

import pytest

from monitor_plugin.gpu.pid_namespace import DriverPids

from ..http.test_visibility import AS_NOBODY
from ..support import Spawner, program
from .namespaces import in_namespace

# Prints what is objected to the PIDs of the arguments.
CHECK = """
import sys
from monitor_plugin.gpu.pid_namespace import DriverPids
print(DriverPids().objection(map(int, sys.argv[1:])))
"""


@pytest.mark.parametrize(
    ("status", "objects"),
    [
        ("Name:\tpython\nNSpid:\t4711\t12\nThreads:\t1\n", True),
        ("Name:\tpython\nNSpid:\t4711\nThreads:\t1\n", False),  # of Docker with --pid=host
        ("Name:\tpython\nThreads:\t1\n", False),  # of a kernel without PID namespaces
        (None, False),
    ],
)
def test_hidden_namespace_is_found_by_its_pids(
    status: str | None, objects: bool, tmp_path: Path
) -> None:
    """Where the inode of the namespace cannot be read, and procfs is that of an outer namespace."""
    if status:
        (tmp_path / "self").mkdir()
        (tmp_path / "self" / "status").write_text(status)
    objection = DriverPids(str(tmp_path)).objection([os.getpid()])
    assert ("--pid=host" in (objection or "")) == objects


def test_thread_is_no_process() -> None:
    """A container's thread has the number of another process of the machine."""
    ended = threading.Event()
    thread = threading.Thread(target=ended.wait)
    thread.start()
    try:
        objection = DriverPids().objection([os.getpid(), thread.native_id or 0])
    finally:
        ended.set()
        thread.join()
    assert f"lists PID {thread.native_id}, which no process here has" in (objection or "")


@pytest.mark.parametrize("pid", [0, 2**22 + 1, 2**32 - 1])
def test_number_that_is_no_pid_is_no_process(pid: int) -> None:
    """Drivers list 0 for a process that the caller may not see; Linux's largest PID is 2**22."""
    assert f"lists PID {pid}, which no process here has" in (DriverPids().objection([pid]) or "")


@pytest.mark.skipif(os.geteuid() != 0, reason="takes another user's identity")
def test_hidden_process_of_another_user_exists(spawner: Spawner) -> None:
    """A monitor under systemd's ProtectProc can therefore charge its own models."""
    program("setpriv")
    hidden, ended = spawner.sleeper(), spawner.sleeper()
    ended.kill()
    ended.wait()
    command = [*in_namespace("--mount"), "sh", "-c", AS_NOBODY, "hidepid=2"]
    command += [sys.executable, "-c", CHECK]
    for pids, expected in ([hidden.pid], "None"), ([ended.pid], "The driver lists PID"):
        process = spawner.process(*command, *map(str, pids))
        assert process.communicate(timeout=60)[0].startswith(expected)
