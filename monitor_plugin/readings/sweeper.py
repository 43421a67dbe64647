"""Sweeps: all backends read at the same time, for lists, and now and then in the background."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import wait

import grpc
from msgspec.structs import replace

from ..backends.exits import ExitRecorder
from ..backends.registry import Record, Registry
from ..concurrency.periodic import PeriodicTask
from ..concurrency.single_flight import SingleFlight
from ..concurrency.thread_pool import ThreadPool
from ..config.settings import Settings
from ..domain.models import Memory, Reading, Sample, Status
from ..domain.observation import Observation, ProcessUsage
from ..plugins.hooks import Hooks
from ..processes.process import ProcessGone
from ..processes.usage import UsageReader, UsageSnapshot
from ..rpc.client import StatusClient
from ..telemetry.time_series import TimeSeries
from .reader import NO_SAMPLE, BackendReader, memory_of, reports_memory

_ASKED_AT_ONCE = 64
# Lists that are asked for at about the same time are one.
_SHARED_SECONDS = 0.02
# Reading PSS costs milliseconds per GiB: for a backend that says itself what it holds, seldom.
_PSS_MAX_AGE_SECONDS = 30.0

_Asked = tuple[Status | None, str, str | None]
_NOT_IN_TIME: _Asked = (None, "grpc", grpc.StatusCode.DEADLINE_EXCEEDED.name)


class Sweeper:
    """Reads all backends at once. Safe to call from any thread.

    Args:
        registry: where they stand.
        exit_recorder: records the exit of a backend whose process has ended.
        backend_reader: asks each, where hooks are asked too, and takes note of states.
        thread_pool: on which they are asked, where hooks are asked too.
        status_client: asks all of them by gRPC.
        usage_reader: reads their process trees.
        hooks: asked for what they know of memory, and told of each background sweep.
        time_series: keeps figures of the background sweeps.
        settings: how long backends, and hooks, may take in all; how often to sweep.
    """

    def __init__(
        self,
        registry: Registry,
        exit_recorder: ExitRecorder,
        backend_reader: BackendReader,
        thread_pool: ThreadPool,
        status_client: StatusClient,
        usage_reader: UsageReader,
        hooks: Hooks,
        time_series: TimeSeries,
        settings: Settings,
    ) -> None:
        self._registry = registry
        self._exit_recorder = exit_recorder
        self._backend_reader = backend_reader
        self._thread_pool = thread_pool
        self._status_client = status_client
        self._usage_reader = usage_reader
        self._hooks = hooks
        self._time_series = time_series
        self._status_seconds = settings.status_timeout_seconds
        self._hook_seconds = settings.hook_timeout_seconds
        self._all = SingleFlight(_SHARED_SECONDS, lambda: self._sweep(self._registry.records()))
        seconds = settings.sweep_interval_seconds
        self._ticker = PeriodicTask("monitor-sweep", seconds, self._tick) if seconds else None

    def start(self) -> None:
        """Start sweeping in the background."""
        if self._ticker:
            self._ticker.start()

    def stop(self) -> None:
        """Begin no more background sweeps."""
        if self._ticker:
            self._ticker.stop()

    def close(self) -> None:
        """Wait for the end of the background sweep that is under way, which nothing holds up."""
        if self._ticker:
            self._ticker.close()

    def sweep(self, model: str | None = None) -> list[Observation]:
        """Read all backends now, or those of a model; those that have ended are left out."""
        if model is not None:
            return self._sweep(self._registry.records(model))
        found = {each.backend: each for each in self._all.get()}
        # It may have begun before some came, or went.
        records = self._registry.records()
        if missing := [each for each in records if each.backend not in found]:
            found.update((each.backend, each) for each in self._sweep(missing))
        return [found[each.backend] for each in records if each.backend in found]

    def last(self, model: str | None = None) -> list[Observation]:
        """Give what the last sweep found of each backend, without asking anybody."""
        found = []
        for record in self._registry.records(model):
            observation = record.observation
            if observation is None or observation.backend != record.backend:
                observation = Observation(backend=record.backend)
            found.append(_with_newest_state(observation, record))
        return found

    def _tick(self) -> None:
        observations = self.sweep()
        self._time_series.add(time.time(), observations)
        if self._ticker and not self._ticker.stopping:
            self._hooks.readings_swept([each.reading for each in observations if each.reading])

    def _sweep(self, records: Sequence[Record]) -> list[Observation]:
        answers = self._ask(records)
        try:
            look = self._usage_reader.read([record.backend.pid for record in records])
        except OSError:  # no more descriptors
            look = None
        replicas = Counter(record.backend.model for record in self._registry.records())
        until = time.monotonic() + self._hook_seconds
        found = []
        for record, answer in zip(records, answers, strict=True):
            try:
                if answer is None:
                    raise ProcessGone(record.backend.pid)
                count = replicas[record.backend.model]
                record.observation = self._observe(record, answer, look, count, until)
            except ProcessGone:
                self._exit_recorder.end(record)
                continue
            found.append(record.observation)
        return found

    def _ask(self, records: Sequence[Record]) -> list[_Asked | None]:
        """Ask all for their status; None for one that has ended."""
        if self._hooks.have_a_part_in_status():
            return self._ask_through_hooks(records)
        backends = [record.backend for record in records]
        asked: list[_Asked | None] = []
        for record, backend, (status, code) in zip(
            records, backends, self._status_client.statuses(backends), strict=True
        ):
            try:
                self._backend_reader.note(record, backend, status)
                asked.append((status, "grpc", code))
            except ProcessGone:
                asked.append(None)
        return asked

    def _ask_through_hooks(self, records: Sequence[Record]) -> list[_Asked | None]:
        """Ask each backend on a thread, as hooks may be slow; abandon what is not back in time."""
        futures = self._thread_pool.map(self._ask_one, records, _ASKED_AT_ONCE)
        late = wait(futures, self._status_seconds + self._hook_seconds).not_done
        for future in late:
            future.cancel()
        return [_NOT_IN_TIME if future in late else future.result() for future in futures]

    def _ask_one(self, record: Record) -> _Asked | None:
        try:
            return self._backend_reader.ask(record)
        except ProcessGone:
            return None

    def _observe(
        self, record: Record, asked: _Asked, look: UsageSnapshot | None, replicas: int, until: float
    ) -> Observation:
        """Put together what is known of a backend.

        Raises:
            ProcessGone: it has ended.
        """
        backend = record.backend
        status, source, rpc_error = asked
        pids = look.tree(backend.pid) if look else [backend.pid]
        components: dict[str, int] = {}
        if time.monotonic() < until:
            components = self._hooks.memory_components(backend, lambda: pids)
        vram = [amount for name, amount in components.items() if name.startswith("vram")]
        memory, memory_source, pss = self._memory(record, status, components)
        process, tree = None, None
        if look:
            process = look.process_usage(backend.pid, record.sampler)
            tree = look.tree_usage(pids, pss, sum(vram) if vram else None, process)
        if record.process.ended():  # read first, then look whether it was the right process
            raise ProcessGone(backend.pid)
        now = time.time()
        if status is None:
            reading = Reading(backend, None, _sample(process), "psutil", rpc_error, now)
        else:
            status = Status(status.state, memory)
            reading = Reading(backend, status, None, source, None, now, memory_source)
        return Observation(
            backend=backend,
            reading=replace(reading, replicas=replicas),
            memory=memory,
            memory_source=memory_source,
            process=process,
            tree=tree,
            last_state=record.state,
            state_changed_at=record.state_changed_at,
        )

    def _memory(
        self, record: Record, status: Status | None, components: dict[str, int]
    ) -> tuple[Memory | None, str | None, int | None]:
        """What a backend holds, who says so, and its PSS where that is known."""
        held = record.memory.get(_PSS_MAX_AGE_SECONDS if reports_memory(status) else None)
        pss = held[0] if held and held[1] == "pss" else None
        return (*memory_of(status, components, held), pss)


def _with_newest_state(observation: Observation, record: Record) -> Observation:
    """Add the state that a backend is in, which may have been found after its last sweep."""
    reading, state, changed_at = observation.reading, record.state, record.state_changed_at
    if state is not None and reading and reading.status and (changed_at or 0) > reading.taken_at:
        reading = replace(reading, status=replace(reading.status, state=int(state)))
        reading = replace(reading, taken_at=changed_at)
    return replace(observation, reading=reading, last_state=state, state_changed_at=changed_at)


def _sample(process: ProcessUsage | None) -> Sample:
    if process is None:
        return NO_SAMPLE
    return Sample(process.rss, process.vms, process.memory_percent, process.cpu_percent)
