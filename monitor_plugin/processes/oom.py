"""The processes of a control group that the kernel killed because memory ran out."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Collection
from pathlib import Path

from .control_group_files import find_folders, parse_groups, read_mounts
from .kernel_files import read_numbers, read_text
from .process_table import ProcessIdentity, read_row

_PF_EXITING = 0x4  # linux/sched.h


class OomKillCounter:
    """Counts the kernel's out-of-memory kills in the control group of a process.

    In version 2 of control groups, kills in the groups below count as well.

    Args:
        pid: the process.
        proc: the mount point of /proc.

    Attributes:
        updated_at: when the count was last recorded, in seconds since the epoch.
    """

    def __init__(self, pid: int, *, proc: Path | str = "/proc") -> None:
        self._proc = proc
        self._process = f"{proc}/{pid}"
        self._membership = self._read_membership()
        self._path = self._find_path(self._membership)
        self._count = self._read_count()
        self.updated_at = time.time()

    @property
    def group(self) -> str | None:
        """The folder of the control group; None if there is no file with a count."""
        return None if self._path is None else str(Path(self._path).parent)

    def update(self) -> int:
        """Record the count. Call this regularly while the process runs, always on one thread.

        Returns:
            The number of kills since the last call. A kill that ends the process itself is not
            among them: `new_kills` returns it at the end.
        """
        membership, count = self._read_membership(), self._read_count()
        is_moved = membership != self._membership
        kills = _difference(count, self._count)
        # Once a process begins to end, version 1 shows another group for it.
        if (is_moved or kills) and self._is_ending():
            return 0
        if is_moved or self._path is None:
            path = self._find_path(membership)
            if path != self._path:
                self._path, kills = path, 0
                count = self._read_count()
            self._membership = membership
        if count is not None:
            self._count = count
        self.updated_at = time.time()
        return kills

    def new_kills(self) -> int:
        """Return the number of kills since the last update."""
        return _difference(self._read_count(), self._count)

    def is_shared(self, root: ProcessIdentity, members: Collection[ProcessIdentity]) -> bool:
        """Whether processes of the control group do not belong to the backend, or may not.

        These are the monitor, and processes that are older than the root without being members.

        Args:
            root: the registered process.
            members: the members of the backend.
        """
        pids = None if self._path is None else self._read_pids(str(self.group))
        if pids is None or os.getpid() in pids:
            return True
        try:
            rows = {pid: row for pid in pids if (row := read_row(pid))}
        except OSError:  # no file descriptor is free
            return True
        return any(
            row.started < root[1] and (pid, row.started) not in members for pid, row in rows.items()
        )

    def _is_ending(self) -> bool:
        """Whether the process has ended, is about to end, or was sent SIGKILL."""
        try:
            stat, status = (read_text(f"{self._process}/{name}") for name in ("stat", "status"))
        except OSError:
            return True
        if int(stat.rpartition(")")[2].split()[6]) & _PF_EXITING:
            return True
        fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
        pending = int(fields.get("SigPnd", "0"), 16) | int(fields.get("ShdPnd", "0"), 16)
        return bool(pending >> (signal.SIGKILL - 1) & 1)

    def _read_membership(self) -> str | None:
        try:
            return read_text(f"{self._process}/cgroup")
        except OSError:  # the process has ended
            return None

    def _find_path(self, membership: str | None) -> str | None:
        mounts = read_mounts(self._proc)
        for group in parse_groups(membership or ""):
            if not group.controllers:  # version 2
                name = "memory.events"
            elif group.has("memory"):
                name = "memory.oom_control"
            else:
                continue
            for folder in find_folders(group, mounts)[:1]:
                if os.access(f"{folder}/{name}", os.F_OK):
                    return f"{folder}/{name}"
        return None

    def _read_pids(self, group: str) -> list[int] | None:
        try:
            return [int(line) for line in read_text(f"{group}/cgroup.procs").splitlines()]
        except OSError:
            return None

    def _read_count(self) -> int | None:
        return read_numbers(self._path).get("oom_kill") if self._path else None


def _difference(count: int | None, before: int | None) -> int:
    return 0 if count is None or before is None else max(0, count - before)
