"""Turns records of the monitor into the items of its lists."""

from __future__ import annotations

from functools import partial
from typing import Any

import msgspec
import psutil

from ..backends.registry import EndedBackend
from ..domain.exits import exit_to_dict
from ..domain.models import Observation, state_name, utc_datetime
from ..shutdown.coordinator import Progress
from ..telemetry.time_series import Series
from .schemas import (
    BackendItem,
    EndItem,
    HistoryItem,
    Machine,
    NodeBackendItem,
    NodeEndItem,
    NodeHistoryItem,
    ProcessItem,
    ShutdownItem,
)


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
        state_changed_at=None if changed_at is None else utc_datetime(changed_at),
        source=reading.source if reading else None,
        rpc_error=reading.rpc_error if reading else None,
        age_seconds=max(0.0, now - reading.taken_at) if reading else None,
        memory=observation.memory,
        memory_source=observation.memory_source,
        process=process and ProcessItem(**msgspec.structs.asdict(process), tree=observation.tree),
        created_at=utc_datetime(backend.created_at),
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
        created_at=utc_datetime(backend.created_at),
        ended_at=utc_datetime(exit.ended_at),
        **exit_to_dict(exit),
    )
    return item


def history_item(series: Series, node: str | None = None) -> HistoryItem:
    """Make the item of a backend's points; `node` is None outside of a cluster."""
    backend = series.backend
    kind: Any = HistoryItem if node is None else partial(NodeHistoryItem, node=node)
    item: HistoryItem = kind(backend.model, backend.pid, series.cpu_percent, series.memory)
    return item
