"""Lists the GPUs, and which backends and other processes use their memory."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from ..backends.registry import Record, Registry
from ..domain.gpus import Gpu, GpuUse
from ..gpu.reading import GpuReading, reports_gtt, reports_memory
from ..processes.process_table import ProcessIdentity
from .schemas import GpuItem, GpuModelItem, GpuProcessItem, NodeGpuItem

# The fields that an item has in common with its `Gpu`.
_SAME = tuple(name for name in Gpu.__struct_fields__ if name in GpuItem.__struct_fields__)


class GpuLister:
    """Lists the GPUs of a reading, with the backends that use them.

    Args:
        registry: has the backends.
        node: the name of this node, for each item; None without a cluster.
    """

    def __init__(self, registry: Registry, node: str | None = None) -> None:
        self._registry = registry
        self._type: Any = GpuItem if node is None else partial(NodeGpuItem, node=node)

    def list(self, reading: GpuReading) -> list[GpuItem]:
        """List the GPUs. All figures are those of the reading."""
        if not reading.gpus:
            return []
        owners: dict[ProcessIdentity, list[Record]] = {}
        for record in self._registry.records():
            for identity in record.members.identities():
                owners.setdefault(identity, []).append(record)
        return [self._item(gpu, reading, owners) for gpu in reading.gpus]

    def _item(
        self, gpu: Gpu, reading: GpuReading, owners: Mapping[ProcessIdentity, Sequence[Record]]
    ) -> GpuItem:
        unread = {
            record
            for (pid, _), records in (owners.items() if gpu.unread else ())
            if pid in gpu.unread
            for record in records
        }
        used_by: dict[Record, list[GpuUse]] = {}
        ours: list[GpuUse] = []
        others: list[GpuUse] = []
        processes = []
        for use in gpu.uses or ():
            process = reading.process(gpu, use.pid)
            records = owners.get((use.pid, process.started), ()) if process else ()
            for record in records:
                used_by.setdefault(record, []).append(use)
            (ours if records else others).append(use)
            if not records:
                name, user = (process.name, process.user) if process else (None, None)
                processes.append(GpuProcessItem(use.pid, name, user, use.memory, use.gtt))
        sums, notes = _account(gpu, ours, others, {each.backend.model for each in unread})
        age_seconds = reading.age_seconds(gpu)
        if reading.is_stale(gpu):
            notes.insert(0, f"the driver has not answered for {age_seconds:.0f} s")
        note = "; ".join([*([gpu.note] if gpu.note else []), *notes]) or None
        item: GpuItem = self._type(
            **{**{name: getattr(gpu, name) for name in _SAME}, **sums, "note": note},
            models=[
                GpuModelItem(
                    record.backend.model,
                    record.backend.pid,
                    None if record in unread else _sum(each.memory for each in uses),
                    None if record in unread else _sum(each.gtt for each in uses),
                )
                for record, uses in used_by.items()
            ],
            processes=processes,
            age_seconds=age_seconds,
        )
        return item


def _account(
    gpu: Gpu,
    our_uses: Sequence[GpuUse],
    other_uses: Sequence[GpuUse],
    unread_models: Collection[str],
) -> tuple[dict[str, int | None], list[str]]:
    """Divide the used memory into `ours`, `others` and `unexplained`.

    Returns:
        The three sums, and notes that say why one of them is not known.
    """
    if gpu.uses is None:
        sums = dict.fromkeys(("ours", "others", "unexplained"))
        note = "ours, others and unexplained are not known: the driver does not tell which"
        return sums, [] if gpu.note else [f"{note} processes use the memory"]
    notes = []
    ours, others = (_sum((e.memory for e in uses), 0) for uses in (our_uses, other_uses))
    unknown = [str(each.pid) for each in (*our_uses, *other_uses) if each.memory is None]
    unexplained = None
    if unread_models:
        ours = None
        models = ", ".join(sorted(unread_models))
        notes.append(f"ours and unexplained are not known: processes of {models} cannot be read")
    if unknown:
        parts = [name for name, amount in (("ours", ours), ("others", others)) if amount is None]
        reason = f"the driver does not report the memory of PID {', '.join(unknown)}"
        if reports_gtt(gpu) and not reports_memory(gpu):
            reason = "the driver reports system memory (gtt) alone"
        notes.append(f"{' and '.join(parts)} and unexplained are not known: {reason}")
    elif gpu.used is None:
        notes.append("unexplained is not known: the driver does not report the used memory")
    elif ours is not None and others is not None:
        unexplained = gpu.used - ours - others
        if unexplained < 0:
            notes.append(
                f"unexplained is not known: the processes use {-unexplained} bytes more than the "
                "driver reports as used, as it counts them at another moment or in another way"
            )
            unexplained = None
    return {"ours": ours, "others": others, "unexplained": unexplained}, notes


def _sum(amounts: Iterable[int | None], start: int | None = None) -> int | None:
    """Add up amounts; None if one of them is None, and `start` if there are none."""
    total = start
    for amount in amounts:
        if amount is None:
            return None
        total = amount if total is None else total + amount
    return total
