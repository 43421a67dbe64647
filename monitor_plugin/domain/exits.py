"""The record of how a process exited, and its description for people."""

from __future__ import annotations

import signal
from typing import Any

import msgspec

from .models import BackendExit, MemberEnd
from .units import HostExit

# The values of `BackendExit.cause`.
CAUSES = ("shutdown", "exited", "killed", "oom", "unknown")
# The result of a `HostExit` which says that memory ran out; it is systemd's word.
_HOST_OOM = "oom-kill"


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


def complete_by_host(exit: BackendExit, host_exit: HostExit) -> BackendExit:
    """Complete the record of an exit by what the host says of the end.

    The exit code or signal is the host's if the monitor knows neither. A shutdown stays a shutdown.
    """
    code, killed_by = exit.exit_code, exit.signal
    if code is None and killed_by is None:
        killed_by = host_exit.signal or None
        code = host_exit.exit_code if killed_by is None else None
    cause, oom, certain = exit.cause, exit.oom, exit.oom_certain
    if host_exit.result == _HOST_OOM and cause in ("unknown", "killed", "oom"):
        # With another signal, the kernel killed another process, and the host the rest of the unit.
        cause, oom, certain = "oom", True, killed_by in (None, signal.SIGKILL)
    elif cause == "unknown" and killed_by is not None:
        cause = "killed"
    elif cause == "unknown" and code is not None:
        cause, oom = "exited", False
    return msgspec.structs.replace(
        exit, cause=cause, exit_code=code, signal=killed_by, oom=oom, oom_certain=certain
    )


def describe_exit(exit: BackendExit, host_exit: HostExit | None = None) -> str:
    """Describe how a process ended: `was killed by SIGKILL`.

    Args:
        exit: the record of its exit.
        host_exit: what its host says, to be added: `was killed by SIGKILL (systemd: signal)`.
    """
    text = _describe_end(exit.exit_code, exit.signal)
    if exit.cause == "shutdown":
        text = "was stopped by a shutdown"
    elif exit.oom and exit.signal in (None, signal.SIGKILL):
        text = "was killed by the kernel for want of memory"
        if exit.oom_certain is False:
            text = "was killed by SIGKILL, probably by the kernel for want of memory"
    if host_exit is None:
        return text
    return f"{text} ({host_exit.manager or 'its host'}: {host_exit.result})"


def describe_exit_and_age(exit: BackendExit, now: float) -> str:
    """Describe how a process ended, and how long ago: `was killed by SIGKILL 4 s ago`."""
    return f"{describe_exit(exit)} {max(0.0, now - exit.ended_at):.0f} s ago"


def signal_name(number: int) -> str:
    """Return a signal's name, or `signal N` if it has none."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def exit_to_dict(exit: BackendExit, host_exit: HostExit | None = None) -> dict[str, Any]:
    """Return the fields by which lists and events describe an exit: see `describe_exit`."""
    return {
        "cause": exit.cause,
        **_code_and_signal_fields(exit.exit_code, exit.signal),
        "oom": exit.oom,
        "oom_certain": exit.oom_certain,
        "peak_rss": exit.peak_rss,
        "description": describe_exit(exit, host_exit),
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
