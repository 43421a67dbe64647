"""Reads how much memory and CPU processes may use, from control groups of both versions."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import psutil
from msgspec.structs import replace

from ..concurrency.single_flight import SingleFlight
from ..domain.models import Limits
from .control_group_files import Group, Mount, find_folders, read_mounts
from .control_groups import ControlGroups
from .kernel_files import read_number, read_numbers, read_text

T = TypeVar("T")
N = TypeVar("N", int, float)

_FIGURES_MAX_AGE_SECONDS = 1.0
# A process is usually moved to its control group when it starts: see `ControlGroups`.
_GROUPS_MAX_AGE_SECONDS = 5.0
# After this time, the mounts are read again, and the folders of control groups are found anew.
_FOLDERS_MAX_AGE_SECONDS = 60.0
# Version 1 writes "no limit" as the largest number of whole pages in 63 bits.
_NO_LIMIT = 2**62
_CORES = os.cpu_count() or 1


class _Memory(NamedTuple):
    """The memory limit of one control group, and how much may be used before it is reached.

    Both in bytes; None if there is no limit, or if it cannot be read.
    """

    limit: int | None = None
    available: int | None = None


class _Pressure(NamedTuple):
    """The pressure on memory and on CPU cores, in percent; None if it cannot be read."""

    memory: float | None = None
    cpu: float | None = None


class _Figure(Generic[T]):
    """A figure of a folder. It is read again once it is older than 1 s.

    Two threads may read the figure at the same time, which takes microseconds. The lock and the
    future of a `SingleFlight` would take as long as the reading.

    Args:
        read: reads the figure.
        folder: the argument of `read`.
    """

    __slots__ = ("_folder", "_read", "_value")

    def __init__(self, read: Callable[[str], T], folder: str) -> None:
        self._read = read
        self._folder = folder
        self._value: tuple[float, T] | None = None  # when it was read, and the figure

    def get(self) -> T:
        now = time.monotonic()
        value = self._value
        if value is None or now - value[0] > _FIGURES_MAX_AGE_SECONDS:
            value = self._value = now, self._read(self._folder)
        return value[1]


class _Figures(NamedTuple):
    """Readers of the figures of a process's control groups.

    Attributes:
        memory: the memory of the process's group, and of the groups above it.
        quotas: the CPU quotas of these groups, in cores.
        pressure: the pressure on the process's group; empty without version 2.
    """

    memory: Sequence[_Figure[_Memory]]
    quotas: Sequence[_Figure[float | None]]
    pressure: Sequence[_Figure[_Pressure]]


class LimitsReader:
    """Reads the limits of processes. Safe to call from any thread.

    The figures of a control group are at most 1 s old, and all its processes share them. A process
    that moves to another group has that group's limits after at most 5 s.

    Args:
        control_groups: reads the control groups of processes.
        proc: the mount point of /proc.

    Attributes:
        physical_bytes: the physical memory of the machine.
    """

    def __init__(self, control_groups: ControlGroups, proc: Path | str = "/proc") -> None:
        self._control_groups = control_groups
        self._folders = SingleFlight(_FOLDERS_MAX_AGE_SECONDS, lambda: _Folders(read_mounts(proc)))
        self.physical_bytes = psutil.virtual_memory().total
        self._available = _Figure(self._read_available, f"{proc}/meminfo")
        self._pressure = _Figure(_read_machine_pressure, f"{proc}/pressure")

    def own(self) -> Limits:
        """Read the limits of the monitor itself, and the pressure on the machine."""
        limits = self.read(os.getpid(), 0.0)
        pressure = self._pressure.get()
        return replace(limits, memory_pressure=pressure.memory, cpu_pressure=pressure.cpu)

    def read(self, pid: int, started: float) -> Limits:
        """Read the limits of a process, and the pressure on its control group.

        Args:
            pid: its PID.
            started: its start time in clock ticks since boot; 0 if it is not known.
        """
        groups = self._control_groups.of(pid, started, _GROUPS_MAX_AGE_SECONDS).own
        figures = self._folders.get().figures(groups)
        available = self._available.get()
        limited = [
            each
            for each in (reader.get() for reader in figures.memory)
            if each.limit is not None and each.limit < self.physical_bytes
        ]
        amounts = [available, *(each.available for each in limited)]
        quotas = [reader.get() for reader in figures.quotas]
        pressure = figures.pressure[0].get() if figures.pressure else _Pressure()
        return Limits(
            memory_limit=_least(each.limit for each in limited),
            memory_available=None if None in amounts else _least(amounts),
            cpu_limit=_least([_count_cores(pid), *quotas]),
            memory_pressure=pressure.memory,
            cpu_pressure=pressure.cpu,
        )

    def usable_bytes(self, limits: Limits) -> int:
        """Return the bytes of memory that a process with these limits may use.

        That is its limit, or the physical memory if it has no limit.
        """
        return self.physical_bytes if limits.memory_limit is None else limits.memory_limit

    def _read_available(self, _: str) -> int | None:
        """Read the memory that is available on the machine, in bytes."""
        try:
            memory = psutil.virtual_memory()
        except OSError:  # no file descriptor is free
            return None
        self.physical_bytes = memory.total
        return int(memory.available)


def has_same_limits(first: Limits, second: Limits) -> bool:
    """Whether two processes have the same limits of memory and CPU cores."""
    return (first.memory_limit, first.cpu_limit) == (second.memory_limit, second.cpu_limit)


class _Folders:
    """The folders of control groups, with their figures.

    Args:
        mounts: the mounts of control groups.
    """

    def __init__(self, mounts: Sequence[Mount]) -> None:
        self._mounts = mounts
        self._figures: dict[frozenset[Group], _Figures] = {}
        self._readers: dict[tuple[Callable[[str], object], str], _Figure[Any]] = {}

    def figures(self, groups: frozenset[Group]) -> _Figures:
        """Return the figures of a process that is in these groups."""
        found = self._figures.get(groups)
        if found is None:
            found = self._figures[groups] = self._find(groups)
        return found

    def _find(self, groups: frozenset[Group]) -> _Figures:
        def find(controller: str) -> list[str]:
            return [
                folder
                for group in groups
                if group.has(controller)
                for folder in find_folders(group, self._mounts)
            ]

        # If version 1 has a controller, version 2 does not have the controller's files.
        unified, memory, cpu = find(""), find("memory"), find("cpu")
        return _Figures(
            [
                *self._readers_of(_read_memory_1, memory[:-1]),
                *self._readers_of(_read_top_memory_1, memory[-1:]),
                *self._readers_of(_read_memory_2, [] if memory else unified),
            ],
            [
                *self._readers_of(_read_quota_1, cpu),
                *self._readers_of(_read_quota_2, [] if cpu else unified),
            ],
            self._readers_of(_read_group_pressure, unified[:1]),
        )

    def _readers_of(self, read: Callable[[str], T], folders: Sequence[str]) -> list[_Figure[T]]:
        """Return the readers of a figure of these folders."""
        return [
            self._readers.setdefault((read, folder), _Figure(read, folder)) for folder in folders
        ]


def _read_memory_1(folder: str) -> _Memory:
    return _memory_1(folder, [read_number(f"{folder}/memory.limit_in_bytes")])


def _read_top_memory_1(folder: str) -> _Memory:
    """Read the memory of the topmost visible group. Its limit includes the groups above it."""
    limits = [read_number(f"{folder}/memory.limit_in_bytes")]
    if not os.access(f"{folder}/release_agent", os.F_OK):  # only the root of version 1 has it
        limits.append(read_numbers(f"{folder}/memory.stat").get("hierarchical_memory_limit"))
    return _memory_1(folder, limits)


def _memory_1(folder: str, limits: Sequence[int | None]) -> _Memory:
    # Sums over the group and the groups below it, like `memory.usage_in_bytes`.
    droppable = ("total_active_file", "total_inactive_file")
    return _memory(folder, limits, "memory.usage_in_bytes", droppable)


def _read_memory_2(folder: str) -> _Memory:
    limits = [read_number(f"{folder}/{name}") for name in ("memory.max", "memory.high")]
    droppable = ("active_file", "inactive_file", "slab_reclaimable")
    return _memory(folder, limits, "memory.current", droppable)


def _memory(
    folder: str, limits: Sequence[int | None], usage_name: str, droppable: Sequence[str]
) -> _Memory:
    """Return the memory of a control group.

    Args:
        folder: its folder.
        limits: its limits in bytes; None where there is none.
        usage_name: the name of the file with the usage in bytes.
        droppable: the names in memory.stat of the memory that the kernel can drop. MemAvailable of
            /proc/meminfo includes such memory as well.
    """
    limit = _least(limits)
    if limit is None or limit >= _NO_LIMIT:
        return _Memory()
    usage = read_number(f"{folder}/{usage_name}")
    if usage is None:
        return _Memory(limit)
    stat = read_numbers(f"{folder}/memory.stat")
    used = usage - sum(stat.get(name, 0) for name in droppable)
    return _Memory(limit, min(limit, max(0, limit - used)))


def _read_quota_1(folder: str) -> float | None:
    quota = read_number(f"{folder}/cpu.cfs_quota_us")  # -1: no limit
    period = read_number(f"{folder}/cpu.cfs_period_us") if quota and quota > 0 else None
    return quota / period if quota and period else None


def _read_quota_2(folder: str) -> float | None:
    """Read `cpu.max`: quota and period in microseconds, `max 100000` without a limit."""
    match = re.match(r"(\d+) ([1-9]\d*)$", _read(f"{folder}/cpu.max"))
    return int(match[1]) / int(match[2]) if match else None


def _read_group_pressure(folder: str) -> _Pressure:
    if not os.access(f"{folder}/cgroup.type", os.F_OK):
        return _Pressure()  # the root group, whose pressure is the machine's
    return _Pressure(*(_read_average(f"{folder}/{name}.pressure") for name in ("memory", "cpu")))


def _read_machine_pressure(folder: str) -> _Pressure:
    return _Pressure(*(_read_average(f"{folder}/{name}") for name in ("memory", "cpu")))


def _read_average(path: str) -> float | None:
    """Read the average over 10 s: `some avg10=0.12 avg60=0.08 avg300=0.02 total=123456`."""
    match = re.match(r"some avg10=([\d.]+) ", _read(path))
    return float(match[1]) if match else None


def _read(path: str) -> str:
    """Read a file; empty if it cannot be read, for example because the group was removed."""
    try:
        return read_text(path)
    except OSError:
        return ""


def _count_cores(pid: int) -> float | None:
    """Count the cores that a process may run on, also by its cpuset; None if it has ended."""
    try:
        cores = os.sched_getaffinity(pid)
        if len(cores) < _CORES:
            # Programs pin their first thread to a core, and others to other cores (OMP_PROC_BIND).
            for thread in os.listdir(f"/proc/{pid}/task"):
                with contextlib.suppress(ProcessLookupError):
                    cores |= os.sched_getaffinity(int(thread))
    except OSError:
        return None
    return float(len(cores))


def _least(amounts: Iterable[N | None]) -> N | None:
    return min((each for each in amounts if each is not None), default=None)
