"""Readings of a model: of one backend or of all replicas, shared by concurrent callers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import wait
from dataclasses import dataclass
from functools import partial
from operator import is_
from typing import Any, NamedTuple

from msgspec.structs import replace

from ..backends.exits import ExitRecorder
from ..backends.registry import Record, Registry
from ..concurrency.single_flight import SingleFlight
from ..concurrency.thread_pool import ThreadPool
from ..domain.errors import BackendUnreadable, ModelNotLoaded, PidNotHeld
from ..domain.models import Backend, Reading
from ..processes.process import ProcessGone
from .backend_reader import BackendReader
from .replicas import (
    NO_SAMPLE,
    SourcedMemory,
    combine,
    sourced_memory,
    sum_memories,
    unreadable_reading,
)

_MAX_CONCURRENT_READS = 64


@dataclass(eq=False)
class SharedReading:
    """A reading that several callers get, and its HTTP response, which is encoded once.

    Attributes:
        reading: the reading.
        response: the response, set by `api.results.shared_response`; None before.
    """

    reading: Reading
    response: Any = None


class _Replicas(NamedTuple):
    """The registrations of a model's backends, and their shared readings.

    Attributes:
        records: the backends' records, oldest registration first.
        backends: the registration of each record. A new registration is a new object.
        readings: the readings by PID; the key None has the reading of all replicas together.
    """

    records: Sequence[Record]
    backends: Sequence[Backend]
    readings: dict[int | None, SingleFlight[SharedReading]]

    def matches(self, backends: Sequence[Backend]) -> bool:
        """Whether the given registrations are the same objects."""
        return len(backends) == len(self.backends) and all(map(is_, backends, self.backends))


class ModelReader:
    """Reads models. Safe to call from any thread.

    Each backend is read by one thread at a time. Threads that request a backend during its reading
    get the same reading, as do threads up to `max_age_seconds` after the reading began. No reading
    outlives the backend's process or its registration.

    Args:
        registry: the registered backends.
        exit_recorder: records the exit of a backend whose process has ended.
        backend_reader: reads one backend.
        thread_pool: reads the replicas of a model at the same time.
        max_age_seconds: maximum age of a shared reading; 0 shares only readings in progress.
    """

    def __init__(
        self,
        registry: Registry,
        exit_recorder: ExitRecorder,
        backend_reader: BackendReader,
        thread_pool: ThreadPool,
        max_age_seconds: float,
    ) -> None:
        self._registry = registry
        self._exit_recorder = exit_recorder
        self._backend_reader = backend_reader
        self._thread_pool = thread_pool
        self._max_age_seconds = max_age_seconds
        self._lock = threading.Lock()

    def read(self, model: str, pid: int | None = None, *, fresh: bool = False) -> SharedReading:
        """Read a model: its backend, all its replicas together, or the replica with a PID.

        Args:
            model: the model's name.
            pid: the PID of one backend; None reads all.
            fresh: return no reading that was finished before the call.

        Raises:
            PidNotHeld: the model has no backend with that PID.
            ModelNotLoaded: the model has no backend.
            BackendUnreadable: the status call failed, and the process cannot be read. With several
                replicas, none of them can be read.
        """
        while records := self._registry.records(model):
            if pid is not None and all(each.backend.pid != pid for each in records):
                raise PidNotHeld(model, pid, [each.backend.pid for each in records])
            try:
                return self._get(self._shared_readings(records), pid, fresh)
            except ProcessGone:
                continue
        raise ModelNotLoaded(model, self._exit_recorder.describe_last_exit(model))

    def memory(self, model: str, reading: Reading) -> SourcedMemory:
        """Return the memory of all backends of a model that was just read."""
        if reading.status is not None:
            return sourced_memory(reading)
        deadline = self._backend_reader.deadline()
        return sum_memories(
            [
                self._backend_reader.memory(each, replace(reading, backend=each.backend), deadline)
                for each in self._registry.records(model)
            ]
        )

    def _shared_readings(self, records: Sequence[Record]) -> _Replicas:
        """Return the shared readings of these registrations, without those of earlier ones.

        They are stored in the oldest record, so the readings are freed with the backends.
        """
        backends = [each.backend for each in records]
        with self._lock:
            known = records[0].shared_readings
            if isinstance(known, _Replicas) and known.matches(backends):
                return known
            replicas = records[0].shared_readings = _Replicas(records, backends, {})
            for each in records:
                read = partial(self._read, each, len(records))
                replicas.readings[each.backend.pid] = self._share(read)
            replicas.readings[None] = (
                self._share(partial(self._combine, replicas))
                if len(records) > 1
                else replicas.readings[records[0].backend.pid]
            )
            return replicas

    def _share(self, read: Callable[[], Reading]) -> SingleFlight[SharedReading]:
        return SingleFlight(self._max_age_seconds, lambda: SharedReading(read()))

    def _get(self, replicas: _Replicas, pid: int | None, fresh: bool) -> SharedReading:
        """Return the shared reading of one backend, or of all replicas if `pid` is None.

        Raises:
            ProcessGone: the process of the backend, or of any replica, has ended.
            BackendUnreadable: none of the backends can be read.
        """
        shared = replicas.readings[pid].get(0 if fresh else None)
        # Check after each reading, also a cached one: the PID may belong to a new process now.
        records = [each for each in replicas.records if pid in (None, each.backend.pid)]
        if ended := [each for each in records if each.process.ended()]:
            for record in ended:
                self._exit_recorder.record_exit(record)
            raise ProcessGone(ended[0].backend.pid)
        return shared

    def _read(self, record: Record, replica_count: int) -> Reading:
        try:
            return replace(self._backend_reader.read(record), replicas=replica_count)
        except ProcessGone:
            self._exit_recorder.record_exit(record)
            raise

    def _combine(self, replicas: _Replicas) -> Reading:
        """Read all replicas at the same time; leave out those whose process has ended.

        Raises:
            ProcessGone: all processes have ended.
            BackendUnreadable: none of the backends that run can be read.
        """
        records, deadline = replicas.records, self._backend_reader.deadline()
        if len(records) > _MAX_CONCURRENT_READS:  # so that the deadlines of all replicas overlap
            self._backend_reader.start_requests(records)
        futures = self._thread_pool.map(
            lambda record: self._get(replicas, record.backend.pid, fresh=True),
            records,
            _MAX_CONCURRENT_READS,
        )
        wait(futures)
        readings: dict[Record, Reading] = {}
        failure: Exception = ProcessGone(records[-1].backend.pid)
        for record, future in zip(records, futures, strict=True):
            try:
                readings[record] = replace(future.result().reading, replicas=1)
            except BackendUnreadable as error:
                failure = error
                readings[record] = unreadable_reading(record.backend)
            except ProcessGone:
                continue
        if all(each.sample == NO_SAMPLE for each in readings.values()):
            raise failure
        memories: list[SourcedMemory] = []
        if any(each.status for each in readings.values()):
            # A replica without a status adds the memory of its process tree.
            memories = [
                self._backend_reader.memory(record, reading, deadline)
                for record, reading in readings.items()
            ]
        return combine(list(readings.values()), memories)
