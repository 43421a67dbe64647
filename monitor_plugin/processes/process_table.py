"""The operating system's table of processes, and what a tree of them holds in memory."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import psutil

from ..concurrency.single_flight import SingleFlight

_MAX_AGE_SECONDS = 1.0
_TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class ProcessRow(NamedTuple):
    """A line of the table, as /proc/PID/stat has it, which anybody may read.

    Attributes:
        started: tells a process from a later one of the same PID.
        cpu_seconds: used so far, by it and not by its children.
        threads: how many it has.
        rss, vms: bytes; 0 of a process that has ended, or is about to.
    """

    parent: int
    session: int
    started: float
    cpu_seconds: float = 0.0
    threads: int = 0
    rss: int = 0
    vms: int = 0


class ProcessSnapshot(NamedTuple):
    """All rows by PID, when they were read (monotonic), and each process's children."""

    at: float
    rows: Mapping[int, ProcessRow]
    children: Mapping[int, list[int]]


def read_table() -> dict[int, ProcessRow]:
    """Read every process's row: one pass over /proc, some milliseconds per hundred processes."""
    return {pid: row for pid in psutil.pids() if (row := read_row(pid))}


def read_row(pid: int) -> ProcessRow | None:
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
    if not fields:
        return None
    return ProcessRow(
        parent=int(fields[1]),
        session=int(fields[3]),
        started=float(fields[19]),
        cpu_seconds=(int(fields[11]) + int(fields[12])) / _TICKS_A_SECOND,
        threads=int(fields[17]),
        rss=int(fields[21]) * _PAGE_BYTES,
        vms=int(fields[20]),
    )


def portable_row(pid: int) -> ProcessRow | None:
    """`read_row` by psutil alone, which is several times slower."""
    try:
        process = psutil.Process(pid)
        row = ProcessRow(process.ppid(), os.getsid(pid), process.create_time())
    except (psutil.Error, OSError):
        return None
    try:
        times, memory, threads = (
            process.cpu_times(),
            process.memory_info(),
            process.num_threads(),
        )
    except (psutil.Error, OSError):
        return row
    return row._replace(
        cpu_seconds=times.user + times.system, threads=threads, rss=memory.rss, vms=memory.vms
    )


def children_of(table: Mapping[int, ProcessRow]) -> dict[int, list[int]]:
    """Give the children of each process that has any."""
    children: dict[int, list[int]] = {}
    for pid, row in table.items():
        children.setdefault(row.parent, []).append(pid)
    return children


def descendants(
    table: Mapping[int, ProcessRow],
    roots: Iterable[int],
    children: Mapping[int, list[int]] | None = None,
) -> list[int]:
    """List those of the roots that are in the table, then all that descend from them.

    Args:
        table: every process.
        roots: where to begin.
        children: those of the table, where they are known already.
    """
    children = children_of(table) if children is None else children
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
        self._table = SingleFlight(_MAX_AGE_SECONDS, self._read)

    def _read(self) -> ProcessSnapshot:
        at, rows = time.monotonic(), read_table()
        return ProcessSnapshot(at, rows, children_of(rows))

    def read(self, max_age_seconds: float = _MAX_AGE_SECONDS) -> ProcessSnapshot:
        """Give the table, as it was at most so long ago.

        Raises:
            OSError: it cannot be read, as there are no more descriptors.
        """
        return self._table.get(max_age_seconds)

    def tree(self, pid: int) -> list[int]:
        """List a process and its descendants, as they were at most a second ago."""
        try:
            table = self.read()
            return descendants(table.rows, [pid], table.children) or [pid]
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
            _, table, children = self.read()
            rows = {member: table[member] for member in descendants(table, [pid], children)}
            if not rows and (row := read_row(pid)):  # younger than the table
                rows = {pid: row}
        except OSError:
            return None
        for name, read in (("pss", _read_pss), ("rss", _read_rss)):
            if total := _sum(rows, read):
                return total, name
        return None


def _sum(rows: Mapping[int, ProcessRow], read: Callable[[psutil.Process], int]) -> int | None:
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
