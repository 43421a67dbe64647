"""Finds out what of other users' processes is hidden from the monitor."""

from __future__ import annotations

import os

import psutil

from .process_table import read_row

_HIDDEN = (
    "the processes of other users are hidden (/proc is mounted with hidepid, as by systemd's "
    "ProtectProc)"
)
_UNREADABLE = (
    "the descriptors of other users' processes may not be read, so it is not known which of them "
    "serves an address"
)


def find_unseen() -> str | None:
    """Say what the monitor cannot see of other users' processes that run now.

    Returns:
        None if there is nothing that it cannot see.
    """
    try:
        if read_row(1) is None:  # it always exists
            return _HIDDEN
        others = [pid for pid in psutil.pids() if _is_of_other_user(pid)]
    except OSError:  # no file descriptor is free
        return None
    return None if all(map(_has_readable_descriptors, others)) else _UNREADABLE


def _is_of_other_user(pid: int) -> bool:
    try:
        return os.stat(f"/proc/{pid}").st_uid != os.geteuid()
    except FileNotFoundError:
        return False


def _has_readable_descriptors(pid: int) -> bool:
    folder = f"/proc/{pid}/fd"
    try:
        for number in os.listdir(folder):
            os.readlink(f"{folder}/{number}")  # noqa: PTH115 - the target need not exist
            break
    except PermissionError:
        return False
    except OSError:  # the process has ended, or has closed this descriptor
        pass
    return True
