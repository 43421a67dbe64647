"""Tables of GPUs, and of the processes that hold their memory. Needs rich."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from rich.console import Group, RenderableType
from rich.text import Text

from ...api.schemas import ClusterGpusAnswer, NodeGpuItem
from .tables import Column, fitted_table
from .text import UNKNOWN, amount, duration, escape_name, missing_parts, printable, where

# An older reading is shown with its age.
_OLD_SECONDS = 20.0


class _Holder(NamedTuple):
    """A process that uses a GPU, as text: a backend with its model, or another process."""

    gpu: NodeGpuItem
    model: str
    pid: int
    process: str
    user: str
    memory: int | None
    gtt: int | None


def gpus_view(answer: ClusterGpusAnswer, width: int) -> RenderableType:
    """Return the view of `gpus`: the devices, the holders of their memory, and the notes."""
    parts: list[RenderableType] = [Text(f"The monitor sees no GPU{where(answer)}.")]
    if answer.gpus:
        devices = _sorted(answer.gpus)
        parts = [_devices_table(devices, width)]
        if holders := [holder for gpu in devices for holder in _holders(gpu)]:
            parts += ["", _holders_table(holders, width)]
        if notes := [line for gpu in devices for line in _notes(gpu)]:
            parts += ["", *map(Text, notes)]
    return Group(*parts, *(Text(printable(each), "bold red") for each in missing_parts(answer)))


def _sorted(gpus: Sequence[NodeGpuItem]) -> list[NodeGpuItem]:
    """Return each whole GPU in the given order, followed by its MIG instances."""
    whole = {(gpu.node, gpu.uuid) for gpu in gpus if gpu.uuid and not gpu.parent}
    instances: dict[tuple[str, str], list[NodeGpuItem]] = {}
    for gpu in gpus:
        if gpu.parent and (gpu.node, gpu.parent) in whole:
            instances.setdefault((gpu.node, gpu.parent), []).append(gpu)
    ordered = []
    for gpu in gpus:
        if not gpu.parent or (gpu.node, gpu.parent) not in whole:
            ordered.append(gpu)
            ordered += instances.pop((gpu.node, gpu.uuid or ""), [])
    return ordered


def _name(gpu: NodeGpuItem) -> str:
    """Return the device's name in `memory.breakdown`, without the kind of memory."""
    name = gpu.component.removeprefix("vram:") or f"{gpu.vendor} {gpu.index}"
    return escape_name(name)


def _figure(number: float | None, unit: str) -> Text:
    return Text(UNKNOWN if number is None else f"{number:.0f} {unit}")


def _devices_table(gpus: Sequence[NodeGpuItem], width: int) -> RenderableType:
    with_gtt = [gpu.gtt_used is not None or gpu.gtt_total is not None for gpu in gpus]
    gtt = [
        Text(f"{amount(gpu.gtt_used)} of {amount(gpu.gtt_total)}" if has else "-")
        for gpu, has in zip(gpus, with_gtt, strict=True)
    ]
    columns = [
        Column("GPU", [Text(_name(gpu)) for gpu in gpus], 0),
        Column("NODE", [Text(printable(gpu.node)) for gpu in gpus], 1),
        Column("USED", [Text(amount(gpu.used)) for gpu in gpus], 0, "right"),
        Column("TOTAL", [Text(amount(gpu.total)) for gpu in gpus], 0, "right"),
        Column("FREE", [Text(amount(gpu.free)) for gpu in gpus], 5, "right"),
        Column("OURS", [Text(amount(gpu.ours)) for gpu in gpus], 2, "right"),
        Column("OTHERS", [Text(amount(gpu.others)) for gpu in gpus], 2, "right"),
        Column("UNEXPLAINED", [Text(amount(gpu.unexplained)) for gpu in gpus], 3, "right"),
        Column("GTT", gtt, 4, "right"),
        Column("UTIL", [_figure(gpu.utilization_percent, "%") for gpu in gpus], 6, "right"),
        Column("TEMP", [_figure(gpu.temperature_celsius, "°C") for gpu in gpus], 7, "right"),
        Column("POWER", [_figure(gpu.power_watts, "W") for gpu in gpus], 8, "right"),
        Column("NAME", [Text(printable(gpu.name or UNKNOWN)) for gpu in gpus], 9),
        Column("PART OF", [Text(printable(gpu.parent or "-")) for gpu in gpus], 11),
        Column("UUID", [Text(printable(gpu.uuid or UNKNOWN)) for gpu in gpus], 10),
    ]
    absent = set()
    if not any(gpu.node for gpu in gpus):
        absent.add("NODE")
    if not any(with_gtt):
        absent.add("GTT")
    if not any(gpu.parent for gpu in gpus):
        absent.add("PART OF")
    return fitted_table([each for each in columns if each.title not in absent], width)


def _holders(gpu: NodeGpuItem) -> list[_Holder]:
    """Return the backends and the other processes that use a GPU, the largest first."""
    holders = [
        _Holder(gpu, escape_name(use.model), use.pid, "-", "-", use.memory, use.gtt)
        for use in gpu.models
    ]
    for use in gpu.processes:
        name, user = printable(use.name or UNKNOWN), printable(use.user or UNKNOWN)
        holders.append(_Holder(gpu, "-", use.pid, name, user, use.memory, use.gtt))
    return sorted(holders, key=lambda holder: -(holder.memory or 0))


def _holders_table(holders: Sequence[_Holder], width: int) -> RenderableType:
    columns = [
        Column("MODEL", [Text(each.model) for each in holders], 0),
        Column("PID", [Text(str(each.pid)) for each in holders], 0, "right"),
        Column("PROCESS", [Text(each.process) for each in holders], 2),
        Column("USER", [Text(each.user) for each in holders], 3),
        Column("MEMORY", [Text(amount(each.memory)) for each in holders], 0, "right"),
        Column("GTT", [Text(amount(each.gtt)) for each in holders], 4, "right"),
        Column("NODE", [Text(printable(each.gpu.node)) for each in holders], 1),
        Column("ON GPU", [Text(_name(each.gpu)) for each in holders], 0),
    ]
    absent = set()
    if not any(each.gpu.node for each in holders):
        absent.add("NODE")
    if all(each.gtt is None for each in holders):
        absent.add("GTT")
    return fitted_table([each for each in columns if each.title not in absent], width)


def _notes(gpu: NodeGpuItem) -> list[str]:
    name = _name(gpu) + (f" on {printable(gpu.node)}" if gpu.node else "")
    notes = [] if gpu.note is None else [f"{name}: {printable(gpu.note)}"]
    if gpu.age_seconds is not None and gpu.age_seconds > _OLD_SECONDS:
        notes.append(f"{name}: read {duration(gpu.age_seconds)} ago")
    return notes
