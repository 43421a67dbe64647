"""Waits until the GPU memory of a stopped backend is free, and measures how much was freed.

The kernel frees a process's memory before the process is gone. A GPU's driver may free GPU memory
seconds later, and lists the process until then.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from ..domain.byte_sizes import format_bytes
from ..domain.figures import sum_known
from ..domain.gpus import gpus_without_uses
from ..domain.models import Backend, Freed
from ..gpu.reader import GpuReader
from ..gpu.reading import STALE_SECONDS, GpuReading, has_unread_use, total_of
from ..processes.members import Members
from ..processes.process_table import ProcessIdentity, read_rss
from ..processes.tree_memory import TreeMemory, tree_total

_logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.1
_MEASURE_SECONDS = 1.0  # maximum wait for a driver before a stop

# A device, by its component, and a PID.
_DeviceAndPid = tuple[str, int]


class _GpuMemory(NamedTuple):
    """The GPU memory that members use.

    Attributes:
        uses: bytes by device and PID; None if the driver does not report the bytes. A process that
            uses 0 bytes of a device is left out.
        unknown: the devices of which it is not known which processes use them.
    """

    uses: dict[_DeviceAndPid, int | None]
    unknown: frozenset[str]

    def total(self) -> int | None:
        """Return the sum in bytes; None if any part of the sum is not known."""
        return None if self.unknown else sum_known(self.uses.values())

    def freed_until(self, later: _GpuMemory) -> int | None:
        """Return the bytes that `later` no longer has; None if any of the amounts is not known."""
        if self.total() is None or later.total() is None:
            return None
        return sum(
            max(0, (amount or 0) - (later.uses.get(key) or 0)) for key, amount in self.uses.items()
        )


class HeldMemory(NamedTuple):
    """The memory that the members of a backend held before its stop.

    Attributes:
        members: the members.
        memory: bytes of the machine's memory; None if not known.
        gpus: the GPU memory of the members; None if the machine has no GPU, or if no GPU was read.
        waited_seconds: how long the reading of the GPUs took.
    """

    members: Collection[ProcessIdentity]
    memory: int | None
    gpus: _GpuMemory | None = None
    waited_seconds: float = 0.0


class MemoryRelease:
    """Measures a backend's memory, and waits until its GPU memory is free. Thread-safe.

    Args:
        gpu_reader: reads the GPUs.
        seconds: maximum time of `measure` and `wait` together for one backend, even if a driver
            hangs. 0: no GPU is read, and `wait` returns immediately.
    """

    def __init__(self, gpu_reader: GpuReader, seconds: float) -> None:
        self._gpu_reader = gpu_reader
        self._seconds = seconds

    def measure(self, members: Members, last: TreeMemory | None) -> HeldMemory:
        """Measure the memory that the members of a backend hold; waits at most 1 s for a driver.

        Args:
            members: the members.
            last: the last reading of their memory; None before the first reading.
        """
        identities = {members.root, *members.identities()}
        rss = read_rss(identities)
        total = tree_total(last, rss, time.monotonic()) if rss else None
        memory = total.amount if total else None
        if self._seconds <= 0:
            return HeldMemory(identities, memory)
        began_at = time.monotonic()
        reading = self._gpu_reader.read(0.0, min(_MEASURE_SECONDS, self._seconds))
        now = time.monotonic()
        gpus = _find_uses(reading, identities, now - STALE_SECONDS) if reading.gpus else None
        return HeldMemory(identities, memory, gpus, now - began_at)

    def wait(
        self,
        backend: Backend,
        held: HeldMemory,
        members: Collection[ProcessIdentity],
        ended_at: float,
        interrupted: threading.Event,
    ) -> Freed:
        """Wait until no member of a backend uses GPU memory; log a warning if one still does.

        Returns immediately if the members used no GPU memory, or if that is not known.

        Args:
            backend: the backend.
            held: the memory that the members held before the stop.
            members: the members that were found during the stop.
            ended_at: when all members had ended (monotonic seconds).
            interrupted: ends the wait when it is set.
        """
        before = held.gpus
        if before is None or not before.uses:
            total = before.total() if before else None
            return Freed(memory=held.memory, gpu=total, gpu_left=total)
        members = {*held.members, *members}
        devices = {component for component, _ in before.uses}
        deadline = ended_at + self._seconds - held.waited_seconds
        while True:
            max_age_seconds = min(time.monotonic() - ended_at, _POLL_SECONDS)
            reading = self._gpu_reader.read(max_age_seconds, _POLL_SECONDS)
            left = _find_uses(reading, members, ended_at, devices)
            now = time.monotonic()
            if not (left.uses or left.unknown & devices):
                break
            if now >= deadline:
                self._warn(backend, left.uses, left.unknown & devices)
                break
            if interrupted.wait(min(_POLL_SECONDS, deadline - now)):
                break
        return Freed(
            memory=held.memory,
            gpu=before.freed_until(left),
            gpu_left=left.total(),
            seconds=round(now - ended_at, 3),
        )

    def _warn(
        self, backend: Backend, left: Mapping[_DeviceAndPid, int | None], unknown: Iterable[str]
    ) -> None:
        reasons = [
            f"{component} still lists process {pid}"
            + ("" if amount is None else f", {format_bytes(amount)}")
            for (component, pid), amount in left.items()
        ]
        reasons += [f"{component} could not be read" for component in sorted(unknown)]
        _logger.warning(
            "model %r (process %d): all its processes have ended, but its GPU memory was not seen "
            "to be free within memory_release_seconds (%g): %s; the next model may not fit",
            backend.model,
            backend.pid,
            self._seconds,
            "; ".join(reasons),
        )


def _find_uses(
    reading: GpuReading,
    members: Collection[ProcessIdentity],
    oldest: float,
    devices: Collection[str] = (),
) -> _GpuMemory:
    """Find the GPU memory that members use.

    Args:
        reading: the reading.
        members: the members, including those that have ended, whose PIDs a driver may still list.
            A later process that has reused such a PID does not count.
        oldest: a device whose last reading is older is unknown (monotonic seconds).
        devices: devices that are unknown if the reading does not have them.
    """
    uses: dict[_DeviceAndPid, int | None] = {}
    unknown = {*devices} - {each.component for each in reading.gpus}
    without_uses = {each.component for each in gpus_without_uses(reading.gpus)}
    pids = {pid for pid, _ in members}
    for gpu in reading.gpus:
        if not reading.was_read_since(gpu, oldest):
            unknown.add(gpu.component)
            continue
        if gpu.component in without_uses or has_unread_use(gpu, pids):
            unknown.add(gpu.component)
        for use in gpu.uses or ():
            process = reading.process(gpu, use.pid)
            is_member = process is None or (use.pid, process.started) in members
            if use.pid in pids and is_member and (amount := total_of(gpu, use)) != 0:
                uses[gpu.component, use.pid] = amount
    return _GpuMemory(uses, frozenset(unknown))
