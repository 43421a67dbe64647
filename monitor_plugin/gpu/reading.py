"""A reading of the GPUs: the devices, and which process is meant by each PID."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from ..domain.gpus import Gpu, GpuUse, sum_known
from ..processes.process_table import ProcessIdentity

# After this time without a newer figure of a device, nothing is known of it: its figures are no
# longer part of a backend's memory, nor of the metrics.
STALE_SECONDS = 30.0

_MAX_BYTES = 2**64 - 1
_VRAM, _GTT = "vram:", "gtt:"


class GpuProcess(NamedTuple):
    """A process that uses a GPU, as it was at the time of the reading.

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
        processes: by PID. A PID of `Gpu.uses` is missing if no process had it, or if the process
            that had it started after the read began.
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
            reported: components that hooks have reported, which replace those of the same name. If
                they have a component that is named like the kind alone, that is the total.
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
        taken_at: when the oldest of their figures were read (monotonic seconds); minus infinity if
            a driver has never answered.
        devices: more about the reading of each device, by its component.
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
        self._uses: dict[ProcessIdentity, list[tuple[Gpu, GpuUse]]] = {}
        self._components = {gpu.component: _components_of(gpu) for gpu in gpus}
        self._unread = [gpu for gpu in gpus if gpu.unread]
        # The memory of a device that is divided into instances is that of the instances.
        parents = {gpu.parent for gpu in gpus if gpu.parent}
        self._unknown = {
            name
            for gpu in gpus
            if gpu.uses is None and gpu.uuid not in parents
            for name in self._components[gpu.component]
        }
        for gpu in gpus:
            for use in gpu.uses or ():
                if process := self.process(gpu, use.pid):
                    self._uses.setdefault((use.pid, process.started), []).append((gpu, use))

    @property
    def has_uses(self) -> bool:
        """Whether a process that runs uses a device, as far as is known."""
        return bool(self._uses)

    def process(self, gpu: Gpu, pid: int) -> GpuProcess | None:
        """Return the process that had a PID of `gpu.uses`; None if there was none."""
        device = self._devices.get(gpu.component)
        return device.processes.get(pid) if device else None

    def was_read_since(self, gpu: Gpu, oldest: float) -> bool:
        """Whether a device was read at `oldest` (monotonic seconds) or later."""
        device = self._devices.get(gpu.component)
        return (device.taken_at if device else self.taken_at) >= oldest

    def age_seconds(self, gpu: Gpu) -> float:
        """Return how long ago the figures of a device were read."""
        device = self._devices.get(gpu.component)
        return max(0.0, time.monotonic() - (device.taken_at if device else self.taken_at))

    def is_stale(self, gpu: Gpu) -> bool:
        """Whether the figures of a device are too old to tell its present state."""
        return self.age_seconds(gpu) > STALE_SECONDS

    def held_by(self, processes: Sequence[ProcessIdentity]) -> Held:
        """Add up what processes use, by component. A PID that was reused is another process."""
        if not self.gpus:
            return NOTHING_HELD
        uses: dict[str, tuple[Gpu, list[GpuUse]]] = {}
        for identity in processes:
            for gpu, use in self._uses.get(identity, ()):
                uses.setdefault(gpu.component, (gpu, []))[1].append(use)
        components: dict[str, int] = {}
        unknown = set(self._unknown)
        for gpu, used in uses.values():
            known, not_known = _sum_uses(self._components[gpu.component], used)
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


def held_by(gpus: Iterable[Gpu], pids: Collection[int]) -> dict[str, int]:
    """Add up what processes use, by component: bytes.

    A component is left out if the amount of any of the processes is not known. The component of
    memory of the system that is used through a device begins with `gtt:` instead of `vram:`.
    """
    components: dict[str, int] = {}
    for gpu in gpus:
        if not has_unread_use(gpu, pids):
            uses = [each for each in gpu.uses or () if each.pid in pids]
            components.update(_sum_uses(_components_of(gpu), uses)[0])
    return components


def total_of(gpu: Gpu, use: GpuUse) -> int | None:
    """Return the bytes that a process uses on a device and through it; None if not known."""
    components, unknown = _sum_uses(_components_of(gpu), [use])
    return None if unknown else sum(components.values())


def reports_memory(gpu: Gpu) -> bool:
    """Whether a driver reports any amount of memory on a device. A GPU may have none of its own."""
    return _is_any_known(gpu.total, gpu.used, *(each.memory for each in gpu.uses or ()))


def reports_gtt(gpu: Gpu) -> bool:
    """Whether a driver reports any amount of system memory that is used through a device."""
    return _is_any_known(gpu.gtt_total, gpu.gtt_used, *(each.gtt for each in gpu.uses or ()))


def gtt_component(gpu: Gpu) -> str:
    """Return the component of system memory that is used through a device, if it has any."""
    return _GTT + gpu.component.removeprefix(_VRAM)


def _is_any_known(*amounts: int | None) -> bool:
    return any(each is not None for each in amounts)


def has_unread_use(gpu: Gpu, pids: Iterable[int]) -> bool:
    """Whether processes may use an amount of a device that could not be read.

    A device of which no amount at all is known does not count, such as an integrated GPU of Intel
    that no process uses. It would make the sum over all devices unknown wherever the monitor may
    not read all processes.
    """
    return not gpu.unread.isdisjoint(pids) and (reports_memory(gpu) or reports_gtt(gpu))


def _sum_uses(names: Iterable[str], uses: Sequence[GpuUse]) -> tuple[dict[str, int], set[str]]:
    """Return bytes by component of a device, and the components that are not known."""
    components: dict[str, int] = {}
    unknown: set[str] = set()
    if uses:
        for name in names:
            is_gtt = name.startswith(_GTT)
            amount = sum_known(each.gtt if is_gtt else each.memory for each in uses)
            if amount is None:
                unknown.add(name)
            else:
                components[name] = amount
    return components, unknown


def _components_of(gpu: Gpu) -> Sequence[str]:
    """Return the component of the device, and that of system memory that is used through it.

    The driver of a GPU without memory of its own reports the latter alone.
    """
    if not gpu.component.startswith(_VRAM) or not reports_gtt(gpu):
        return [gpu.component]
    gtt = gtt_component(gpu)
    return [gpu.component, gtt] if reports_memory(gpu) else [gtt]
