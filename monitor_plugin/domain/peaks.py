"""The peaks of a model: the most memory that one backend ever held, and the times to READY."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec.structs import replace

from .models import Bytes

# Beyond this number, the models that were seen least recently are dropped.
MAX_MODELS = 10_000
# Beyond this number of GPUs, a model keeps the newest peaks.
MAX_DEVICES = 64
# Minimum time between two changes of `last_seen_at`, so that most sweeps change nothing.
SEEN_SECONDS = 3600.0
# Maximum difference between the creation times of one process. The time changes when the system's
# clock is adjusted.
_SAME_START_SECONDS = 2.0


class GpuPeak(msgspec.Struct, frozen=True, kw_only=True):
    """The most memory of one GPU that one backend of a model held.

    Attributes:
        component: the name in `memory.breakdown` when the peak was seen: `vram:nvidia0`, or
            `gtt:...` for system memory that is used through the GPU.
        uuid: identifies the GPU; None if it is not known.
        memory: bytes.
        memory_at: when the backend held them, in seconds since the epoch.
        part_of_largest_sum: the bytes on this GPU at the moment when one backend held the largest
            sum over all GPUs; 0 if the backend used other GPUs then.
    """

    component: str
    uuid: str | None = None
    memory: Bytes
    memory_at: float
    part_of_largest_sum: Bytes = 0

    @property
    def key(self) -> str:
        """The key of this peak within a model: the kind of memory, and the GPU."""
        return f"{self.component.partition(':')[0]}:{self.uuid}" if self.uuid else self.component


class ModelPeaks(msgspec.Struct, frozen=True, kw_only=True):
    """The most memory that one backend of a model ever held, and the model's times to READY.

    Times are in seconds since the epoch. None: the figure was never known.

    Attributes:
        model: the model.
        memory: bytes: the highest `memory.total` of a backend. A total that is RSS counts only for
            a tree of one process, and where PSS cannot be read.
        memory_at: when that total was seen.
        tree_memory: bytes of the machine's memory that the process tree of a backend held: the
            highest PSS or RSS, never what a backend reports itself, and at least the `peak_rss` of
            the registered process.
        tree_memory_at: when that memory was seen.
        gpus: the peak on each GPU, the oldest first.
        ready_seconds: the time from the creation of the process to the first READY that the monitor
            saw, for the backend that was READY last.
        ready_at: when that READY was seen.
        ready_pid: the PID of that backend.
        longest_ready_seconds: the longest time from the creation of a process to its first READY.
        since: when the model was seen for the first time.
        last_seen_at: when the model was seen for the last time, at most an hour too early.
    """

    model: str
    memory: Bytes | None = None
    memory_at: float | None = None
    tree_memory: Bytes | None = None
    tree_memory_at: float | None = None
    gpus: tuple[GpuPeak, ...] = ()
    ready_seconds: float | None = None
    ready_at: float | None = None
    ready_pid: int | None = None
    longest_ready_seconds: float | None = None
    since: float
    last_seen_at: float


def merge_peaks(old: ModelPeaks, new: ModelPeaks) -> ModelPeaks:
    """Combine two records of a model. Returns `old` itself if `new` adds nothing to it."""
    changes: dict[str, Any] = {}
    if new.memory is not None and new.memory > (old.memory or 0):
        changes.update(memory=new.memory, memory_at=new.memory_at)
    if new.tree_memory is not None and new.tree_memory > (old.tree_memory or 0):
        changes.update(tree_memory=new.tree_memory, tree_memory_at=new.tree_memory_at)
    if (gpus := _merge_gpus(old.gpus, new.gpus)) is not old.gpus:
        changes["gpus"] = gpus
    changes.update(_merge_ready(old, new))
    if new.since < old.since:
        changes["since"] = new.since
    if changes or new.last_seen_at >= old.last_seen_at + SEEN_SECONDS:
        changes["last_seen_at"] = max(old.last_seen_at, new.last_seen_at)
    return replace(old, **changes) if changes else old


def _merge_gpus(old: tuple[GpuPeak, ...], new: tuple[GpuPeak, ...]) -> tuple[GpuPeak, ...]:
    if not new:
        return old
    merged = {each.key: each for each in old}
    for each in new:
        known = merged.get(each.key)
        if known is None:
            merged[each.key] = replace(each, part_of_largest_sum=0)
        elif each.memory > known.memory:
            merged[each.key] = replace(each, part_of_largest_sum=known.part_of_largest_sum)
    if sum(each.part_of_largest_sum for each in new) > sum(
        each.part_of_largest_sum for each in old
    ):
        parts = {each.key: each.part_of_largest_sum for each in new}
        for key, each in merged.items():
            merged[key] = replace(each, part_of_largest_sum=parts.get(key, 0))
    if merged == {each.key: each for each in old}:
        return old
    kept = sorted(merged.values(), key=lambda each: each.memory_at)
    if len(kept) > MAX_DEVICES:  # the GPUs that were used at the same moment stay
        kept.sort(key=lambda each: (each.part_of_largest_sum > 0, each.memory_at))
        kept = sorted(kept[-MAX_DEVICES:], key=lambda each: each.memory_at)
    return tuple(kept)


def _merge_ready(old: ModelPeaks, new: ModelPeaks) -> dict[str, Any]:
    """Return the fields about the time to READY that change."""
    if new.ready_seconds is None or new.ready_at is None:
        return {}
    changes: dict[str, Any] = {}
    if old.ready_seconds is not None and old.ready_at is not None:
        starts = old.ready_at - old.ready_seconds, new.ready_at - new.ready_seconds
        if old.ready_pid == new.ready_pid and abs(starts[0] - starts[1]) <= _SAME_START_SECONDS:
            return {}  # the same backend, which a restarted monitor has seen READY again
    if new.ready_at > (old.ready_at or 0.0):
        changes.update(
            ready_seconds=new.ready_seconds, ready_at=new.ready_at, ready_pid=new.ready_pid
        )
    if (new.longest_ready_seconds or 0.0) > (old.longest_ready_seconds or 0.0):
        changes["longest_ready_seconds"] = new.longest_ready_seconds
    return changes
