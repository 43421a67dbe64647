"""Finds out whether a driver lists the PIDs of the monitor's PID namespace."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

import psutil

from ..processes.process_table import read_row

# The inode of the machine's own PID namespace: PROC_PID_INIT_INO of the kernel's proc_ns.h.
_INITIAL_NAMESPACE = 0xEFFFFFFC
_HIDDEN = -1.0  # stands for the unknown start of a process that exists, but that /proc hides

_ADVICE = "In a container, start the monitor with the machine's PIDs (--pid=host)."
_OTHER_NAMESPACE = (
    "The monitor runs in another PID namespace than the driver, which lists the machine's PIDs: "
    f"no process is known to use GPU memory. {_ADVICE}"
)
_UNKNOWN_PID = (
    "The driver lists PID {pid}, which no process here has, so it may list the PIDs of another PID "
    "namespace: while it lists this PID, no process is known to use GPU memory. "
    f"{_ADVICE}"
)
_LATER_PROCESS = (
    "The driver listed PID {pid} before the process with this PID started here, so it may list the "
    "PIDs of another PID namespace: while it lists this PID, no process is known to use GPU "
    f"memory. {_ADVICE}"
)


class DriverPids:
    """Checks the PIDs that a driver lists. Not thread-safe.

    NVIDIA's driver lists the PIDs of the machine. In a container such a PID belongs to another
    process, or to none. Some newer drivers list the container's own PIDs, but report 0 bytes for
    each (pull request 614 of NVIDIA/open-gpu-kernel-modules), so the figures are not known either.

    A driver may list a process for some seconds after its end. Such a PID is no reason for an
    objection if an earlier check has seen the process run.

    Args:
        proc: the path at which procfs is mounted.
    """

    def __init__(self, proc: str = "/proc") -> None:
        self._is_in_other_namespace = _is_in_other_namespace(Path(proc))
        # The start of the process that had a PID when the driver was first seen to list the PID;
        # None if no process had it.
        self._starts: dict[int, float | None] = {}

    def objection(self, listed: Iterable[int]) -> str | None:
        """Explain why the listed PIDs must not be taken for processes that the monitor sees.

        Args:
            listed: all PIDs that the driver lists now, on all devices.

        Returns:
            Sentences that say why, and what to do; None if no PID is suspicious.

        Raises:
            OSError: no file descriptor is free.
        """
        if self._is_in_other_namespace:
            return _OTHER_NAMESPACE
        objection = None
        starts: dict[int, float | None] = {}
        for pid in listed:
            if pid in self._starts:
                starts[pid] = self._starts[pid]
                row = read_row(pid)
                if row and starts[pid] not in (None, _HIDDEN, row.started):
                    objection = _LATER_PROCESS.format(pid=pid)
            else:
                starts[pid] = _start(pid)
            if starts[pid] is None:
                objection = _UNKNOWN_PID.format(pid=pid)
        self._starts = starts
        return objection


def _is_in_other_namespace(proc: Path) -> bool:
    with contextlib.suppress(OSError):  # the kernel has no namespaces, or hides this one
        if os.stat(proc / "self/ns/pid").st_ino != _INITIAL_NAMESPACE:
            return True
    with contextlib.suppress(OSError):
        for line in (proc / "self/status").read_text(errors="replace").splitlines():
            if line.startswith("NSpid:"):  # the PIDs in the namespace of `proc` and all below it
                return len(line.split()) > 2
    return False


def _start(pid: int) -> float | None:
    """Return when a process started, in clock ticks since boot; None if there is no such process.

    `/proc/ID` also exists for the ID of a thread, which is not a process.
    """
    if row := read_row(pid):
        return row.started if psutil.pid_exists(pid) else None
    return _HIDDEN if _is_hidden(pid) else None


def _is_hidden(pid: int) -> bool:
    """Whether a process exists that /proc hides, as it is another user's (mount option hidepid)."""
    try:
        os.kill(pid, 0)  # sends nothing
    except PermissionError:
        return True
    except (ProcessLookupError, OverflowError):
        pass
    return False
