"""Lists the registered backends, those that ended last, and refused registrations."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import msgspec
import psutil

from ..backends.refusals import Refusals
from ..backends.registry import EndedBackend, Registry
from ..domain.models import Observation, utc_datetime
from ..domain.units import HostUnit
from ..operations.known_models import KnownModels
from ..processes.limits import LimitsReader
from ..readings.sweeper import Sweeper
from ..readings.unit_reader import UnitReader
from ..shutdown.coordinator import Progress, ShutdownCoordinator
from .ends import end_fields
from .gpus import GpuLister
from .schemas import (
    BackendItem,
    BackendsAnswer,
    EndItem,
    Machine,
    ModelItem,
    NodeBackendItem,
    NodeEndItem,
    NodeModelItem,
    NodeRefusedItem,
    ProcessItem,
    RefusedItem,
    ShutdownItem,
)


class Lister:
    """Lists the registered backends, those that ended last, and refused registrations.

    Args:
        registry: has the backends that have ended.
        refusals: the registrations that were refused.
        sweeper: reads the backends.
        shutdowns: gives the progress of each shutdown.
        limits_reader: reads the monitor's own limits.
        gpus: lists the GPUs of a reading.
        known_models: the models that hosts can run.
        unit_reader: reads the units in which hosts run the backends.
        node: the name of this node, for each item; None without a cluster.
    """

    def __init__(
        self,
        registry: Registry,
        refusals: Refusals,
        sweeper: Sweeper,
        shutdowns: ShutdownCoordinator,
        limits_reader: LimitsReader,
        gpus: GpuLister,
        known_models: KnownModels,
        unit_reader: UnitReader,
        node: str | None = None,
    ) -> None:
        self._registry = registry
        self._refusals = refusals
        self._sweeper = sweeper
        self._shutdowns = shutdowns
        self._limits_reader = limits_reader
        self._gpus = gpus
        self._known_models = known_models
        self._unit_reader = unit_reader
        self._backend_type: Any = (
            BackendItem if node is None else partial(NodeBackendItem, node=node)
        )
        self._end_type: Any = EndItem if node is None else partial(NodeEndItem, node=node)
        self._model_type: Any = ModelItem if node is None else partial(NodeModelItem, node=node)
        self._refused_type: Any = (
            RefusedItem if node is None else partial(NodeRefusedItem, node=node)
        )

    def list(self, model: str | None, fresh: bool, *, with_output: bool = False) -> BackendsAnswer:
        """List the backends of one model or of all.

        Args:
            model: the model; None lists all.
            fresh: read the backends now; if False, list what the last sweep found.
            with_output: list the last output of ended backends, which only admins may see.
        """
        sweeper = self._sweeper
        sweep = sweeper.sweep_with_gpus if fresh else sweeper.last_sweep_with_gpus
        observations, gpus = sweep(model)
        units = self._unit_reader.read([each.backend for each in observations])
        progress = self._shutdowns.progress()
        now = time.time()
        return BackendsAnswer(
            [
                self._backend_item(each, progress.get(each.backend), units.get(each.backend), now)
                for each in observations
            ],
            [
                self._end_item(each, with_output)
                for each in reversed(self._registry.last_exits())
                if model in (None, each.backend.model)
            ],
            self._machine(),
            [
                self._refused_type(
                    model=each.model, pid=each.pid, address=each.address, reason=each.reason
                )
                for each in self._refusals.running()
                if model in (None, each.model)
            ],
            self._gpus.list(gpus),
            [
                self._model_type(**msgspec.structs.asdict(each))
                for each in self._known_models.without_backend(model)
            ],
        )

    def _machine(self) -> Machine:
        limits = msgspec.structs.asdict(self._limits_reader.own())
        return Machine(self._limits_reader.physical_bytes, psutil.cpu_count() or 1, **limits)

    def _backend_item(
        self,
        observation: Observation,
        progress: Progress | None,
        unit: HostUnit | None,
        now: float,
    ) -> BackendItem:
        backend, reading = observation.backend, observation.reading
        changed_at, process = observation.state_changed_at, observation.process
        status = reading.status if reading else None
        item: BackendItem = self._backend_type(
            model=backend.model,
            pid=backend.pid,
            address=backend.address,
            state=observation.state,
            state_name=observation.state_name,
            last_state=observation.last_state,
            state_changed_at=None if changed_at is None else utc_datetime(changed_at),
            source=reading.source if reading else None,
            protocol=reading.protocol if reading else None,
            rpc_error=reading.rpc_error if reading else None,
            status_error=reading.status_error if reading else None,
            requests_running=status.requests_running if status else None,
            requests_waiting=status.requests_waiting if status else None,
            tokens_per_second=status.tokens_per_second if status else None,
            kv_cache_percent=status.kv_cache_percent if status else None,
            served_by=observation.served_by,
            address_owner=reading.address_owner if reading else None,
            age_seconds=max(0.0, now - reading.taken_at) if reading else None,
            memory=observation.memory,
            memory_source=observation.memory_source,
            process=process
            and ProcessItem(**msgspec.structs.asdict(process), tree=observation.tree),
            limits=observation.limits,
            created_at=utc_datetime(backend.created_at),
            uptime_seconds=max(0.0, now - backend.created_at),
            shutdown=ShutdownItem(progress.phase, progress.seconds) if progress else None,
            unit=unit,
        )
        return item

    def _end_item(self, end: EndedBackend, with_output: bool) -> EndItem:
        item: EndItem = self._end_type(**end_fields(end, with_output))
        return item
