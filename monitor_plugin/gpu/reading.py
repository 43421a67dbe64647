"""A reading of the GPUs: the devices, and which process is meant by each PID."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from ..domain.gpus import Gpu, GpuUse
from ..processes.process_table import ProcessIdentity

# After this time without a newer figure of a device, nothing is known of it: its figures are no
# longer part of a backend's memory, nor of the metrics.
STALE_SECONDS = 30.0

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
        return sum(amounts) if amounts else None


NOTHING_HELD = Held({}, frozenset())


@dataclass(frozen=True)
class GpuReading:
    """All devices, and when they were read.

    Attributes:
        gpus: the devices.
        taken_at: when the oldest of their figures were read (monotonic seconds); minus infinity if
            a driver has never answered.
        devices: more about the reading of each device, by its component.
    """

    gpus: Sequence[Gpu] = ()
    taken_at: float = -math.inf
    devices: Mapping[str, DeviceReading] = field(default_factory=dict)

    def __post_init__(self) -> None:
        by_process: dict[ProcessIdentity, list[tuple[Gpu, GpuUse]]] = {}
        for gpu in self.gpus:
            for use in gpu.uses or ():
                process = self.process(gpu, use.pid)
                if process:
                    identity = use.pid, process.started
                    by_process.setdefault(identity, []).append((gpu, use))
        object.__setattr__(self, "_by_process", by_process)

    def process(self, gpu: Gpu, pid: int) -> GpuProcess | None:
        """Return the process that had a PID of `gpu.uses`; None if there was none."""
        device = self.devices.get(gpu.component)
        return device.processes.get(pid) if device else None

    def age_seconds(self, gpu: Gpu) -> float:
        """Return how long ago the figures of a device were read."""
        device = self.devices.get(gpu.component)
        return max(0.0, time.monotonic() - (device.taken_at if device else self.taken_at))

    def is_stale(self, gpu: Gpu) -> bool:
        """Whether the figures of a device are too old to tell its present state."""
        return self.age_seconds(gpu) > STALE_SECONDS

    def held_by(self, processes: Iterable[ProcessIdentity]) -> Held:
        """Add up what processes use, by component. A PID that was reused is another process."""
        if not self.gpus:
            return NOTHING_HELD
        by_process: Mapping[ProcessIdentity, Sequence[tuple[Gpu, GpuUse]]]
        by_process = self._by_process  # type: ignore[attr-defined]
        uses: dict[str, list[GpuUse]] = {each.component: [] for each in self.gpus}
        identities = list(processes)
        for identity in identities:
            for gpu, use in by_process.get(identity, ()):
                uses[gpu.component].append(use)
        pids = {pid for pid, _ in identities}
        parents = {each.parent for each in self.gpus} - {None}
        components: dict[str, int] = {}
        unknown: set[str] = set()
        for gpu in self.gpus:
            # The memory of a device that is divided into instances is that of the instances.
            if self.is_stale(gpu) or (gpu.uses is None and gpu.uuid not in parents):
                unknown |= {gpu.component, _gtt_component(gpu)}
            else:
                known, not_known = _sum_uses(gpu, uses[gpu.component], pids)
                components.update(known)
                unknown |= not_known
        return Held(components, frozenset(unknown))


def held_by(gpus: Iterable[Gpu], pids: Collection[int]) -> dict[str, int]:
    """Add up what processes use, by component: bytes.

    A component is left out if the amount of any of the processes is not known. The component of
    memory of the system that is used through a device begins with `gtt:` instead of `vram:`.
    """
    components: dict[str, int] = {}
    for gpu in gpus:
        uses = [each for each in gpu.uses or () if each.pid in pids]
        components.update(_sum_uses(gpu, uses, pids)[0])
    return components


def reports_memory(gpu: Gpu) -> bool:
    """Whether a driver reports any amount of memory on a device. A GPU may have none of its own."""
    return _is_any_known(gpu.total, gpu.used, *(each.memory for each in gpu.uses or ()))


def reports_gtt(gpu: Gpu) -> bool:
    """Whether a driver reports any amount of system memory that is used through a device."""
    return _is_any_known(gpu.gtt_total, gpu.gtt_used, *(each.gtt for each in gpu.uses or ()))


def _sum_uses(
    gpu: Gpu, uses: Sequence[GpuUse], pids: Collection[int]
) -> tuple[dict[str, int], set[str]]:
    """Return bytes by component, and the components that are not known.

    Args:
        gpu: the device.
        uses: those of the processes.
        pids: all of the processes.
    """
    is_unread = not gpu.unread.isdisjoint(pids)
    if not uses and not is_unread:
        return {}, set()
    components: dict[str, int] = {}
    unknown: set[str] = set()
    has_gtt = reports_gtt(gpu)
    has_memory = reports_memory(gpu) or bool(uses and not has_gtt)
    for name, amounts in (
        (gpu.component if has_memory else "", [each.memory for each in uses]),
        (_gtt_component(gpu) if has_gtt else "", [each.gtt for each in uses]),
    ):
        known = [each for each in amounts if each is not None]
        if name and len(known) == len(amounts) and not is_unread:
            components[name] = sum(known)
        elif name:
            unknown.add(name)
    return components, unknown


def _is_any_known(*amounts: int | None) -> bool:
    return any(each is not None for each in amounts)


def _gtt_component(gpu: Gpu) -> str:
    """Return the component of the system's memory; empty if the device's has another prefix."""
    is_vram = gpu.component.startswith(_VRAM)
    return _GTT + gpu.component.removeprefix(_VRAM) if is_vram else ""
