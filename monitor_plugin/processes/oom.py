"""Whether the kernel killed a process for want of memory, as its control group counts it."""

from __future__ import annotations

import os
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")


class OomWatch:
    """Follows the count of processes that the kernel killed in one process's control group.

    Args:
        pid: the process.
        proc, cgroups: where these file systems are mounted.

    Attributes:
        counter: the file that holds the count; None where there is none to read.
    """

    def __init__(self, pid: int, *, proc: Path = Path("/proc"), cgroups: Path = _CGROUPS) -> None:
        self._groups = f"{proc}/{pid}/cgroup"
        self._cgroups = cgroups
        self.counter: str | None = None
        # The last look may fall between the kill and the end of the process; the one before not.
        self._looks: tuple[int, ...] = ()
        self.look()

    def look(self) -> None:
        """Note the count, while the process runs; it may have been moved to another group."""
        counter = self._find_counter()
        if counter != self.counter:
            self.counter = counter
            self._looks = ()
        count = self._count()
        if count is not None:
            self._looks = (*self._looks[-1:], count)

    def rose(self) -> bool:
        """Whether the count rose since the last looks."""
        count = self._count()
        return count is not None and bool(self._looks) and count > self._looks[0]

    def _find_counter(self) -> str | None:
        try:
            lines = _lines(self._groups)
        except OSError:
            return self.counter  # it has ended: its group is where it was
        for line in lines:
            _, controllers, path = line.split(":", 2)
            relative = path.lstrip("/")
            if controllers == "":
                counter = f"{self._cgroups}/{relative}/memory.events"
            elif "memory" in controllers.split(","):  # version 1
                counter = f"{self._cgroups}/memory/{relative}/memory.oom_control"
            else:
                continue
            if os.access(counter, os.F_OK):
                return counter
        return None

    def _count(self) -> int | None:
        if self.counter is None:
            return None
        try:
            for line in _lines(self.counter):
                name, _, count = line.partition(" ")
                if name == "oom_kill":
                    return int(count)
        except (OSError, ValueError):
            pass
        return None


def _lines(path: str) -> list[str]:
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        return file.read().splitlines()
