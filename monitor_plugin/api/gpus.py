"""Lists the GPUs, and which backends and other processes use their memory."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any

from ..backends.registry import Record, Registry
from ..domain.figures import sum_known
from ..domain.gpus import Gpu, GpuUse
from ..gpu.reader import GpuReader
from ..gpu.reading import GpuReading, reports_gtt, reports_memory
from ..processes.members import MemberTable
from ..processes.process_table import ProcessIdentity
from .schemas import GpuItem, GpuModelItem, GpuProcessItem, NodeGpuItem

_MAX_PIDS = 5  # in a note
# The fields that an item has in common with its `Gpu`.
_SAME = tuple({*Gpu.__struct_fields__} & {*GpuItem.__struct_fields__} - {"note"})


class GpuLister:
    """Lists the GPUs, with the backends that use them.

    Args:
        registry: the registered backends.
        member_table: lists the members of backends.
        gpu_reader: reads the GPUs.
        node: the name of this node, for each item; None without a cluster.
    """

    def __init__(
        self,
        registry: Registry,
        member_table: MemberTable,
        gpu_reader: GpuReader,
        node: str | None = None,
    ) -> None:
        self._registry = registry
        self._member_table = member_table
        self._gpu_reader = gpu_reader
        self._type: Any = GpuItem if node is None else partial(NodeGpuItem, node=node)

    def read(self) -> list[GpuItem]:
        """Read and list the GPUs."""
        return self.list(self._gpu_reader.read())

    def list(self, reading: GpuReading) -> list[GpuItem]:
        """List the GPUs of a reading. All figures are from that reading."""
        owners: dict[ProcessIdentity, list[Record]] = {}
        if any(gpu.uses or gpu.unread for gpu in reading.gpus):
            for record in self._registry.records():
                for identity in self._member_table.identities(record.members):
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
        sums, note = _account(gpu, ours, others, {each.backend.model for each in unread})
        age_seconds = reading.age_seconds(gpu)
        notes = [gpu.note, note]
        if reading.is_stale(gpu):
            notes.append(f"The driver has not answered for {age_seconds:.0f} s.")
        item: GpuItem = self._type(
            **{name: getattr(gpu, name) for name in _SAME},
            **sums,
            models=[
                GpuModelItem(
                    record.backend.model,
                    record.backend.pid,
                    None if record in unread else sum_known(each.memory for each in uses),
                    None if record in unread else sum_known(each.gtt for each in uses),
                )
                for record, uses in used_by.items()
            ],
            processes=processes,
            note=" ".join(filter(None, notes)) or None,
            age_seconds=age_seconds,
        )
        return item


def _account(
    gpu: Gpu,
    our_uses: Sequence[GpuUse],
    other_uses: Sequence[GpuUse],
    unread_models: Collection[str],
) -> tuple[dict[str, int | None], str | None]:
    """Divide the used memory into `ours`, `others` and `unexplained`.

    Args:
        gpu: the device.
        our_uses: the uses of the device by backends.
        other_uses: the uses of the device by other processes.
        unread_models: the models with a process that could not be read.

    Returns:
        The three sums, and a note that says why one of them is not known.
    """
    if gpu.uses is None:
        reason = "It is not known which processes use the memory: the driver does not list them."
        return dict.fromkeys(("ours", "others", "unexplained")), None if gpu.note else reason
    ours = None if unread_models else sum_known(each.memory for each in our_uses)
    others = sum_known(each.memory for each in other_uses)
    unexplained: int | None = None
    notes = []
    if unread_models:
        notes.append(f"Processes of {', '.join(sorted(unread_models))} cannot be read.")
    unknown = [each.pid for each in (*our_uses, *other_uses) if each.memory is None]
    if unknown and reports_gtt(gpu) and not reports_memory(gpu):
        notes.append("The driver reports system memory (gtt) alone.")
    elif unknown:
        pids = ", ".join(map(str, unknown[:_MAX_PIDS]))
        more = f" and {len(unknown) - _MAX_PIDS} others" if len(unknown) > _MAX_PIDS else ""
        notes.append(f"The driver does not report the memory of PID {pids}{more}.")
    if gpu.used is None:
        notes.append("The driver does not report the memory in use.")
    elif ours is not None and others is not None:
        unexplained = gpu.used - ours - others
        if unexplained < 0:
            notes.append(
                f"The processes use {-unexplained} bytes more than the driver reports as in use: "
                "it counts them at another moment or in another way."
            )
            unexplained = None
    unknown_sums = [
        name
        for name, amount in (("ours", ours), ("others", others), ("unexplained", unexplained))
        if amount is None
    ]
    if unknown_sums:
        notes.append(f"Not known therefore: {', '.join(unknown_sums)}.")
    sums = {"ours": ours, "others": others, "unexplained": unexplained}
    return sums, " ".join(notes) or None
