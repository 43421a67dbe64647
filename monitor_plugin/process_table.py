"""The operating system's table of processes, and what a tree of them holds in memory."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import psutil

from .shared import Shared

_MAX_AGE_SECONDS = 1.0


class Row(NamedTuple):
    """A line of the table; `started` tells a process from a later one of the same PID."""

    parent: int
    session: int
    started: float


def read_table() -> dict[int, Row]:
    """Read every process's row: one pass over /proc, some milliseconds per hundred processes."""
    return {pid: row for pid in psutil.pids() if (row := read_row(pid))}


def read_row(pid: int) -> Row | None:
    """Read one process's row; None where it does not exist (any more).

    Raises:
        OSError: that cannot be known, as there are no more descriptors.
    """
    if not sys.platform.startswith("linux"):
        return portable_row(pid)
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # proc(5); the name, in parentheses, may hold anything, and field 3 follows it.
            fields = file.read().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None
    return Row(int(fields[1]), int(fields[3]), float(fields[19])) if fields else None


def portable_row(pid: int) -> Row | None:
    """`read_row` by psutil alone, which is several times slower."""
    try:
        process = psutil.Process(pid)
        return Row(process.ppid(), os.getsid(pid), process.create_time())
    except (psutil.Error, OSError):
        return None


def descendants(table: Mapping[int, Row], roots: Iterable[int]) -> list[int]:
    """List those of the roots that are in the table, then all that descend from them."""
    children: dict[int, list[int]] = {}
    for pid, row in table.items():
        children.setdefault(row.parent, []).append(pid)
    found = {root: None for root in roots if root in table}
    queue = list(found)
    for pid in queue:  # grows while it is walked
        fresh = [child for child in children.get(pid, ()) if child not in found]
        found.update(dict.fromkeys(fresh))
        queue.extend(fresh)
    return queue


class ProcessTable:
    """The table, read at most once a second for all who ask. Safe to call from any thread."""

    def __init__(self) -> None:
        self._rows = Shared(_MAX_AGE_SECONDS, read_table)

    def tree(self, pid: int) -> list[int]:
        """List a process and its descendants, as they were at most a second ago."""
        try:
            return descendants(self._rows.get(), [pid]) or [pid]
        except OSError:
            return [pid]

    def tree_memory(self, pid: int) -> tuple[int, str] | None:
        """Sum what a process and its descendants hold.

        Returns:
            Bytes, and `pss` (proportional set size: shared pages counted once) where it can be
            read of each process, else `rss`, which counts a shared page once per process; None
            where neither can be read. The source is psutil.
        """
        try:
            table = self._rows.get()
            rows = {member: table[member] for member in descendants(table, [pid])}
            if not rows and (row := read_row(pid)):  # younger than the table
                rows = {pid: row}
        except OSError:
            return None
        for name, read in (("pss", _read_pss), ("rss", _read_rss)):
            if total := _sum(rows, read):
                return total, name
        return None


def _sum(rows: Mapping[int, Row], read: Callable[[psutil.Process], int]) -> int | None:
    """Add up a figure; None where it may not be read of one of them. The ended count nothing."""
    total = 0
    for pid, row in rows.items():
        try:
            amount = read(psutil.Process(pid))
            after = read_row(pid)  # read first, then look whether it was the right process
        except psutil.NoSuchProcess:
            continue
        except (psutil.AccessDenied, AttributeError, OSError):  # AttributeError: no PSS on macOS
            return None
        if after and after.started == row.started:
            total += amount
    return total


def _read_pss(process: psutil.Process) -> int:
    return int(process.memory_full_info().pss)


def _read_rss(process: psutil.Process) -> int:
    return int(process.memory_info().rss)
