"""The figures of many backends' process trees, all from one pass over /proc."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import psutil
from msgspec.structs import asdict

from ..domain.observation import ProcessUsage, TreeUsage
from .process_table import ProcessSnapshot, ProcessTable, descendants

# How old a pass may be that is used again by another sweep.
_TABLE_MAX_AGE_SECONDS = 0.1
# CPU is measured from the newest mark of at least the first age, and of at most the second.
_LEAST_SPAN_SECONDS = 1.0
_MOST_SPAN_SECONDS = 10.0


class CpuBaseline(NamedTuple):
    """CPU seconds of every process, at one moment (monotonic)."""

    at: float
    cpu_seconds: Mapping[tuple[int, float], float]


class UsageReader:
    """Reads process trees. Safe to call from any thread.

    Args:
        table: the operating system's processes.
    """

    def __init__(self, table: ProcessTable) -> None:
        self._table = table
        self._lock = threading.Lock()
        self._marks: deque[CpuBaseline] = deque(maxlen=12)

    def look(self, pids: Iterable[int]) -> UsageSnapshot:
        """Pass over /proc once, for any number of trees.

        Args:
            pids: the roots of the trees, which are to be seen if they run.

        Raises:
            OSError: it cannot be read, as there are no more descriptors.
        """
        table = self._table.read(_TABLE_MAX_AGE_SECONDS)
        if any(pid not in table.rows for pid in pids):
            table = self._table.read(0)
        now = table.at
        with self._lock:
            marks = [each for each in self._marks if now - each.at <= _MOST_SPAN_SECONDS]
            if not marks or now - marks[-1].at >= _LEAST_SPAN_SECONDS:
                self._marks.append(_mark(table))
        since = [each for each in marks if now - each.at >= _LEAST_SPAN_SECONDS]
        return UsageSnapshot(table, since[-1] if since else None)


def _mark(table: ProcessSnapshot) -> CpuBaseline:
    used = {(pid, row.started): row.cpu_seconds for pid, row in table.rows.items()}
    return CpuBaseline(table.at, used)


class UsageSnapshot:
    """One pass over /proc, and what was used of the CPU some seconds before."""

    def __init__(self, table: ProcessSnapshot, since: CpuBaseline | None) -> None:
        self._now, self._rows, self._children = table
        self._since = since
        self._physical = psutil.virtual_memory().total

    def tree(self, pid: int) -> list[int]:
        """List a process and its descendants; empty where it had not been started yet."""
        return descendants(self._rows, [pid], self._children)

    def process(
        self, pid: int, cpu_percent: Callable[[float, float], float | None]
    ) -> ProcessUsage | None:
        """Give the figures of one process; None where it shows none.

        Args:
            pid: which.
            cpu_percent: makes it of the CPU seconds used, and of when they were read (monotonic).
        """
        row = self._rows.get(pid)
        if row is None or not row.vms:  # in its exit it shows 0 bytes, whatever it held
            return None
        return ProcessUsage(**self._figures([pid], cpu_percent(row.cpu_seconds, self._now)))

    def figures_of_tree(
        self, pids: Iterable[int], pss: int | None, vram: int | None, root: ProcessUsage | None
    ) -> TreeUsage | None:
        """Add up those of a tree; None where none of it shows any.

        Args:
            pids: as `tree` gave them.
            pss: its proportional set size in bytes, where known.
            vram: its GPU memory in bytes, where known.
            root: the figures of its first process.
        """
        live = [pid for pid in pids if self._rows[pid].vms]
        if not live:
            return None
        if root is not None and len(live) == 1:
            figures = asdict(root)
        else:
            figures = self._figures(live, self._cpu_percent(live))
        return TreeUsage(processes=len(live), pss=pss, vram=vram, **figures)

    def _figures(self, pids: list[int], cpu_percent: float | None) -> dict[str, Any]:
        rows = [self._rows[pid] for pid in pids]
        rss = sum(row.rss for row in rows)
        return {
            "rss": rss,
            "vms": sum(row.vms for row in rows),
            "memory_percent": 100 * rss / self._physical,
            "cpu_percent": cpu_percent,
            "cpu_seconds": sum(row.cpu_seconds for row in rows),
            "threads": sum(row.threads for row in rows),
            "open_files": _open_files(pids),
        }

    def _cpu_percent(self, pids: list[int]) -> float | None:
        if self._since is None:
            return None
        used = 0.0
        for pid in pids:
            row = self._rows[pid]
            # Who was not there yet has used all of its time since.
            before = self._since.cpu_seconds.get((pid, row.started), 0.0)
            used += max(0.0, row.cpu_seconds - before)
        return 100 * used / (self._now - self._since.at)


def _open_files(pids: Iterable[int]) -> int | None:
    """Count open descriptors; None where one of them may not be looked at, or has just ended."""
    try:
        return sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in pids)
    except OSError:
        return None
