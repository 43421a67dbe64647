"""The answers about backends, nodes, history and events, and the version.

Clients also decode answers with these structs. A field that an older monitor does not send gets its
default value, which means "unknown".
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec

from ..domain.models import (
    Bytes,
    LeftBehindProcess,
    Limits,
    Memory,
    ProcessName,
    ProcessUsage,
    TreeUsage,
)
from ..domain.units import HostExit, HostUnit


class ProcessItem(ProcessUsage, frozen=True, kw_only=True):
    """The usage of a process and of its tree."""

    tree: TreeUsage | None = None


class ShutdownItem(msgspec.Struct, frozen=True):
    """A shutdown in progress: its phase, and seconds since it began."""

    phase: str
    seconds: float = 0.0


class BackendItem(msgspec.Struct, frozen=True, kw_only=True):
    """A backend. Memory in bytes, durations in seconds, times in RFC 3339; `null` means unknown.

    `state` is what the backend reports now; `last_state` is the last state that it reported.
    `protocol` gave the status, and `status_error` says why there is none. `limits` is `null` if the
    limits are those of the monitor, which `machine` has. `unit` is the unit in which its host runs
    it, as the host describes it.
    """

    model: str
    pid: int
    address: str = ""
    state: int | None = None
    state_name: str = "unknown"
    last_state: int | None = None
    state_changed_at: datetime | None = None
    source: str | None = None
    protocol: str | None = None
    rpc_error: str | None = None
    status_error: str | None = None
    requests_running: int | None = None
    requests_waiting: int | None = None
    tokens_per_second: float | None = None
    kv_cache_percent: float | None = None
    served_by: int | None = None
    address_owner: ProcessName | None = None
    age_seconds: float | None = None
    memory: Memory | None = None
    memory_source: str | None = None
    process: ProcessItem | None = None
    limits: Limits | None = None
    created_at: datetime
    uptime_seconds: float
    shutdown: ShutdownItem | None = None
    unit: HostUnit | None = None


class EndItem(msgspec.Struct, frozen=True, kw_only=True):
    """A backend that has ended, and how it ended.

    `id` is for `/ended/ID`. `left_behind` lists its processes that still run; `null` in the first
    second, or while unknown. `last_output` has its last lines; `null` for clients that are no
    admins, in the first seconds, and if they are not known. `host_exit` is what its host says of
    the end; `null` in the first seconds, and if it says nothing.
    """

    id: int = 0
    model: str
    pid: int
    address: str = ""
    created_at: datetime
    ended_at: datetime
    cause: str
    exit_code: int | None = None
    signal: int | None = None
    signal_name: str | None = None
    oom: bool | None = None
    oom_certain: bool | None = None
    peak_rss: Bytes | None = None
    description: str = ""
    left_behind: list[LeftBehindProcess] | None = None
    last_output: str | None = None
    host_exit: HostExit | None = None


class LastReadingItem(msgspec.Struct, frozen=True, kw_only=True):
    """What the last sweep before the end of a backend found; `null` means unknown.

    `at` is when it was read. Memory is in bytes, `cpu_percent` in percent of one core, of the tree.
    """

    at: datetime
    state: int | None = None
    state_name: str = "unknown"
    source: str | None = None
    rpc_error: str | None = None
    memory: Memory | None = None
    memory_source: str | None = None
    rss: Bytes | None = None
    cpu_percent: float | None = None
    processes: int | None = None


class PostMortemItem(EndItem, frozen=True, kw_only=True):
    """The answer of `/ended/ID`: all that is known of the end of a backend.

    Durations are in seconds. `ready_seconds` is the time from the creation of the process to the
    first READY, `ends_last_hour` the number of backends of the model that have ended within the
    hour before, with this one. `ready_seconds` and `last_reading` are `null` in the first seconds,
    and if they are not known.
    """

    uptime_seconds: float
    ready_seconds: float | None = None
    ends_last_hour: int | None = None
    last_reading: LastReadingItem | None = None
    node: str | None = None


class ModelItem(msgspec.Struct, frozen=True, kw_only=True):
    """A model that a host can run, and of which no backend runs: see `KnownModel`."""

    model: str
    state: str
    detail: str | None = None
    can_start: bool = False


class NodeModelItem(ModelItem, frozen=True, kw_only=True):
    """A model of a cluster's list of which no backend runs on the node."""

    node: str = ""


class LogAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of `/backend/log`: the end of a stream, or what follows `after`.

    `source` is `host` (the hook `monitor_read_log`) or `file` (the file that the process writes
    to). `start` and `next` are the offsets of the begin and the end of `text` in the stream, in
    bytes; `next` is the value of `after` for the next request. `gap` means that bytes after `after`
    are missing: they were dropped, or are more than `bytes`. Bytes that are no UTF-8 are escaped in
    `text`; other control characters are not.
    """

    model: str
    pid: int | None = None
    stream: str
    source: str
    text: str
    start: int
    next: int
    gap: bool = False
    poll_after_seconds: float = 1.0


class MemberItem(msgspec.Struct, frozen=True, kw_only=True):
    """A process that belongs to a backend: its figures as in `process`; `null` means unknown.

    `parent` is the PID of its parent, which may be no member.
    """

    pid: int
    parent: int | None = None
    name: str | None = None
    user: str | None = None
    is_zombie: bool = False
    rss: Bytes | None = None
    cpu_percent: float | None = None
    threads: int | None = None
    created_at: datetime | None = None


class BackendMembersItem(msgspec.Struct, frozen=True, kw_only=True):
    """A backend of a model and its members, the registered process first."""

    model: str
    pid: int
    address: str = ""
    members: list[MemberItem]


class MembersAnswer(msgspec.Struct, frozen=True):
    """The answer of `/backend/members`."""

    backends: list[BackendMembersItem]


class RefusedItem(msgspec.Struct, frozen=True, kw_only=True):
    """A registration that the monitor has refused, of a process that runs, and why."""

    model: str
    pid: int
    address: str = ""
    reason: str = ""


class NodeBackendItem(BackendItem, frozen=True, kw_only=True):
    """A backend of a cluster's list, with its node."""

    node: str = ""


class NodeEndItem(EndItem, frozen=True, kw_only=True):
    """A backend of a cluster that has ended, with its node."""

    node: str = ""


class NodeRefusedItem(RefusedItem, frozen=True, kw_only=True):
    """A refused registration of a cluster's list, with its node."""

    node: str = ""


class Machine(msgspec.Struct, frozen=True):
    """The machine, and the limits of the monitor's control groups; `null` means unknown.

    `memory_total` is the physical memory in bytes, `cpus` the number of logical CPU cores. The
    other fields are those of `Limits`.
    """

    memory_total: Bytes
    cpus: int
    memory_limit: Bytes | None = None
    memory_available: Bytes | None = None
    cpu_limit: float | None = None
    memory_pressure: float | None = None
    cpu_pressure: float | None = None


class GpuModelItem(msgspec.Struct, frozen=True):
    """A backend that uses a GPU: `memory` on the device, and `gtt` of system memory, in bytes."""

    model: str
    pid: int
    memory: Bytes | None = None
    gtt: Bytes | None = None


class GpuProcessItem(msgspec.Struct, frozen=True):
    """A process of no backend that uses a GPU; `null` for a name or user that cannot be read."""

    pid: int
    name: str | None = None
    user: str | None = None
    memory: Bytes | None = None
    gtt: Bytes | None = None


class GpuItem(msgspec.Struct, frozen=True, kw_only=True):
    """A GPU, and which processes use its memory. Sizes in bytes; `null` means unknown.

    `used` is the sum of `ours` (backends), `others` (other processes) and `unexplained`; if one of
    the three is `null`, `note` says why. `component` is the GPU's name in `memory.breakdown`, and
    `parent` the UUID of the GPU that a MIG instance is a part of.
    """

    index: int | None = None
    uuid: str | None = None
    name: str | None = None
    vendor: str = ""
    component: str = ""
    parent: str | None = None
    total: Bytes | None = None
    used: Bytes | None = None
    free: Bytes | None = None
    ours: Bytes | None = None
    others: Bytes | None = None
    unexplained: Bytes | None = None
    gtt_total: Bytes | None = None
    gtt_used: Bytes | None = None
    utilization_percent: float | None = None
    temperature_celsius: float | None = None
    power_watts: float | None = None
    models: list[GpuModelItem] = []
    processes: list[GpuProcessItem] = []
    note: str | None = None
    age_seconds: float | None = None


class NodeGpuItem(GpuItem, frozen=True, kw_only=True):
    """A GPU of a cluster's list, with its node."""

    node: str = ""


class GpusAnswer(msgspec.Struct, frozen=True):
    """The answer of `/gpus`."""

    gpus: list[GpuItem]


class BackendsAnswer(msgspec.Struct, frozen=True):
    """The answer of `/backends`; in `ended` the newest end comes first.

    `models` has the models that a host can run, and of which no backend runs.
    """

    backends: list[BackendItem]
    ended: list[EndItem]
    machine: Machine
    refused: list[RefusedItem] = []
    gpus: list[GpuItem] = []
    models: list[ModelItem] = []


class NodeItem(msgspec.Struct, frozen=True, kw_only=True):
    """A node of a cluster's list; `error` says why its backends are missing."""

    node: str
    url: str | None = None
    backends: int = 0
    machine: Machine | None = None
    error: str | None = None


class ClusterBackendsAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of `/backends` in a cluster; `machine` describes the node that answers.

    `next` is the value of `after` for the next page; `null` on the last page. `cluster_error` says
    that the node that answers is not connected to NATS, and may not know all nodes.
    """

    backends: list[NodeBackendItem]
    ended: list[NodeEndItem]
    refused: list[NodeRefusedItem] = []
    gpus: list[NodeGpuItem] = []
    models: list[NodeModelItem] = []
    machine: Machine | None = None
    nodes: list[NodeItem] = []
    next: str | None = None
    cluster_error: str | None = None


class GpuNodeItem(msgspec.Struct, frozen=True, kw_only=True):
    """A node of a cluster's list of GPUs; `error` says why its GPUs are missing."""

    node: str
    url: str | None = None
    error: str | None = None


class ClusterGpusAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of `/gpus` in a cluster; `cluster_error` is as in `ClusterBackendsAnswer`."""

    gpus: list[NodeGpuItem]
    nodes: list[GpuNodeItem] = []
    cluster_error: str | None = None


class TargetGroup(msgspec.Struct, frozen=True):
    """A node in the format of Prometheus' service discovery by HTTP."""

    targets: list[str]
    labels: dict[str, str]


class HistoryItem(msgspec.Struct, frozen=True):
    """A backend's points. The last point is for the last time in the answer's `times`."""

    model: str
    pid: int
    cpu_percent: list[float | None]
    memory: list[Bytes | None]


class NodeHistoryItem(HistoryItem, frozen=True, kw_only=True):
    """A backend's points in a cluster, with its node."""

    node: str


class HistoryAnswer(msgspec.Struct, frozen=True):
    """The answer of `/history`; times in seconds since the epoch."""

    interval_seconds: float
    times: list[float]
    backends: list[HistoryItem]


class EventsAnswer(msgspec.Struct, frozen=True):
    """The answer of `/events`.

    `next` is the value of `after` for the next request, which the client should send after
    `poll_after_seconds`. `gap` means that events after the client's last event were dropped.
    """

    events: list[dict[str, Any]]
    next: int
    gap: bool = False
    poll_after_seconds: float = 0.0


class GpuPeakItem(msgspec.Struct, frozen=True, kw_only=True):
    """The most memory of one GPU that one backend of a model held; sizes in bytes.

    `part_of_largest_sum` is the size on this GPU when the sum over all GPUs was the highest.
    """

    component: str
    uuid: str | None = None
    memory: Bytes
    memory_at: datetime
    part_of_largest_sum: Bytes = 0


class PeaksItem(msgspec.Struct, frozen=True, kw_only=True):
    """The most that one backend of a model ever held, and how long it took to be READY.

    Sizes in bytes, durations in seconds, times in RFC 3339; `null` means never known.
    """

    model: str
    memory: Bytes | None = None
    memory_at: datetime | None = None
    tree_memory: Bytes | None = None
    tree_memory_at: datetime | None = None
    gpus: list[GpuPeakItem] = []
    ready_seconds: float | None = None
    ready_at: datetime | None = None
    longest_ready_seconds: float | None = None
    since: datetime
    last_seen_at: datetime


class PeaksAnswer(msgspec.Struct, frozen=True):
    """The answer of `/models/peaks`, sorted by the names of the models."""

    models: list[PeaksItem]


class MemoryNeedItem(msgspec.Struct, frozen=True, kw_only=True):
    """How much of the machine's memory a model needs, in bytes; `null` means unknown."""

    needed: Bytes | None = None
    free: Bytes | None = None
    missing: Bytes | None = None


class GpuNeedItem(MemoryNeedItem, frozen=True, kw_only=True):
    """How much of one GPU a model needs; `others` are GPUs of that vendor with as much free."""

    component: str
    uuid: str | None = None
    others: list[str] = []


class IdleModelItem(msgspec.Struct, frozen=True, kw_only=True):
    """A model whose backends are all idle, and the bytes that its shutdown would free."""

    model: str
    idle_seconds: float
    memory: Bytes = 0
    gpus: dict[str, Bytes] = {}


class FitsAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of `/fits`: whether one more backend of a model fits; `null` means unknown."""

    model: str
    fits: bool | None = None
    reason: str | None = None
    loaded: int = 0
    peaks: PeaksItem | None = None
    memory: MemoryNeedItem
    gpus: list[GpuNeedItem] = []
    unload: list[IdleModelItem] | None = None


class VersionAnswer(msgspec.Struct, frozen=True):
    """The answer of `/version`."""

    name: str
    version: str
