"""The control groups of processes."""

from __future__ import annotations

import re
import threading
import time
from pathlib import Path
from typing import NamedTuple

from .control_group_files import Group, parse_groups
from .kernel_files import read_text
from .process_table import TICKS_PER_SECOND, ProcessIdentity, ProcessSnapshot

_MAX_AGE_SECONDS = 60.0
# Groups that systemd makes for several units, for itself, and for all that a user starts in a login
# or from a desktop. The scope of a container (`docker-ID.scope`, `libpod-ID.scope`) is no such.
_SHARED = re.compile(
    r".*/([^/]*\.slice|init\.scope|session-[^/]*\.scope"
    r"|(app|background|session)(-[^/]*)?\.slice/[^/]*\.scope)"
)


class GroupPaths(NamedTuple):
    """The control groups of a process.

    Attributes:
        own: the group that the process is in, for each hierarchy.
        exclusive: those of them that may be one backend's alone, as their names say nothing else.
        containing: these groups, and all groups above them.
    """

    own: frozenset[Group]
    exclusive: frozenset[Group]
    containing: frozenset[Group]


class ControlGroups:
    """Reads the control groups of processes from /proc/PID/cgroup. Safe to call from any thread.

    A process is usually moved to its control group when it starts. So a result is used for as long
    as the process had run when its groups were read, and for at most `max_age_seconds`.

    Args:
        proc: the mount point of /proc.
    """

    def __init__(self, proc: Path | str = "/proc") -> None:
        self._proc = proc
        self._lock = threading.Lock()
        # When the groups were read (seconds since boot), and the groups.
        self._known: dict[ProcessIdentity, tuple[float, GroupPaths]] = {}
        self._parsed: dict[str, GroupPaths] = {}  # by the text of the file, which many share

    def of(self, pid: int, started: float, max_age_seconds: float = _MAX_AGE_SECONDS) -> GroupPaths:
        """Return the control groups of a process; empty sets if they cannot be read.

        Args:
            pid: its PID.
            started: its start time in clock ticks since boot.
            max_age_seconds: the maximum age of the result.
        """
        now = time.clock_gettime(time.CLOCK_BOOTTIME)
        with self._lock:
            known = self._known.get((pid, started))
        if known:
            read_at, paths = known
            if now - read_at < min(read_at - started / TICKS_PER_SECOND, max_age_seconds):
                return paths
        try:
            text = read_text(f"{self._proc}/{pid}/cgroup")
        except OSError:
            text = ""
        with self._lock:
            found = self._parsed.get(text)
            if found is None:
                found = self._parsed[text] = _group_paths(text)
            self._known[pid, started] = now, found
        return found

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


def _group_paths(text: str) -> GroupPaths:
    own = parse_groups(text)
    containing = {
        Group(controllers, path[:end] or "/")
        for controllers, path in own
        for end in (0, *(match.start() for match in re.finditer("/", path)), len(path))
    }
    exclusive = frozenset(group for group in own if not _SHARED.fullmatch(group.path))
    return GroupPaths(frozenset(own), exclusive, frozenset(containing))
