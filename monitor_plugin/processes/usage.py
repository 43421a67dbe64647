"""CPU, memory, threads and open files of backends, for all backends from one snapshot."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable, Sequence
from typing import Any

from msgspec.structs import asdict

from ..domain.models import ProcessUsage, TreeUsage
from .members import Members, MemberTable
from .process_table import ProcessRow, ProcessSnapshot
from .sampler import MIN_MEASURED_SECONDS, Sampler, percent_of
from .tree_memory import TreeMemory, TreeTotal, tree_total

# Sweeps that follow each other within this time share a snapshot.
_SNAPSHOT_MAX_AGE_SECONDS = 0.1
# The CPU percentage of a tree is measured since the newest baseline of at least this age. As sweeps
# and `record_baseline` record baselines, it covers 1 to 7 s.
_BASELINE_MIN_AGE_SECONDS = 1.0
# `record_baseline` takes a snapshot only if the last one, such as a sweep's, is older than this.
_BASELINE_SNAPSHOT_MAX_AGE_SECONDS = 5.0
_CORES = os.cpu_count() or 1


class UsageReader:
    """Reads the usage of backends' processes. Safe to call from any thread.

    Args:
        member_table: gives the snapshots, in which it finds the members of all backends.
    """

    def __init__(self, member_table: MemberTable) -> None:
        self._member_table = member_table
        self._lock = threading.Lock()
        # The last two snapshots that are at least a second apart, so that one of them can serve as
        # the baseline of a new snapshot.
        self._baselines: tuple[ProcessSnapshot, ...] = ()

    def record_baseline(self) -> None:
        """Record a baseline of CPU times. Call this every BASELINE_INTERVAL_SECONDS.

        The baselines make the CPU percentages of trees known also if the last sweep was long ago.

        Raises:
            OSError: no file descriptor is free.
        """
        self._exchange_baseline(self._member_table.snapshot(_BASELINE_SNAPSHOT_MAX_AGE_SECONDS))

    def read(self, backends: Iterable[Members]) -> UsageSnapshot:
        """Read the usage of any number of backends at once.

        Args:
            backends: the members of each backend. If one of them was registered after the shared
                snapshot was taken, a new snapshot is taken.

        Raises:
            OSError: no file descriptor is free.
        """
        snapshot = self._member_table.snapshot(_SNAPSHOT_MAX_AGE_SECONDS)
        if any(members.is_new for members in backends):
            snapshot = self._member_table.snapshot_since(time.monotonic())
        return UsageSnapshot(snapshot, self._exchange_baseline(snapshot))

    def _exchange_baseline(self, snapshot: ProcessSnapshot) -> ProcessSnapshot | None:
        """Return the baseline of a snapshot, and keep the snapshot as a baseline of later ones."""
        now = snapshot.taken_at
        with self._lock:
            baselines = self._baselines
            if not baselines or now - baselines[-1].taken_at >= _BASELINE_MIN_AGE_SECONDS:
                self._baselines = (*baselines[-1:], snapshot)
        for each in reversed(baselines):
            if now - each.taken_at >= _BASELINE_MIN_AGE_SECONDS:
                return each
        return None


class UsageSnapshot:
    """The usage of all processes at the time of a snapshot. Use it on one thread.

    The open files of a process are counted when its usage is first requested.

    Args:
        snapshot: the processes.
        baseline: an earlier snapshot, since which the CPU percentages of trees are measured.
            Without it they are None.
    """

    def __init__(self, snapshot: ProcessSnapshot, baseline: ProcessSnapshot | None) -> None:
        self._snapshot = snapshot
        self._rows = snapshot.rows
        self._baseline = baseline
        self._open_files: dict[int, int | None] = {}

    def pids(self, members: Members) -> list[int]:
        """List the members of a backend that the snapshot shows, the root first."""
        return members.pids_in(self._snapshot)

    def row(self, pid: int) -> ProcessRow | None:
        """Return the row of a process; None if the snapshot does not show the process."""
        return self._rows.get(pid)

    def cpu_percent(self, pid: int) -> float | None:
        """Return the CPU usage of one process since the baseline, in percent of one core.

        The CPU time of processes that it has waited for does not count. None if the baseline is
        not known, or too young.
        """
        row, baseline = self._rows[pid], self._baseline
        if baseline is None:
            return None
        before = baseline.rows.get(pid)
        if before is None or before.started != row.started:  # it started after the baseline
            used, seconds = row.cpu_seconds, row.read_at - baseline.taken_at
        else:
            used = max(0.0, row.cpu_seconds - before.cpu_seconds)
            seconds = row.read_at - before.read_at
        return 100 * used / seconds if seconds >= MIN_MEASURED_SECONDS else None

    def memory_total(self, pids: Sequence[int], memory: TreeMemory | None) -> TreeTotal | None:
        """Return the memory of the members of a backend: see `tree_total`.

        Args:
            pids: the members, as `pids` listed them.
            memory: the last reading of their memory; None before the first reading.
        """
        return tree_total(memory, self._rss(pids), self._snapshot.taken_at)

    def process_usage(
        self, pid: int, sampler: Sampler, usable_bytes: int, peak_rss: int | None = None
    ) -> ProcessUsage | None:
        """Return the usage of one process.

        Args:
            pid: its PID.
            sampler: the sampler of this process, which has its CPU baselines.
            usable_bytes: the memory that the process may use.
            peak_rss: its highest RSS so far; None if it is not known.

        Returns:
            None if the process has ended or is about to end. The kernel reports 0 bytes for such a
            process, also while its memory is not freed yet.
        """
        row = self._rows.get(pid)
        if row is None or not row.vms:
            return None
        cpu_percent = sampler.cpu_percent(row.cpu_seconds, row.read_at)
        usage = self._sum([pid], cpu_percent, usable_bytes)
        return ProcessUsage(peak_rss=_highest(peak_rss, row.rss), **usage)

    def tree_usage(
        self,
        pids: Sequence[int],
        memory: TreeMemory | None,
        vram: int | None,
        root: ProcessUsage | None,
        usable_bytes: int,
        gtt: int | None = None,
        peak_rss: int | None = None,
    ) -> TreeUsage | None:
        """Add up the usage of the members of a backend.

        Args:
            pids: the members, as `pids` listed them.
            memory: the last reading of the tree's memory; None before the first one.
            vram: the tree's GPU memory in bytes, if known.
            root: the usage of the tree's root. If no other process of the tree runs, and none was
                waited for, it is also the usage of the tree, so that both show the same CPU
                percentage.
            usable_bytes: the memory that the root may use.
            gtt: the system memory that the tree uses through GPUs in bytes, if known.
            peak_rss: the tree's highest RSS so far; None if it is not known.

        Returns:
            None if every process of the tree has ended or is about to end.
        """
        live = [pid for pid in pids if self._rows[pid].vms]
        if not live:
            return None
        if root is not None and len(pids) == 1 and not self._has_waited(live[0]):
            usage = asdict(root)
        else:
            usage = self._sum(live, self._cpu_percent(pids), usable_bytes)
        # Zombies count: their CPU time is theirs until their parent waits for them.
        rows = [self._rows[pid] for pid in pids]
        usage["cpu_seconds"] = sum([row.cpu_seconds + row.children_cpu_seconds for row in rows])
        zombies = sum([row.is_zombie for row in rows])
        usage["peak_rss"] = _highest(peak_rss, self._rss(live))
        if memory is not None and memory.pss is not None:
            usage |= {
                "pss": memory.pss,
                "anonymous": memory.anonymous,
                "file": memory.file,
                "shared": memory.shared,
                "swap": memory.swap,
                "memory_age_seconds": memory.age_seconds(),
            }
        return TreeUsage(processes=len(live), zombies=zombies, vram=vram, gtt=gtt, **usage)

    def _rss(self, pids: Iterable[int]) -> int:
        return sum([self._rows[pid].rss for pid in pids])

    def _sum(
        self, pids: Sequence[int], cpu_percent: float | None, usable_bytes: int
    ) -> dict[str, Any]:
        rows = [self._rows[pid] for pid in pids]
        rss = self._rss(pids)
        return {
            "rss": rss,
            "vms": sum(row.vms for row in rows),
            "memory_percent": percent_of(rss, usable_bytes),
            "cpu_percent": cpu_percent,
            "cpu_seconds": sum(row.cpu_seconds for row in rows),
            "threads": sum(row.threads for row in rows),
            "open_files": self._count_open_files(pids),
        }

    def _count_open_files(self, pids: Iterable[int]) -> int | None:
        """Count open descriptors; None if a process has ended or may not be read.

        The root is counted once for itself and its tree.
        """
        total = 0
        for pid in pids:
            if pid not in self._open_files:
                self._open_files[pid] = _open_files(pid)
            count = self._open_files[pid]
            if count is None:
                return None
            total += count
        return total

    def _cpu_percent(self, pids: Iterable[int]) -> float | None:
        """Add up the CPU percentages of processes, each over the time between its own two rows.

        The CPU time of a process includes that of the descendants that it has waited for since the
        baseline. If a process ignores SIGCHLD, that time is lost: the kernel counts it nowhere.
        """
        if self._baseline is None:
            return None
        percent = 0.0
        for pid in pids:
            row, before = self._rows[pid], self._baseline.rows.get(pid)
            if before is None or before.started != row.started:
                # The process started after the baseline, so all its CPU time counts.
                used = row.cpu_seconds + row.children_cpu_seconds
                seconds = row.read_at - self._baseline.taken_at
            else:
                used = max(0.0, row.cpu_seconds - before.cpu_seconds)
                seconds = row.read_at - before.read_at
                if row.children_cpu_seconds != before.children_cpu_seconds:
                    # A process that ended during a pass may be missing in the baseline. Its whole
                    # CPU time would then count, which may be that of hours.
                    used += min(self._waited_for(pid, self._baseline), seconds * _CORES)
            if seconds < MIN_MEASURED_SECONDS:  # the passes over /proc took different times
                return None
            percent += 100 * used / seconds
        return percent

    def _has_waited(self, pid: int) -> bool:
        """Whether a process has waited for descendants that used CPU time since the baseline."""
        row, before = self._rows[pid], self._baseline.rows.get(pid) if self._baseline else None
        if before is None or before.started != row.started:
            return row.children_cpu_seconds > 0
        return row.children_cpu_seconds != before.children_cpu_seconds

    def _waited_for(self, pid: int, baseline: ProcessSnapshot) -> float:
        """Return the CPU seconds since the baseline of descendants that a process has waited for.

        When a process is waited for, all its CPU time moves to its parent, also the CPU time that
        the baseline shows as its own.
        """
        before = baseline.rows[pid]
        seconds = self._rows[pid].children_cpu_seconds - before.children_cpu_seconds
        queue = list(baseline.children(pid))
        for child in queue:  # the loop extends `queue`
            was, now = baseline.rows[child], self._rows.get(child)
            if now is None or now.started != was.started:
                seconds -= was.cpu_seconds + was.children_cpu_seconds
                queue.extend(baseline.children(child))
        # Less than 0 if descendants were not waited for, or by a process that is no member.
        return max(0.0, seconds)


def _highest(peak_rss: int | None, rss: int) -> int | None:
    """Return the greater of the highest RSS so far and the present RSS; None if not known."""
    return None if peak_rss is None else max(peak_rss, rss)


def _open_files(pid: int) -> int | None:
    folder = f"/proc/{pid}/fd"
    try:
        # Since Linux 6.2, the size of the folder is the number of descriptors; before, it is 0. For
        # 20 descriptors, the size takes 3 us and a list 85 us. Lists would take half of the time of
        # a sweep of 200 backends of five processes.
        return os.stat(folder).st_size or len(os.listdir(folder))
    except OSError:
        return None
