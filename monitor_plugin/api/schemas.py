"""The answers that are lists: backends, history and events."""

from __future__ import annotations

from datetime import datetime
from functools import partial
from typing import Any

import msgspec
import psutil

from ..backends.registry import EndedBackend
from ..domain.exits import exit_facts
from ..domain.models import Bytes, Memory, moment, state_name
from ..domain.observation import Observation, ProcessUsage, TreeUsage
from ..shutdown.coordinator import Progress
from ..telemetry.time_series import Series


class ProcessItem(ProcessUsage, frozen=True, kw_only=True):
    """The usage of a process and of its tree."""

    tree: TreeUsage | None


class ShutdownItem(msgspec.Struct, frozen=True):
    """A shutdown under way: its phase, and seconds since it began."""

    phase: str
    seconds: float


class BackendItem(msgspec.Struct, frozen=True, kw_only=True):
    """A backend of the list. Bytes, seconds; times in RFC 3339; `null` means unknown.

    `state` is what the backend reports now; `last_state` is the last state that it reported.
    """

    model: str
    pid: int
    address: str
    state: int | None
    state_name: str
    last_state: int | None
    state_changed_at: datetime | None
    source: str | None
    rpc_error: str | None
    age_seconds: float | None
    memory: Memory | None
    memory_source: str | None
    process: ProcessItem | None
    created_at: datetime
    uptime_seconds: float
    shutdown: ShutdownItem | None


class EndItem(msgspec.Struct, frozen=True, kw_only=True):
    """A backend that has ended, and how it ended."""

    model: str
    pid: int
    address: str
    created_at: datetime
    ended_at: datetime
    cause: str
    exit_code: int | None
    signal: int | None
    signal_name: str | None
    oom: bool | None
    description: str


class NodeBackendItem(BackendItem, frozen=True, kw_only=True):
    """A backend of a cluster's list, with its node."""

    node: str


class NodeEndItem(EndItem, frozen=True, kw_only=True):
    """A backend of a cluster that has ended, with its node."""

    node: str


class Machine(msgspec.Struct, frozen=True):
    """What all backends share: bytes of physical memory, and the number of cores."""

    memory_total: Bytes
    cpus: int


class BackendsAnswer(msgspec.Struct, frozen=True):
    """The answer of `/backends`; ends newest first."""

    backends: list[BackendItem]
    ended: list[EndItem]
    machine: Machine


class HistoryItem(msgspec.Struct, frozen=True):
    """A backend's points. The last point belongs to the last one of the answer's `times`."""

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

    `next` is the `after` of the next request, which is to come after `poll_after_seconds`. `gap`
    means that events in between are lost.
    """

    events: list[dict[str, Any]]
    next: int
    gap: bool
    poll_after_seconds: float


class VersionAnswer(msgspec.Struct, frozen=True):
    """The answer of `/version`."""

    name: str
    version: str


def machine() -> Machine:
    """Describe this machine."""
    return Machine(psutil.virtual_memory().total, psutil.cpu_count() or 1)


def backend_item(
    observation: Observation, progress: Progress | None, now: float, node: str | None
) -> BackendItem:
    """Make the item of a backend.

    Args:
        observation: what a sweep has found.
        progress: the progress of its shutdown; None if none is under way.
        now: seconds since the epoch.
        node: the name of its node; None outside of a cluster.
    """
    backend, reading = observation.backend, observation.reading
    changed_at, process = observation.state_changed_at, observation.process
    state = reading.status.state if reading and reading.status else None
    kind: Any = BackendItem if node is None else partial(NodeBackendItem, node=node)
    item: BackendItem = kind(
        model=backend.model,
        pid=backend.pid,
        address=backend.address,
        state=state,
        state_name=state_name(state),
        last_state=observation.last_state,
        state_changed_at=None if changed_at is None else moment(changed_at),
        source=reading.source if reading else None,
        rpc_error=reading.rpc_error if reading else None,
        age_seconds=max(0.0, now - reading.taken_at) if reading else None,
        memory=observation.memory,
        memory_source=observation.memory_source,
        process=process and ProcessItem(**msgspec.structs.asdict(process), tree=observation.tree),
        created_at=moment(backend.created_at),
        uptime_seconds=max(0.0, now - backend.created_at),
        shutdown=ShutdownItem(progress.phase, progress.seconds) if progress else None,
    )
    return item


def end_item(end: EndedBackend, node: str | None) -> EndItem:
    """Make the item of a backend that has ended; `node` is None outside of a cluster."""
    backend, exit = end.backend, end.exit
    kind: Any = EndItem if node is None else partial(NodeEndItem, node=node)
    item: EndItem = kind(
        model=backend.model,
        pid=backend.pid,
        address=backend.address,
        created_at=moment(backend.created_at),
        ended_at=moment(exit.ended_at),
        **exit_facts(exit),
    )
    return item


def history_item(series: Series, node: str | None = None) -> HistoryItem:
    """Make the item of a backend's points; `node` is None outside of a cluster."""
    backend = series.backend
    kind: Any = HistoryItem if node is None else partial(NodeHistoryItem, node=node)
    item: HistoryItem = kind(backend.model, backend.pid, series.cpu_percent, series.memory)
    return item
