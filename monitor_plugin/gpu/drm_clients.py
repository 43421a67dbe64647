"""The memory of GPUs that processes use, from the fdinfo files of the kernel's DRM drivers.

Source of the format: the kernel's Documentation/gpu/drm-usage-stats.rst.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ..domain.figures import sum_known
from ..domain.gpus import GpuUse

_logger = logging.getLogger(__name__)

# The kernel may report several kinds of figures of a memory region. The first one found is used.
_KINDS = ("resident", "memory", "total")
_ON_DEVICE, _IN_SYSTEM_MEMORY = (
    re.compile(rf"drm-(?:{'|'.join(_KINDS)})-({regions})")
    for regions in (r"vram\d*|(?:stolen-)?local\d+", r"gtt|system\d+")
)
_UNITS = {"": 1, "KiB": 1024, "MiB": 1024**2}
_MAX_CPU_SHARE = 0.02  # of one core, for the search of all processes


class DrmUsage(NamedTuple):
    """The processes that use GPUs.

    Attributes:
        uses: by the PCI address of the device; each process is listed once per device.
        unread: PIDs of processes that could not be read.
        error: why one of these processes could not be read; None if all were read.
    """

    uses: Mapping[str, Sequence[GpuUse]]
    unread: frozenset[int]
    error: str | None


class DrmClientReader:
    """Reads which processes have clients of DRM drivers, and how much memory each client uses.

    A client is created each time a device file, such as /dev/dri/renderD128, is opened. Several
    processes have the same client if the file descriptor was inherited or sent. The client counts
    once, for the process with the smallest PID. This is most often the process that opened the
    file, so no backend is charged for a client that it inherited.

    Memory on the device is in the regions `vram` (amdgpu), `vram0`... (xe), `local0`... and
    `stolen-local0`... (i915). System memory that the GPU uses is in the regions `gtt` (amdgpu, xe)
    and `system0`... (i915). Other regions do not count: the GPU cannot use the memory in `cpu`
    (amdgpu) and `system` (xe) until it is moved back, and the firmware has reserved `stolen` (xe)
    and `stolen-system0` (i915). The size of a region is `drm-resident-`, in older kernels
    `drm-memory-`, or `drm-total-` if the kernel reports neither. Each client reports the memory
    that it shares with other clients.

    Compute processes of ROCm (/dev/kfd) also have a /dev/dri/renderD* file open, and allocate in
    the address space of that file. Its fdinfo therefore includes their memory. This follows from
    the source of the kernel, and was not tried on a device.

    A search of the descriptors of all processes takes 50 to 80 ms of CPU time for 580 processes
    with 13,000 descriptors. Processes that had no device file open are therefore searched again
    only after 50 times the CPU time of the search. Each reading searches the new processes and
    those that had such a file open, which takes 2 ms there.

    Args:
        proc: mount point of procfs.
    """

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._proc = proc
        self._search_at = 0.0
        self._without_files: set[int] = set()
        self._unread: dict[int, str] = {}
        self._has_logged = False

    def read(self) -> DrmUsage:
        """Read all clients of all processes.

        Raises:
            OSError: procfs cannot be listed.
        """
        pids = {int(name) for name in os.listdir(self._proc) if name.isdecimal()}
        begun, is_search = time.thread_time(), time.monotonic() >= self._search_at
        if is_search:
            self._without_files.clear()
            self._unread.clear()
        self._without_files &= pids
        self._unread = {pid: error for pid, error in self._unread.items() if pid in pids}
        counted: set[tuple[str, str]] = set()
        clients: dict[str, dict[int, list[GpuUse]]] = {}
        for pid in sorted(pids - self._without_files - self._unread.keys()):
            for device, client, use in self._read_clients(pid):
                if (device, client) not in counted:
                    counted.add((device, client))
                    clients.setdefault(device, {}).setdefault(pid, []).append(use)
        if is_search:
            duration = time.thread_time() - begun
            self._search_at = time.monotonic() + duration / _MAX_CPU_SHARE
        return DrmUsage(
            {
                device: [_add_up(uses) for uses in by_pid.values()]
                for device, by_pid in clients.items()
            },
            frozenset(self._unread),
            next(iter(self._unread.values()), None),
        )

    def _read_clients(self, pid: int) -> Iterator[tuple[str, str, GpuUse]]:
        """Read the PCI address, the ID and the memory of each client that a process has open."""
        try:
            texts = list(_read_fdinfo(f"{self._proc}/{pid}"))
        except (FileNotFoundError, ProcessLookupError):  # the process has ended
            return
        except OSError as error:
            self._unread[pid] = error.strerror or str(error)
            return
        if not texts:
            self._without_files.add(pid)
        for text in texts:
            fields = {}
            for line in text.splitlines():
                key, _, value = line.partition(":")
                fields[key.strip()] = value.strip()
            device, client = fields.get("drm-pdev"), fields.get("drm-client-id")
            if device is not None and client is not None:
                memory, gtt = (self._sum(fields, each) for each in (_ON_DEVICE, _IN_SYSTEM_MEMORY))
                yield device, client, GpuUse(pid, memory, gtt)

    def _sum(self, fields: Mapping[str, str], pattern: re.Pattern[str]) -> int | None:
        """Add up the bytes of the matching regions; None if there are none, or one is invalid."""
        regions = {match[1] for key in fields if (match := pattern.fullmatch(key))}
        keys = [
            next(key for kind in _KINDS if (key := f"drm-{kind}-{region}") in fields)
            for region in regions
        ]
        try:
            return sum(_parse_bytes(fields[key]) for key in keys) if keys else None
        except ValueError as error:
            if not self._has_logged:
                self._has_logged = True
                _logger.warning(
                    "the GPU memory of processes is not known: the driver %r reports %s "
                    "(logged once)",
                    fields.get("drm-driver"),
                    error,
                )
            return None


def _read_fdinfo(process: str) -> Iterator[str]:
    """Read the fdinfo of each file in /dev/dri that a process has open.

    Args:
        process: the path of its folder in procfs.

    Raises:
        OSError: the process has ended, or may not be read.
    """
    try:
        folder = os.open(f"{process}/fd", os.O_RDONLY | os.O_DIRECTORY)
    except PermissionError:
        # Only root may list `fd` of a process that has ended and was not waited for.
        if os.listdir(f"{process}/fdinfo"):
            raise
        return
    try:
        for number in os.listdir(folder):
            try:
                # A path relative to the open folder saves a third of the time.
                if "/dri/" in os.readlink(number, dir_fd=folder):
                    yield Path(f"{process}/fdinfo/{number}").read_text(errors="replace")
            except (FileNotFoundError, ProcessLookupError):  # the file was closed
                pass
    finally:
        os.close(folder)


def _parse_bytes(amount: str) -> int:
    number, _, unit = amount.partition(" ")
    if not number.isdecimal() or unit.strip() not in _UNITS:
        raise ValueError(f"{amount!r} as an amount of memory")
    return int(number) * _UNITS[unit.strip()]


def _add_up(uses: Sequence[GpuUse]) -> GpuUse:
    """Add up the memory that the clients of one process use."""
    return GpuUse(
        uses[0].pid, sum_known(each.memory for each in uses), sum_known(each.gtt for each in uses)
    )
