"""Sweeps: concurrent readings of all backends, for lists and in the background."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import wait
from typing import NamedTuple

import grpc
from msgspec.structs import replace

from ..backends.exits import ExitRecorder
from ..backends.registry import Record, Registry
from ..concurrency.periodic import PeriodicTask
from ..concurrency.single_flight import SingleFlight
from ..concurrency.thread_pool import ThreadPool
from ..config.settings import Settings
from ..domain.models import Backend, Limits, Observation, ProcessUsage, Reading, Sample
from ..gpu.reader import GpuReader
from ..gpu.reading import STALE_SECONDS, GpuReading
from ..hook_support.idleness import Activity
from ..plugins.hooks import Hooks
from ..processes.limits import LimitsReader, has_same_limits
from ..processes.process import ProcessGone
from ..processes.tree_memory import tree_total
from ..processes.usage import UsageReader, UsageSnapshot
from ..rpc.client import StatusClient
from ..telemetry.peaks import PeakStore
from ..telemetry.time_series import TimeSeries
from .address_check import AddressCheck
from .backend_reader import (
    BackendReader,
    StatusResult,
    complete_memory,
    result_of_address_owner,
    result_of_call,
)
from .replicas import NO_SAMPLE

_MAX_CONCURRENT_REQUESTS = 64
# Lists that are requested within this time share one sweep.
_MAX_AGE_SECONDS = 0.02

_GPU_MAX_AGE_SECONDS = 1.0
# Background sweeps do not request a reading of the GPUs, which `GpuReader` reads in the background.
_BACKGROUND_GPU_MAX_AGE_SECONDS = 60.0

_TIMED_OUT = StatusResult(None, "grpc", grpc.StatusCode.DEADLINE_EXCEEDED.name)


class Sweep(NamedTuple):
    """The observations of a sweep, and the reading of the GPUs that they are made from."""

    observations: list[Observation]
    gpus: GpuReading


class Sweeper:
    """Reads all backends at the same time. Safe to call from any thread.

    Attributes:
        idle_seconds: how long each backend that is known to be idle was idle at the last background
            sweep; empty without background sweeps.

    Args:
        registry: the registered backends.
        exit_recorder: records the exit of a backend whose process has ended.
        backend_reader: requests statuses if hooks take part, and records states.
        address_check: tells which backends must not be asked.
        thread_pool: runs the requests if hooks take part.
        status_client: requests statuses if no hook takes part.
        usage_reader: reads the usage of process trees.
        limits_reader: reads the limits of the registered processes.
        gpu_reader: reads the GPUs that the members use.
        hooks: adds memory components; called after each background sweep.
        time_series: stores the figures of background sweeps.
        peaks: stores the peaks of all sweeps.
        settings: the timeouts of statuses and hooks, the interval of background sweeps, and how
            long a backend may be starting.
    """

    def __init__(
        self,
        registry: Registry,
        exit_recorder: ExitRecorder,
        backend_reader: BackendReader,
        address_check: AddressCheck,
        thread_pool: ThreadPool,
        status_client: StatusClient,
        usage_reader: UsageReader,
        limits_reader: LimitsReader,
        gpu_reader: GpuReader,
        hooks: Hooks,
        time_series: TimeSeries,
        peaks: PeakStore,
        settings: Settings,
    ) -> None:
        self._registry = registry
        self._exit_recorder = exit_recorder
        self._backend_reader = backend_reader
        self._address_check = address_check
        self._thread_pool = thread_pool
        self._status_client = status_client
        self._usage_reader = usage_reader
        self._limits_reader = limits_reader
        self._gpu_reader = gpu_reader
        self._hooks = hooks
        self._time_series = time_series
        self._peaks = peaks
        self._activity = Activity()  # used by the thread of the background sweeps alone
        self.idle_seconds: Mapping[Backend, float] = {}
        self._status_seconds = settings.status_timeout_seconds
        self._hook_seconds = settings.hook_timeout_seconds
        self._start_grace_seconds = settings.start_grace_seconds
        self._all = SingleFlight(_MAX_AGE_SECONDS, self._sweep_all)
        self._last_gpus = GpuReading()  # of the last sweep of all backends
        seconds = settings.sweep_interval_seconds
        self._background = (
            PeriodicTask("monitor-sweep", seconds, self._sweep_in_background) if seconds else None
        )

    def start(self) -> None:
        """Start sweeping in the background."""
        if self._background:
            self._background.start()

    def stop(self) -> None:
        """Begin no further background sweeps."""
        if self._background:
            self._background.stop()

    def close(self) -> None:
        """Wait for the end of the background sweep in progress."""
        if self._background:
            self._background.close()

    def sweep(self, model: str | None = None) -> list[Observation]:
        """Read all backends now, or those of a model; leave out those that have ended."""
        return self.sweep_with_gpus(model).observations

    def sweep_with_gpus(self, model: str | None = None) -> Sweep:
        """Read all backends now, as `sweep` does, and the GPUs."""
        if model is not None:
            return self._sweep(self._registry.records(model))
        observations, gpus = self._all.get()
        found = {each.backend: each for each in observations}
        # The shared sweep may have begun before the newest backends were registered.
        records = self._registry.records()
        if missing := [each for each in records if each.backend not in found]:
            more = self._sweep(missing, gpus=gpus).observations
            found.update((each.backend, each) for each in more)
        return Sweep([found[each.backend] for each in records if each.backend in found], gpus)

    def last_sweep_with_gpus(self, model: str | None = None) -> Sweep:
        """Return the observations of `last_sweep`, and the GPUs of the last sweep of all backends.

        If the GPUs of that sweep are stale, for example without background sweeps, the last reading
        of the GPUs is returned instead.
        """
        gpus = self._last_gpus
        if time.monotonic() - gpus.taken_at > STALE_SECONDS:
            gpus = self._gpu_reader.last()
        return Sweep(self.last_sweep(model), gpus)

    def last_sweep(self, model: str | None = None) -> list[Observation]:
        """Return each backend's observation of the last sweep, without reading any backend."""
        found = []
        for record in self._registry.records(model):
            observation = record.observation
            if observation is None or observation.backend != record.backend:
                starting = record.is_starting(self._start_grace_seconds)
                observation = Observation(backend=record.backend, starting=starting)
            found.append(_with_newest_state(observation, record))
        return found

    def _sweep_in_background(self) -> None:
        observations = self._sweep_all(_BACKGROUND_GPU_MAX_AGE_SECONDS).observations
        self._time_series.add(time.time(), observations)
        self._note_idle(observations)
        if self._background and not self._background.stopping:
            self._hooks.readings_swept([each.reading for each in observations if each.reading])

    def _sweep_all(self, gpu_max_age_seconds: float = _GPU_MAX_AGE_SECONDS) -> Sweep:
        sweep = self._sweep(self._registry.records(), gpu_max_age_seconds)
        self._last_gpus = sweep.gpus
        return sweep

    def _note_idle(self, observations: Sequence[Observation]) -> None:
        now = time.monotonic()
        self._activity.note(observations, now)
        idle = {
            each.backend: self._activity.idle_seconds(each.backend, now) for each in observations
        }
        self.idle_seconds = {backend: seconds for backend, seconds in idle.items() if seconds}

    def _sweep(
        self,
        records: Sequence[Record],
        gpu_max_age_seconds: float = _GPU_MAX_AGE_SECONDS,
        gpus: GpuReading | None = None,
    ) -> Sweep:
        """Read backends at the same time.

        Args:
            records: the backends.
            gpu_max_age_seconds: maximum age of the reading of the GPUs.
            gpus: the reading to use; None reads the GPUs.
        """
        if gpus is None:  # they are read while the backends answer
            self._gpu_reader.request(gpu_max_age_seconds)
        results = self._request_statuses(records)
        try:
            usage = self._usage_reader.read([record.members for record in records])
        except OSError:  # no free file descriptor
            usage = None
        if gpus is None:
            gpus = self._gpu_reader.read(gpu_max_age_seconds)
        replicas = Counter(record.backend.model for record in self._registry.records())
        own_limits = self._limits_reader.own()
        hooks_deadline = time.monotonic() + self._hook_seconds
        found = []
        for record, result in zip(records, results, strict=True):
            try:
                if result is None:
                    raise ProcessGone(record.backend.pid)
                count = replicas[record.backend.model]
                record.observation = self._observe(
                    record, result, usage, gpus, count, own_limits, hooks_deadline
                )
            except ProcessGone:
                self._exit_recorder.record_exit(record)
                continue
            found.append(record.observation)
        self._peaks.add(found, gpus.gpus)
        return Sweep(found, gpus)

    def _request_statuses(self, records: Sequence[Record]) -> list[StatusResult | None]:
        """Request the status of each backend; None stands for one that has ended."""
        if self._hooks.may_delay_status():
            return self._request_through_hooks(records)
        backends = [record.backend for record in records]
        servings = [self._address_check.find_address_owner(record) for record in records]
        asked = [each for each, serving in zip(backends, servings, strict=True) if not serving]
        outcomes = iter(self._status_client.statuses(asked))
        results: list[StatusResult | None] = []
        for record, backend, serving in zip(records, backends, servings, strict=True):
            result = result_of_address_owner(serving) if serving else result_of_call(next(outcomes))
            try:
                results.append(self._backend_reader.confirm(record, backend, result))
            except ProcessGone:
                results.append(None)
        return results

    def _request_through_hooks(self, records: Sequence[Record]) -> list[StatusResult | None]:
        """Request each status on a thread, as hooks may be slow; abandon late requests."""
        futures = self._thread_pool.map(self._request_status, records, _MAX_CONCURRENT_REQUESTS)
        late = wait(futures, self._status_seconds + self._hook_seconds).not_done
        for future in late:
            future.cancel()
        return [_TIMED_OUT if future in late else future.result() for future in futures]

    def _request_status(self, record: Record) -> StatusResult | None:
        try:
            return self._backend_reader.status(record)
        except ProcessGone:
            return None

    def _observe(
        self,
        record: Record,
        result: StatusResult,
        usage: UsageSnapshot | None,
        gpus: GpuReading,
        replicas: int,
        own_limits: Limits,
        hooks_deadline: float,
    ) -> Observation:
        """Combine a backend's status, usage and memory.

        Raises:
            ProcessGone: the backend's process has ended.
        """
        backend = record.backend
        pids = usage.pids(record.members) if usage else [backend.pid]
        of_hooks = self._hooks.memory_components(backend, lambda: pids, hooks_deadline)
        identities = record.members.identities()
        held = gpus.held_by(identities)
        components = {**held.components, **of_hooks}
        read, peak_rss = record.tree_memory, record.peak_rss()
        total = usage.memory_total(pids, read) if usage else tree_total(read, None, 0.0)
        memory, memory_source, memory_age = complete_memory(result.status, components, total)
        process, tree = None, None
        limits = self._limits_reader.read(*record.members.root)
        if usage:
            usable = self._limits_reader.usable_bytes(limits)
            root_peak_rss = read.root_peak_rss if read else None
            process = usage.process_usage(backend.pid, record.sampler, usable, root_peak_rss)
            vram, gtt = held.total("vram", of_hooks), held.total("gtt", of_hooks)
            tree = usage.tree_usage(pids, read, vram, process, usable, gtt, peak_rss)
        if record.process.ended():  # check after reading: the PID may have a new process
            raise ProcessGone(backend.pid)
        now = time.time()
        if result.status is None:
            reading = Reading(
                backend,
                None,
                _sample(process),
                "psutil",
                result.rpc_error,
                now,
                status_error=result.status_error,
            )
        else:
            status = replace(result.status, memory=memory)
            reading = Reading(
                backend,
                status,
                None,
                result.source,
                None,
                now,
                memory_source,
                memory_age_seconds=memory_age,
                protocol=result.protocol,
            )
        return Observation(
            backend=backend,
            reading=replace(reading, replicas=replicas, address_owner=result.address_owner),
            memory=memory,
            memory_source=memory_source,
            process=process,
            tree=tree,
            last_state=record.state,
            state_changed_at=record.state_changed_at,
            starting=record.is_starting(self._start_grace_seconds),
            served_by=result.served_by,
            limits=None if has_same_limits(limits, own_limits) else limits,
            ready_seconds=record.ready_seconds,
            ready_at=record.ready_at,
            awaits_pss=total is not None and total.awaits_pss,
            answered=record.answered,
            gpu_utilization_percent=gpus.utilization_of(identities),
        )


def _with_newest_state(observation: Observation, record: Record) -> Observation:
    """Set the backend's last state, which may be newer than the last sweep."""
    reading, state, changed_at = observation.reading, record.state, record.state_changed_at
    if state is not None and reading and reading.status and (changed_at or 0) > reading.taken_at:
        status = replace(reading.status, state=int(state))
        reading = replace(reading, status=status, taken_at=changed_at)
    return replace(observation, reading=reading, last_state=state, state_changed_at=changed_at)


def _sample(process: ProcessUsage | None) -> Sample:
    if process is None:
        return NO_SAMPLE
    return Sample(process.rss, process.vms, process.memory_percent, process.cpu_percent)
