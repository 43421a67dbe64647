"""Snapshots of the operating system's process table."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import psutil

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
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
        group: PID of the process that leads, or led, its process group.
        children_cpu_seconds: CPU time of the descendants that have ended and were waited for.
        is_zombie: whether the process has ended, and its parent has not waited for it yet.
        exit_code: of a zombie, as in `subprocess`: -9 means killed by signal 9. None if it may not
            be read, and while the process runs.
        name: the name of its program or first thread, at most 15 bytes, as the process may set it;
            bytes that are not UTF-8 are escaped.
    """

    parent: int
    session: int
    started: float
    cpu_seconds: float = 0.0
    threads: int = 0
    rss: int = 0
    vms: int = 0
    read_at: float = 0.0
    group: int = 0
    children_cpu_seconds: float = 0.0
    is_zombie: bool = False
    exit_code: int | None = None
    name: str = ""


# A PID and a start time, which identify a process also after its PID was reused.
ProcessIdentity = tuple[int, float]


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
        self._led: dict[int, list[int]] = {}
        for pid, row in rows.items():
            self._children.setdefault(row.parent, []).append(pid)
            for leader in {row.session, row.group} - {pid}:
                self._led.setdefault(leader, []).append(pid)

    def children(self, pid: int) -> Sequence[int]:
        """List the children of a process."""
        return self._children.get(pid, ())

    def led_by(self, pid: int) -> Sequence[int]:
        """List the other processes of the session and of the process group that a process leads.

        The leader may have ended.
        """
        return self._led.get(pid, ())


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
    # breaks. `fields` begins with field 3; its last item is the text from field 25 on.
    beginning, _, rest = stat.rpartition(b")")
    fields = rest.split(None, 22)
    if not fields:
        return None
    threads = int(fields[17])
    # A process whose first thread has exited is shown as a zombie while others run.
    is_zombie = fields[0] in b"ZX" and threads <= 1
    return ProcessRow(
        parent=int(fields[1]),
        session=int(fields[3]),
        started=float(fields[19]),
        cpu_seconds=(int(fields[11]) + int(fields[12])) / TICKS_PER_SECOND,
        threads=threads,
        rss=int(fields[21]) * _PAGE_BYTES,
        vms=int(fields[20]),
        read_at=read_at,
        group=int(fields[2]),
        children_cpu_seconds=(int(fields[13]) + int(fields[14])) / TICKS_PER_SECOND,
        is_zombie=is_zombie,
        exit_code=_exit_code(pid, fields[-1]) if is_zombie else None,
        name=beginning.partition(b"(")[2].decode(errors="backslashreplace"),
    )


def read_rss(processes: Iterable[ProcessIdentity]) -> int | None:
    """Add up the RSS of the processes that run, in bytes.

    Returns:
        None if none of the processes has memory, or if no file descriptor is free to read it.
    """
    try:
        rows = [(read_row(pid), started) for pid, started in processes]
    except OSError:
        return None
    # The kernel reports 0 for a process that is about to run.
    return sum(row.rss for row, started in rows if row and row.started == started) or None


def _exit_code(pid: int, rest: bytes) -> int | None:
    """Return the exit code of a zombie from field 52 of proc(5); `rest` begins with field 25."""
    try:
        status = int(rest.split()[27])
        if status == 0 and not _shows_exit_code(pid):
            return None
        return os.waitstatus_to_exitcode(status)
    except (OSError, IndexError, ValueError):
        return None


def _shows_exit_code(pid: int) -> bool:
    """Whether an exit code of 0 in /proc/PID/stat is the true one.

    The kernel shows 0 to users who may not see the exit code.
    """
    return os.stat(f"/proc/{pid}").st_uid == os.geteuid() and shows_exit_codes()


def shows_exit_codes() -> bool:
    """Whether /proc/PID/stat has exit codes. gVisor writes 0 for them, and for all addresses.

    Raises:
        OSError: the own process cannot be read.
    """
    with open("/proc/self/stat", "rb") as file:
        fields = file.read().rpartition(b")")[2].split()
    return fields[23] != b"0"  # the address of the program's code, field 26 of proc(5)


def read_ancestry(pid: int) -> Iterator[tuple[int, ProcessRow | None]]:
    """Yield the PID and the row of a process, then those of its ancestors, without PID 1.

    Ends at the first process that has no row: it has ended, or is hidden from this user.

    Raises:
        OSError: no file descriptor is free.
    """
    while pid > 1:
        row = read_row(pid)
        yield pid, row
        pid = row.parent if row else 0


def find_descendants(pid: int) -> list[ProcessIdentity]:
    """List the descendants of a process without a pass over all processes, which takes longer.

    Reads /proc/PID/task/*/children, which takes some microseconds per thread.

    Returns:
        An empty list where the kernel has no such file (CONFIG_PROC_CHILDREN), or where no file
        descriptor is free. Descendants that start or end meanwhile may be missing.
    """
    found: dict[int, ProcessIdentity] = {}
    queue = [pid]
    for parent in queue:  # the loop extends `queue`
        with contextlib.suppress(OSError):
            for task in os.listdir(f"/proc/{parent}/task"):
                with open(f"/proc/{parent}/task/{task}/children", "rb") as file:
                    children = [int(each) for each in file.read().split()]
                for child in children:
                    if child not in found and (row := read_row(child)):
                        found[child] = child, row.started
                        queue.append(child)
    return list(found.values())
