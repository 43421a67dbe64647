"""The record of how a process exited, and its description for people."""

from __future__ import annotations

import signal
from typing import Any

from .models import BackendExit, MemberEnd

# The values of `BackendExit.cause`.
CAUSES = ("shutdown", "exited", "killed", "oom", "unknown")


def make_exit(
    exit_code: int | None,
    stopped: bool,
    oom_certain: bool | None,
    ended_at: float,
    peak_rss: int | None = None,
) -> BackendExit:
    """Make the record of an exit.

    Args:
        exit_code: as in `subprocess`, where -N means signal N; None if it is not known.
        stopped: whether a shutdown was stopping the process.
        oom_certain: None unless the kernel has just killed a process of the same control group
            because memory ran out. True if all processes of that group belong to the backend.
        ended_at: seconds since the epoch.
        peak_rss: the most memory of its process tree, in bytes; None if it was never read.
    """
    code, killed_by = _code_and_signal(exit_code)
    oom: bool | None = None
    if stopped:
        cause = "shutdown"
    elif killed_by == signal.SIGKILL and oom_certain is not None:
        cause, oom = "oom", True
    elif killed_by is not None:
        cause = "killed"
    elif code is not None:
        cause, oom = "exited", False
    else:
        cause = "unknown"
    certain = oom_certain if cause == "oom" else None
    return BackendExit(cause, code, killed_by, oom, ended_at, certain, peak_rss)


def describe_exit(exit: BackendExit) -> str:
    """Describe how a process ended: `was killed by SIGKILL`."""
    if exit.cause == "shutdown":
        return "was stopped by a shutdown"
    if exit.oom and exit.oom_certain is False:
        return "was killed by SIGKILL, probably by the kernel for want of memory"
    if exit.oom:
        return "was killed by the kernel for want of memory"
    return _describe_end(exit.exit_code, exit.signal)


def describe_exit_and_age(exit: BackendExit, now: float) -> str:
    """Describe how a process ended, and how long ago: `was killed by SIGKILL 4 s ago`."""
    return f"{describe_exit(exit)} {max(0.0, now - exit.ended_at):.0f} s ago"


def signal_name(number: int) -> str:
    """Return a signal's name, or `signal N` if it has none."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def exit_to_dict(exit: BackendExit) -> dict[str, Any]:
    """Return the fields by which lists and events describe an exit."""
    return {
        "cause": exit.cause,
        **_code_and_signal_fields(exit.exit_code, exit.signal),
        "oom": exit.oom,
        "oom_certain": exit.oom_certain,
        "peak_rss": exit.peak_rss,
        "description": describe_exit(exit),
    }


def make_member_end(pid: int, name: str, exit_code: int | None, *, is_zombie: bool) -> MemberEnd:
    """Make the record of a member's end; -N as the exit code means signal N, None unknown."""
    return MemberEnd(pid, name, *_code_and_signal(exit_code), is_zombie)


def describe_member_end(end: MemberEnd) -> str:
    """Describe how a member ended: `exited with code 1, and its parent has not waited for it`."""
    text = _describe_end(end.exit_code, end.signal)
    if end.is_zombie:
        text += ", and its parent has not waited for it"
    if end.pauses:
        text += "; further such ends are not reported until there was none for ten minutes"
    return text


def member_end_to_dict(end: MemberEnd) -> dict[str, Any]:
    """Return the fields by which events describe the end of a member."""
    return {
        "member": {"pid": end.pid, "name": end.name},
        **_code_and_signal_fields(end.exit_code, end.signal),
        "is_zombie": end.is_zombie,
        "description": describe_member_end(end),
    }


def _code_and_signal(exit_code: int | None) -> tuple[int | None, int | None]:
    """Split an exit code as in `subprocess`: the code of an exit, or the number of a signal."""
    if exit_code is not None and exit_code < 0:
        return None, -exit_code
    return exit_code, None


def _describe_end(exit_code: int | None, killed_by: int | None) -> str:
    if killed_by is not None:
        return f"was killed by {signal_name(killed_by)}"
    return "ended" if exit_code is None else f"exited with code {exit_code}"


def _code_and_signal_fields(exit_code: int | None, killed_by: int | None) -> dict[str, Any]:
    name = None if killed_by is None else signal_name(killed_by)
    return {"exit_code": exit_code, "signal": killed_by, "signal_name": name}
