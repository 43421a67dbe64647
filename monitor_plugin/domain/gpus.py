"""GPUs and their memory: what a device reports, and which processes use it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from .models import Bytes


class GpuUse(msgspec.Struct, frozen=True):
    """The memory of a GPU that one process uses.

    Attributes:
        pid: the process.
        memory: bytes on the device; None if the driver does not report them.
        gtt: bytes of system memory that the process uses through the device, such as GTT of AMD's
            driver; None if the device has no such memory, or if the driver does not report it.
    """

    pid: int
    memory: Bytes | None
    gtt: Bytes | None = None


class Gpu(msgspec.Struct, frozen=True, kw_only=True):
    """A GPU, or one MIG instance of a GPU. None: the figure is not known.

    Attributes:
        component: its name in `memory.breakdown`, unique on the machine: `vram:nvidia0`.
        vendor: `nvidia`, `amd`, `intel`, or the name that a third party chooses.
        uuid: identifies the device, also after a restart of the machine.
        index: the number by which the vendor's tools list the device. Other libraries, such as
            CUDA, may number devices in another order.
        name: the product's name.
        parent: the UUID of the GPU that a MIG instance is a part of; None for a whole GPU.
        total, used, free: bytes of memory on the device, as the driver reports them. Memory that
            the driver reserves may be neither used nor free.
        gtt_total, gtt_used: bytes of system memory that the device may use, and that it uses.
        utilization_percent: the part of the driver's last sample period in which the device worked.
        temperature_celsius: the temperature of the device.
        power_watts: the power that the device draws.
        uses: the processes that use its memory, each process once; None if they are not known.
        unread: PIDs of processes that could not be read. It is not known whether they use the
            device, so the use of a backend with such a member is not known either.
        note: what is not known of the device, why, and what to do; None if all is known.
    """

    component: str
    vendor: str
    uuid: str | None = None
    index: int | None = None
    name: str | None = None
    parent: str | None = None
    total: Bytes | None = None
    used: Bytes | None = None
    free: Bytes | None = None
    gtt_total: Bytes | None = None
    gtt_used: Bytes | None = None
    utilization_percent: float | None = None
    temperature_celsius: float | None = None
    power_watts: float | None = None
    uses: Sequence[GpuUse] | None = None
    unread: frozenset[int] = frozenset()
    note: str | None = None


def is_gpu_component(name: str) -> bool:
    """Whether a component is memory on a GPU (`vram`), or system memory that a GPU uses (`gtt`)."""
    return name.partition(":")[0] in ("vram", "gtt")


def gtt_component(gpu: Gpu) -> str:
    """Return the name of the component for system memory that the device uses."""
    return "gtt:" + gpu.component.removeprefix("vram:")


def divided_uuids(gpus: Iterable[Gpu]) -> set[str]:
    """Return the UUIDs of the GPUs that are divided into MIG instances, and run nothing else."""
    return {gpu.parent for gpu in gpus if gpu.parent}


def gpus_without_uses(gpus: Sequence[Gpu]) -> list[Gpu]:
    """List the devices of which it is not known which processes use them.

    A GPU that is divided into MIG instances is left out: the uses of its instances are listed.
    """
    divided = divided_uuids(gpus)
    return [gpu for gpu in gpus if gpu.uses is None and gpu.uuid not in divided]
