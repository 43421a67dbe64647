"""What a sweep knows of one backend: a reading, and what the operating system says beside it."""

from __future__ import annotations

import msgspec

from .models import Backend, Memory, Reading, State


class ProcessUsage(msgspec.Struct, frozen=True, kw_only=True):
    """What the operating system says of a process, or of a tree of them added up (/proc).

    Attributes:
        rss, vms: bytes; in a tree, shared pages count once per process.
        memory_percent: rss in percent of physical memory.
        cpu_percent: percent of one core, over the last one to ten seconds.
        cpu_seconds: used so far, by those that run now.
        threads: how many.
        open_files: how many descriptors are open.
    """

    rss: int | None = None
    vms: int | None = None
    memory_percent: float | None = None
    cpu_percent: float | None = None
    cpu_seconds: float | None = None
    threads: int | None = None
    open_files: int | None = None


class TreeUsage(ProcessUsage, frozen=True, kw_only=True):
    """Those of a backend's process tree.

    Attributes:
        processes: how many there are.
        pss: bytes, shared pages counted once (/proc, at most 30 s old).
        vram: bytes of GPU memory: the sum of what hooks call `vram` or `vram:<device>`.
    """

    processes: int
    pss: int | None = None
    vram: int | None = None


class Observation(msgspec.Struct, frozen=True, kw_only=True):
    """What a sweep found of one backend.

    Attributes:
        backend: whose it is.
        reading: as `/backend/monitor` has it, of this backend alone; None before the first sweep.
        memory: what it holds, also where it gave no status; None where nobody knows.
        memory_source: where its total comes from: `backend`, `pss` or `rss`.
        process, tree: None where they cannot be read.
        last_state: the last that it said it was in, which a reading without a status leaves as it
            is; None where it never said.
        state_changed_at: when that was first seen, in seconds since the epoch.
    """

    backend: Backend
    reading: Reading | None = None
    memory: Memory | None = None
    memory_source: str | None = None
    process: ProcessUsage | None = None
    tree: TreeUsage | None = None
    last_state: State | None = None
    state_changed_at: float | None = None
