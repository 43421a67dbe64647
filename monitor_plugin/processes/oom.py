"""The kernel's count of out-of-memory kills in the control group of a process."""

from __future__ import annotations

import os
from pathlib import Path


class OomKillCounter:
    """Reports whether the kernel killed a process of a control group for lack of memory.

    Args:
        pid: a process of the control group.
        proc, cgroups: mount points of these file systems.

    Attributes:
        path: the file with the count; None if the control group has no such file.
    """

    def __init__(
        self,
        pid: int,
        *,
        proc: Path = Path("/proc"),
        cgroups: Path = Path("/sys/fs/cgroup"),
    ) -> None:
        self._membership = f"{proc}/{pid}/cgroup"
        self._cgroups = cgroups
        self.path: str | None = None
        # The last two counts. The last update may have come after the kill but before the process
        # had ended, so `has_risen` compares with the update before it.
        self._counts: tuple[int, ...] = ()
        self.update()

    def update(self) -> None:
        """Record the count. Call this regularly while the process runs."""
        path = self._find_path()
        if path != self.path:  # the process was moved to another control group
            self.path = path
            self._counts = ()
        count = self._read_count()
        if count is not None:
            self._counts = (*self._counts[-1:], count)

    def has_risen(self) -> bool:
        """Whether the count is higher now than at the second-to-last update."""
        count = self._read_count()
        return count is not None and bool(self._counts) and count > self._counts[0]

    def _find_path(self) -> str | None:
        try:
            lines = _read_lines(self._membership)
        except OSError:
            return self.path  # the process has ended: use its last known control group
        for line in lines:
            _, controllers, group = line.split(":", 2)
            relative = group.lstrip("/")
            if controllers == "":  # cgroup version 2
                path = f"{self._cgroups}/{relative}/memory.events"
            elif "memory" in controllers.split(","):  # version 1
                path = f"{self._cgroups}/memory/{relative}/memory.oom_control"
            else:
                continue
            if os.access(path, os.F_OK):
                return path
        return None

    def _read_count(self) -> int | None:
        if self.path is None:
            return None
        try:
            for line in _read_lines(self.path):
                name, _, count = line.partition(" ")
                if name == "oom_kill":
                    return int(count)
        except (OSError, ValueError):
            pass
        return None


def _read_lines(path: str) -> list[str]:
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        return file.read().splitlines()
