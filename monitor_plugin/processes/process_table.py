"""Snapshots of the operating system's process table, and the memory of a process tree."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import psutil

from ..concurrency.single_flight import SingleFlight

_MAX_AGE_SECONDS = 1.0
_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_MAX_STAT_BYTES = 4096  # 52 fields, of at most 20 digits except for the name (at most 64 bytes)


class ProcessRow(NamedTuple):
    """One process, as /proc/PID/stat shows it to every user.

    Attributes:
        parent: PID of its parent.
        session: PID of the process that leads, or led, its session.
        started: start time in clock ticks since boot, by which a process differs from a later
            process with the same PID.
        cpu_seconds: CPU time used so far, without that of its children.
        threads: number of threads.
        rss, vms: bytes; 0 once the process has ended or is about to end.
        read_at: when the row was read (monotonic seconds).
    """

    parent: int
    session: int
    started: float
    cpu_seconds: float = 0.0
    threads: int = 0
    rss: int = 0
    vms: int = 0
    read_at: float = 0.0


class ProcessSnapshot:
    """All processes of the system, as one pass over /proc found them.

    Args:
        taken_at: when the pass began (monotonic seconds). With thousands of processes it takes
            tenths of a second, so each row has the time at which it was read.
        rows: the processes by PID.
    """

    def __init__(self, taken_at: float, rows: Mapping[int, ProcessRow]) -> None:
        self.taken_at = taken_at
        self.rows = rows
        self._children: dict[int, list[int]] = {}
        for pid, row in rows.items():
            self._children.setdefault(row.parent, []).append(pid)

    def tree(self, *roots: int) -> list[int]:
        """List the roots that are in the snapshot, then all their descendants.

        Each process is listed once, after its parent.
        """
        found = {root: None for root in roots if root in self.rows}
        queue = list(found)
        for pid in queue:  # the loop extends `queue`
            fresh = [child for child in self._children.get(pid, ()) if child not in found]
            found.update(dict.fromkeys(fresh))
            queue.extend(fresh)
        return queue


def take_snapshot() -> ProcessSnapshot:
    """Read every process's row, which takes some milliseconds per hundred processes.

    Raises:
        OSError: no file descriptor is free.
    """
    taken_at = time.monotonic()
    return ProcessSnapshot(taken_at, {pid: row for pid in psutil.pids() if (row := read_row(pid))})


def read_row(pid: int) -> ProcessRow | None:
    """Read one process's row; None if there is no such process or it is hidden from this user.

    Raises:
        OSError: no file descriptor is free, so it is unknown whether the process exists.
    """
    try:
        # A single read, so that the clock is read right after it; a file object reads twice.
        descriptor = os.open(f"/proc/{pid}/stat", os.O_RDONLY)
        try:
            stat = os.read(descriptor, _MAX_STAT_BYTES)
            read_at = time.monotonic()
        finally:
            os.close(descriptor)
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None
    # proc(5): the name is field 2, in parentheses, and may itself hold parentheses, spaces and line
    # breaks. `fields` begins with field 3.
    fields = stat.rpartition(b")")[2].split()
    if not fields:
        return None
    return ProcessRow(
        parent=int(fields[1]),
        session=int(fields[3]),
        started=float(fields[19]),
        cpu_seconds=(int(fields[11]) + int(fields[12])) / _TICKS_PER_SECOND,
        threads=int(fields[17]),
        rss=int(fields[21]) * _PAGE_BYTES,
        vms=int(fields[20]),
        read_at=read_at,
    )


class ProcessTable:
    """Shares snapshots between callers: by default each snapshot is used for one second.

    Safe to call from any thread.
    """

    def __init__(self) -> None:
        self._snapshots = SingleFlight(_MAX_AGE_SECONDS, take_snapshot)

    def snapshot(self, max_age_seconds: float = _MAX_AGE_SECONDS) -> ProcessSnapshot:
        """Return a snapshot that is at most `max_age_seconds` old.

        Raises:
            OSError: no file descriptor is free.
        """
        return self._snapshots.get(max_age_seconds)

    def tree(self, pid: int) -> list[int]:
        """List a process and its descendants, from a snapshot at most one second old.

        Lists the process alone if it is not in the snapshot, or if no snapshot can be taken.
        """
        try:
            return self.snapshot().tree(pid) or [pid]
        except OSError:
            return [pid]

    def tree_memory(self, pid: int) -> tuple[int, str] | None:
        """Measure the memory of a process and its descendants with psutil.

        Returns:
            Bytes, and how they were measured: `pss` (proportional set size: shared pages count
            once) if it can be read for every process, else `rss` (resident set size: shared pages
            count once per process). None if neither can be read.
        """
        try:
            snapshot = self.snapshot()
            rows = {member: snapshot.rows[member] for member in snapshot.tree(pid)}
            if not rows and (row := read_row(pid)):  # started after the snapshot
                rows = {pid: row}
        except OSError:
            return None
        for name, read in (("pss", _read_pss), ("rss", _read_rss)):
            if total := _sum(rows, read):
                return total, name
        return None


def _sum(rows: Mapping[int, ProcessRow], read: Callable[[psutil.Process], int]) -> int | None:
    """Add up one figure over processes; a process that has ended counts as 0.

    Returns:
        None if the figure of any process may not be read.
    """
    total = 0
    for pid, row in rows.items():
        try:
            amount = read(psutil.Process(pid))
            after = read_row(pid)  # read first, then check that the PID was not reused
        except psutil.NoSuchProcess:
            continue
        except (psutil.AccessDenied, OSError):
            return None
        if after and after.started == row.started:
            total += amount
    return total


def _read_pss(process: psutil.Process) -> int:
    return int(process.memory_full_info().pss)


def _read_rss(process: psutil.Process) -> int:
    return int(process.memory_info().rss)
