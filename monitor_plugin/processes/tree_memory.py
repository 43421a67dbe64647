"""Reads the memory of a backend's members: by kind, with shared pages counted once, and its peak.

The kernel counts a process's pages one by one when /proc/PID/smaps_rollup is read. This takes some
17 ms per GiB of 4 KiB pages. `readings/memory_reader.py` therefore reads it in the background.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from ..domain.figures import sum_known
from .kernel_files import read_text
from .process_table import ProcessIdentity, read_row

# PSS is outdated once RSS has changed by more than this part (an eighth).
_OUTDATED_PART = 8
_SIZE = re.compile(r"^(\w+:)[ \t]*(\d+) kB$", re.MULTILINE)
_LINES = ("Pss:", "Pss_File:", "Pss_Shmem:", "SwapPss:")


class TreeMemory(NamedTuple):
    """One reading of the memory of a backend's members. Sizes in bytes; None: not known.

    Attributes:
        taken_at: when the reading began (monotonic seconds).
        rss: resident memory, in which shared pages count once per process.
        pss: proportional set size, in which shared pages count once: the sum of `anonymous`, `file`
            and `shared`. None if a member may not be read.
        anonymous: the part of pss that belongs to no file.
        file: the part of pss that is mapped from files, which the kernel can drop.
        shared: the part of pss in shared memory and tmpfs.
        swap: memory in swap, in which shared pages count once.
        peak_rss: the sum of the most resident memory that each member ever had; the highest such
            sum of all readings so far.
        root_peak_rss: the most resident memory that the registered process ever had.
    """

    taken_at: float
    rss: int
    pss: int | None = None
    anonymous: int | None = None
    file: int | None = None
    shared: int | None = None
    swap: int | None = None
    peak_rss: int | None = None
    root_peak_rss: int | None = None

    def age_seconds(self) -> float:
        """Return how long ago the memory was read."""
        return max(0.0, time.monotonic() - self.taken_at)

    def is_outdated_by(self, rss: int) -> bool:
        """Whether a later RSS of the members differs from `self.rss` by more than an eighth."""
        return abs(rss - self.rss) * _OUTDATED_PART > self.rss

    def with_earlier_peak(self, earlier: TreeMemory | None) -> TreeMemory:
        """Return this reading with the `peak_rss` of an earlier reading if that was higher.

        The earlier sum may include members that have ended since.
        """
        if earlier is None or earlier.peak_rss is None:
            return self
        return self._replace(peak_rss=max(self.peak_rss or 0, earlier.peak_rss))


class TreeTotal(NamedTuple):
    """The memory of a process tree as one figure.

    Attributes:
        amount: bytes.
        source: `pss` or `rss`.
        age_seconds: how long ago PSS was read; None for RSS.
        awaits_pss: whether this is RSS only until PSS is read.
    """

    amount: int
    source: str
    age_seconds: float | None = None
    awaits_pss: bool = False


def tree_total(memory: TreeMemory | None, rss: int | None, read_at: float) -> TreeTotal | None:
    """Return PSS if it is known and not outdated, and RSS otherwise; None if neither is known.

    Args:
        memory: the last reading; None before the first one.
        rss: the RSS of the members in a newer snapshot; None if it is not known.
        read_at: when the RSS was read (monotonic seconds).
    """
    if memory is not None and memory.pss is not None:
        is_newer = rss is not None and read_at > memory.taken_at
        if not (is_newer and memory.is_outdated_by(rss or 0)):
            return TreeTotal(memory.pss, "pss", memory.age_seconds())
    is_readable = memory is None or memory.pss is not None
    return TreeTotal(rss, "rss", awaits_pss=is_readable) if rss else None


def read_tree_memory(
    members: Iterable[ProcessIdentity], root: ProcessIdentity
) -> TreeMemory | None:
    """Read the memory of a backend's members. The time grows with their memory.

    Args:
        members: the processes; members that have ended are left out.
        root: the registered process.

    Returns:
        None if no member runs.

    Raises:
        OSError: no file descriptor is free.
    """
    taken_at = time.monotonic()
    rollups: list[Mapping[str, int]] = []
    peaks: dict[ProcessIdentity, int | None] = {}
    rss = 0
    for identity in members:
        pid, started = identity
        # If one member may not be read, the sums are unknown, and no other rollup need be read.
        rollup = {} if {} in rollups else _read_if_allowed(read_rollup, pid)
        status = _read_if_allowed(_read_status, pid)
        row = read_row(pid)  # read first, then check that the PID was not reused
        # A process that is about to end shows 0 bytes, also while its memory is not freed yet.
        if row is None or row.started != started or not row.vms:
            continue
        rollups.append(rollup)
        peaks[identity] = status.get("VmHWM:")
        rss += row.rss
    if not rollups:
        return None
    pss, file, shared, swap = (sum_known(each.get(name) for each in rollups) for name in _LINES)
    # A difference, because the kernel rounds each figure down to KiB, and the parts must add up.
    anonymous = None
    if pss is not None and file is not None and shared is not None:
        anonymous = pss - file - shared
    peak_rss = sum_known(peaks.values())
    return TreeMemory(taken_at, rss, pss, anonymous, file, shared, swap, peak_rss, peaks.get(root))


def read_rollup(pid: int) -> Mapping[str, int]:
    """Read the lines of /proc/PID/smaps_rollup, in bytes: `{"Pss:": 4096}`.

    psutil reads /proc/PID/smaps where that file is missing (before Linux 4.14, in gVisor). This
    function does not: smaps lists each of the thousands of mappings that a model server may have.

    Raises:
        OSError: the file is missing or may not be read. ProcessLookupError: the process has ended.
    """
    return _read_sizes(f"/proc/{pid}/smaps_rollup")


def _read_status(pid: int) -> Mapping[str, int]:
    return _read_sizes(f"/proc/{pid}/status")


def _read_sizes(path: str) -> Mapping[str, int]:
    """Read the lines `name: number kB` of a file; return the sizes in bytes."""
    return {name: int(size) * 1024 for name, size in _SIZE.findall(read_text(path))}


def _read_if_allowed(read: Callable[[int], Mapping[str, int]], pid: int) -> Mapping[str, int]:
    """Read sizes; empty if the process has ended, or if its file is missing or may not be read.

    Raises:
        OSError: no file descriptor is free.
    """
    try:
        return read(pid)
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return {}
