"""Recognises resource trackers, which remove what the other members of a backend leave behind."""

from __future__ import annotations

import re
from collections.abc import Sequence

import psutil

from .process import Process

# `multiprocessing.resource_tracker` of Python, the trackers of loky, joblib and billiard, and
# `multiprocessing.semaphore_tracker` up to Python 3.7 are all started as
# `python -c 'from MODULE import main; main(...)'`.
_PYTHON_TRACKER = re.compile(r"from [\w.]+\.(resource|semaphore)_tracker import main\b")
_PYTHON_TRACKER_SECONDS = 1.0

# The manager of torch's shared memory waits 2 s for new clients (SHUTDOWN_TIMEOUT in
# torch/lib/libshm/manager.cpp), and only then removes the segments.
_TORCH_MANAGER = "torch_shm_manager"
_TORCH_MANAGER_SECONDS = 3.0


def tracker_grace_seconds(process: Process) -> float | None:
    """Return how long a resource tracker may run on after the processes that it serves have ended.

    A tracker removes shared memory and semaphores from /dev/shm once these processes have ended. So
    nothing is left there if the tracker is the last process that is killed. Python's trackers
    ignore SIGTERM; torch's ends immediately, and then removes nothing.

    Returns:
        None if the process is no resource tracker, or if its command line cannot be read.
    """
    try:
        return command_grace_seconds(process.psutil_process.cmdline())
    except (psutil.Error, OSError):
        return None


def command_grace_seconds(arguments: Sequence[str]) -> float | None:
    """Return the time that `tracker_grace_seconds` gives to a process with this command line."""
    # The second argument is the script, if the first is an interpreter.
    if any(each.rpartition("/")[2] == _TORCH_MANAGER for each in arguments[:2]):
        return _TORCH_MANAGER_SECONDS
    if any(map(_PYTHON_TRACKER.match, arguments)):
        return _PYTHON_TRACKER_SECONDS
    return None
