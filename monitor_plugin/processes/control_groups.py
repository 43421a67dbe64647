"""The control groups of processes."""

from __future__ import annotations

import threading
import time
from typing import NamedTuple

from .process_table import TICKS_PER_SECOND, ProcessIdentity, ProcessSnapshot

_MAX_AGE_SECONDS = 60.0


class GroupPaths(NamedTuple):
    """The control groups of a process, as `CONTROLLERS:PATH`.

    Attributes:
        own: the group that the process is in, for each hierarchy.
        containing: these groups, and all groups above them.
    """

    own: frozenset[str]
    containing: frozenset[str]


class ControlGroups:
    """Reads the control groups of processes from /proc/PID/cgroup. Safe to call from any thread.

    A process is usually moved to its control group when it starts. So a result is used for as long
    as the process had run when its groups were read, and for at most a minute.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # When the groups are to be read again (seconds since boot), and the groups.
        self._known: dict[ProcessIdentity, tuple[float, GroupPaths]] = {}
        self._parsed: dict[str, GroupPaths] = {}  # by the text of the file, which many share

    def of(self, pid: int, started: float) -> GroupPaths:
        """Return the control groups of a process; empty sets if they cannot be read.

        Args:
            pid: its PID.
            started: its start time in clock ticks since boot.
        """
        now = time.clock_gettime(time.CLOCK_BOOTTIME)
        with self._lock:
            known = self._known.get((pid, started))
        if known and now < known[0]:
            return known[1]
        text = _read(pid)
        age = now - started / TICKS_PER_SECOND
        with self._lock:
            paths = self._parsed.get(text)
            if paths is None:
                paths = self._parsed[text] = _parse(text)
            self._known[pid, started] = now + min(age, _MAX_AGE_SECONDS), paths
        return paths

    def forget_ended(self, snapshot: ProcessSnapshot) -> None:
        """Drop what is known of processes that are not in the snapshot."""
        with self._lock:
            for pid, started in list(self._known):
                row = snapshot.rows.get(pid)
                if row is None or row.started != started:
                    del self._known[pid, started]
            used = {id(paths) for _, paths in self._known.values()}
            self._parsed = {
                text: paths for text, paths in self._parsed.items() if id(paths) in used
            }


def _read(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/cgroup", encoding="utf-8", errors="surrogateescape") as file:
            return file.read()
    except OSError:
        return ""


def _parse(text: str) -> GroupPaths:
    # Each line is HIERARCHY:CONTROLLERS:PATH. Version 2 has one line, without controllers.
    own = frozenset(line.partition(":")[2] for line in text.splitlines())
    containing = {
        group[:end] for group in own for end in (*_slashes(group), len(group)) if group[:end]
    }
    return GroupPaths(own, frozenset(containing))


def _slashes(group: str) -> list[int]:
    """Return where the names of the groups above a group end."""
    start = group.index("/") if "/" in group else len(group)
    return [start + 1, *(i for i in range(start + 1, len(group)) if group[i] == "/")]
