"""How a process ended: the record of it, and the words for people."""

from __future__ import annotations

import signal
from typing import Any

from .models import BackendExit

# Those that `BackendExit` has.
CAUSES = ("shutdown", "exited", "killed", "oom", "unknown")


def make_exit(
    exit_code: int | None, stopped: bool, oom_kill_seen: bool, ended_at: float
) -> BackendExit:
    """Make the record of an end.

    Args:
        exit_code: as `subprocess` gives it, a negative one being a signal; None: not known.
        stopped: whether a shutdown was ending it.
        oom_kill_seen: whether the kernel killed a process there for want of memory just before.
        ended_at: seconds since the epoch.
    """
    killed_by = -exit_code if exit_code is not None and exit_code < 0 else None
    code = exit_code if killed_by is None else None
    oom: bool | None = None
    if stopped:
        cause = "shutdown"
    elif killed_by == signal.SIGKILL and oom_kill_seen:
        cause, oom = "oom", True
    elif killed_by is not None:
        cause = "killed"
    elif code is not None:
        cause, oom = "exited", False
    else:
        cause = "unknown"
    return BackendExit(cause, code, killed_by, oom, ended_at)


def describe_end(exit: BackendExit) -> str:
    """Say for people how a process ended: `was killed by SIGKILL`."""
    if exit.cause == "shutdown":
        return "was stopped by a shutdown"
    if exit.oom:
        return "was killed by the kernel for want of memory"
    if exit.signal is not None:
        return f"was killed by {signal_name(exit.signal)}"
    if exit.exit_code is not None:
        return f"exited with code {exit.exit_code}"
    return "ended"


def describe_exit(exit: BackendExit, now: float) -> str:
    """Say how a process ended, and how long ago: `was killed by SIGKILL 4 s ago`."""
    return f"{describe_end(exit)} {max(0.0, now - exit.ended_at):.0f} s ago"


def signal_name(number: int) -> str:
    """Name a signal."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def exit_facts(exit: BackendExit) -> dict[str, Any]:
    """List what is known of an exit, as lists and events have it."""
    return {
        "cause": exit.cause,
        "exit_code": exit.exit_code,
        "signal": exit.signal,
        "signal_name": None if exit.signal is None else signal_name(exit.signal),
        "oom": exit.oom,
        "description": describe_end(exit),
    }
