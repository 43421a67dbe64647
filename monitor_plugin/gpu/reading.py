"""A reading of the GPUs: the devices, and the processes that the listed PIDs belong to."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from ..domain.figures import sum_known
from ..domain.gpus import Gpu, GpuUse, gpus_without_uses, gtt_component
from ..processes.process_table import ProcessIdentity

# Figures of a device that are older count as unknown. They are neither part of a backend's memory
# nor of the metrics.
STALE_SECONDS = 30.0

_MAX_BYTES = 2**64 - 1


class GpuProcess(NamedTuple):
    """A process that used a GPU at the time of the reading.

    Attributes:
        started: its start time, as in `ProcessRow`.
        name: the name of its program.
        user: the name of the user that it runs as, or the user's number; None if not known.
    """

    started: float
    name: str
    user: str | None


class DeviceReading(NamedTuple):
    """When a device was read, and the processes that used it then.

    Attributes:
        taken_at: when the read began (monotonic seconds).
        processes: by PID. A PID of `Gpu.uses` is missing if no process had that PID, or if the
            process started after the read began.
    """

    taken_at: float
    processes: Mapping[int, GpuProcess]


class Held(NamedTuple):
    """The memory of GPUs that some processes use.

    Attributes:
        components: bytes by component.
        unknown: the components whose bytes are not known.
    """

    components: dict[str, int]
    unknown: frozenset[str]

    def total(self, kind: str, reported: Mapping[str, int]) -> int | None:
        """Add up the components of one kind; None if there is none, or if one is not known.

        Args:
            kind: `vram` or `gtt`.
            reported: components that hooks have reported. They replace components of the same
                name. A reported component whose name is `kind` itself is the total.
        """
        if kind in reported:
            return reported[kind]
        known = {**self.components, **reported}
        if any(each.startswith(f"{kind}:") for each in self.unknown - known.keys()):
            return None
        amounts = [amount for name, amount in known.items() if name.startswith(f"{kind}:")]
        return min(_MAX_BYTES, sum(amounts)) if amounts else None


NOTHING_HELD = Held({}, frozenset())


class GpuReading:
    """All devices, and when they were read. Immutable.

    Args:
        gpus: the devices.
        taken_at: when the oldest figures were read (monotonic seconds); minus infinity if a driver
            has never answered.
        devices: by component: when each device was read, and the processes that used it.
    """

    def __init__(
        self,
        gpus: Sequence[Gpu] = (),
        taken_at: float = -math.inf,
        devices: Mapping[str, DeviceReading] | None = None,
    ) -> None:
        self.gpus = gpus
        self.taken_at = taken_at
        self._devices = devices or {}
        self._uses: dict[ProcessIdentity, list[tuple[str, GpuUse]]] = {}
        self._components = {gpu.component: _components_of(gpu) for gpu in gpus}
        self._unread = [gpu for gpu in gpus if gpu.unread]
        self._unknown = {
            name for gpu in gpus_without_uses(gpus) for name in self._components[gpu.component]
        }
        self._users: dict[str, set[ProcessIdentity]] = {}  # by component
        for gpu in gpus:
            users = self._users[gpu.component] = set()
            for use in gpu.uses or ():
                if process := self.process(gpu, use.pid):
                    identity = use.pid, process.started
                    users.add(identity)
                    self._uses.setdefault(identity, []).append((gpu.component, use))

    @property
    def has_uses(self) -> bool:
        """Whether any process that existed at the time of the reading is known to use a device."""
        return bool(self._uses)

    def process(self, gpu: Gpu, pid: int) -> GpuProcess | None:
        """Return the process that had a PID of `gpu.uses`; None if no process had the PID."""
        device = self._devices.get(gpu.component)
        return device.processes.get(pid) if device else None

    def was_read_since(self, gpu: Gpu, oldest: float) -> bool:
        """Whether a device was read at `oldest` (monotonic seconds) or later."""
        return self._taken_at(gpu) >= oldest

    def age_seconds(self, gpu: Gpu) -> float:
        """Return how long ago the figures of a device were read."""
        return max(0.0, time.monotonic() - self._taken_at(gpu))

    def is_stale(self, gpu: Gpu) -> bool:
        """Whether the figures of a device are too old to tell its present state."""
        return self.age_seconds(gpu) > STALE_SECONDS

    def utilization_of(self, processes: Sequence[ProcessIdentity]) -> float | None:
        """Return the highest utilization of the GPUs that these processes use alone, in percent.

        Of a GPU that other processes use as well, or may use, it is not known for which of them it
        works. None if no such GPU is left, or if the utilization of none of them is known.
        """
        if not self.gpus:
            return None
        own = set(processes)
        pids = {pid for pid, _ in processes}
        known = [
            gpu.utilization_percent
            for gpu in self.gpus
            if gpu.utilization_percent is not None
            and (users := self._users[gpu.component])
            and users <= own
            and gpu.unread <= pids
            and not self.is_stale(gpu)
        ]
        return max(known, default=None)

    def _taken_at(self, gpu: Gpu) -> float:
        device = self._devices.get(gpu.component)
        return device.taken_at if device else self.taken_at

    def held_by(self, processes: Sequence[ProcessIdentity]) -> Held:
        """Add up the GPU memory that processes use, by component.

        A process that has reused the PID of a listed process is not charged.
        """
        if not self.gpus:
            return NOTHING_HELD
        by_device: dict[str, list[GpuUse]] = {}
        for identity in processes:
            for device, use in self._uses.get(identity, ()):
                by_device.setdefault(device, []).append(use)
        components: dict[str, int] = {}
        unknown = set(self._unknown)
        for device, uses in by_device.items():
            known, not_known = _sum_uses(self._components[device], uses)
            components.update(known)
            unknown |= not_known
        pids = [pid for pid, _ in processes]
        for gpu in self._unread:
            if has_unread_use(gpu, pids):
                unknown.update(self._components[gpu.component])
        if time.monotonic() - self.taken_at > STALE_SECONDS:
            for gpu in filter(self.is_stale, self.gpus):
                unknown.update(self._components[gpu.component])
        for name in unknown & components.keys():
            del components[name]
        return Held(components, frozenset(unknown))


def total_of(gpu: Gpu, use: GpuUse) -> int | None:
    """Return the bytes of device memory and GTT that a process uses; None if not known."""
    components, unknown = _sum_uses(_components_of(gpu), [use])
    return None if unknown else sum(components.values())


def reports_memory(gpu: Gpu) -> bool:
    """Whether the driver reports any amount of device memory. Integrated GPUs may have none."""
    return _is_any_known(gpu.total, gpu.used, *(each.memory for each in gpu.uses or ()))


def reports_gtt(gpu: Gpu) -> bool:
    """Whether the driver reports any amount of system memory that the device uses."""
    return _is_any_known(gpu.gtt_total, gpu.gtt_used, *(each.gtt for each in gpu.uses or ()))


def _is_any_known(*amounts: int | None) -> bool:
    return any(each is not None for each in amounts)


def has_unread_use(gpu: Gpu, pids: Iterable[int]) -> bool:
    """Whether one of the processes may use memory of a device, and could not be read.

    This is False for a device of which no amount at all is known, such as an integrated GPU of
    Intel that no process uses. Otherwise such a device would make the sum over all devices unknown
    wherever the monitor may not read all processes.
    """
    return not gpu.unread.isdisjoint(pids) and (reports_memory(gpu) or reports_gtt(gpu))


def _sum_uses(names: Iterable[str], uses: Sequence[GpuUse]) -> tuple[dict[str, int], set[str]]:
    """Add up the uses of a device.

    Args:
        names: the components of the device.
        uses: the uses.

    Returns:
        The bytes by component, and the components whose bytes are not known.
    """
    components: dict[str, int] = {}
    unknown: set[str] = set()
    if uses:
        for name in names:
            is_gtt = name.startswith("gtt:")
            amount = sum_known(each.gtt if is_gtt else each.memory for each in uses)
            if amount is None:
                unknown.add(name)
            else:
                components[name] = amount
    return components, unknown


def _components_of(gpu: Gpu) -> Sequence[str]:
    """Return the names of a device's components: for its own memory, and for system memory.

    A GPU without memory of its own has only the component for system memory.
    """
    if not gpu.component.startswith("vram:") or not reports_gtt(gpu):
        return [gpu.component]
    gtt = gtt_component(gpu)
    return [gpu.component, gtt] if reports_memory(gpu) else [gtt]
