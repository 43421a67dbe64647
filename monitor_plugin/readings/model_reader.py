"""Readings of models: of a backend, or of all replicas together, shared by all who ask."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from msgspec.structs import replace

from ..backends.lifecycle import Lifecycle
from ..backends.registry import Record, Registry
from ..domain.errors import BackendUnreadable, ModelNotLoaded, PidNotHeld
from ..domain.models import Backend, Memory, Reading
from ..processes.process import ProcessGone
from .reader import NO_SAMPLE, BackendReader
from .replicas import combine, join_words, sum_of_memories
from .shared_reading import KeptReading, SharedReading

_READ_AT_ONCE = 64


class ModelReader:
    """Reads models. Safe to call from any thread.

    Each backend is read by one at a time, and who asks meanwhile, or up to `max_age_seconds` after
    it was begun, gets the same reading; but none of a backend that has ended, or that was
    registered anew since.

    Args:
        registry: where backends stand.
        lifecycle: told of those that turn out to have ended.
        readings: reads one.
        max_age_seconds: how old a reading may be that is given again; 0: none is.
    """

    def __init__(
        self,
        registry: Registry,
        lifecycle: Lifecycle,
        readings: BackendReader,
        max_age_seconds: float,
    ) -> None:
        self._registry = registry
        self._lifecycle = lifecycle
        self._readings = readings
        self._max_age_seconds = max_age_seconds
        self._lock = threading.Lock()

    def read(self, model: str, pid: int | None = None, *, anew: bool = False) -> SharedReading:
        """Read a model: its backend, all its replicas together, or the one with a PID.

        Args:
            model: which.
            pid: of which backend; None for all.
            anew: give no reading that was finished before.

        Raises:
            PidNotHeld: the model does not hold that PID.
            ModelNotLoaded: no backend of it is registered.
            BackendUnreadable: the status failed, and the process cannot be read (of each of them).
        """
        while records := self._registry.records(model):
            wanted = [each for each in records if pid in (None, each.backend.pid)]
            if not wanted:
                assert pid is not None
                raise PidNotHeld(model, pid, [each.backend.pid for each in records])
            try:
                return self._share(wanted, records, anew)
            except ProcessGone:
                continue
        raise ModelNotLoaded(model, self._lifecycle.describe_last_end(model))

    def held(self, model: str, reading: Reading) -> tuple[Memory | None, str | None]:
        """What all backends of a model hold, and who says so, a reading of which was just made."""
        if reading.status is not None:
            return reading.status.memory, reading.memory_source
        records = self._registry.records(model)
        held = [
            self._readings.held(each, replace(reading, backend=each.backend)) for each in records
        ]
        return sum_of_memories([each for each, _ in held]), join_words(each for _, each in held)

    def _share(
        self, wanted: Sequence[Record], records: Sequence[Record], anew: bool
    ) -> SharedReading:
        """Give a reading that others may get too: of one of a model's backends, or of all.

        Raises:
            ProcessGone: one of the wanted has ended.
            BackendUnreadable: none of them can be read.
        """
        backends = [each.backend for each in records]
        together = len(wanted) > 1
        kept = wanted[0].kept.get(together)
        if kept is None or not kept.is_of(backends):
            kept = self._keep(wanted[0], together, records, backends)
        shared = kept.get(0 if anew else None)
        # Read first, then look: also what was kept is of none that has ended.
        if ended := [each for each in wanted if each.process.ended()]:
            for record in ended:
                self._lifecycle.end(record)
            raise ProcessGone(ended[0].backend.pid)
        return shared

    def _keep(
        self, holder: Record, together: bool, records: Sequence[Record], backends: list[Backend]
    ) -> KeptReading:
        """Begin to keep readings of these registrations, unless another thread was first."""
        read = partial(self._combine, records)
        if not together:
            read = partial(self._read, holder, len(records))
        with self._lock:
            kept = holder.kept.get(together)
            if kept is None or not kept.is_of(backends):
                kept = holder.kept[together] = KeptReading(backends, self._max_age_seconds, read)
        return kept

    def _read(self, record: Record, replicas: int) -> Reading:
        try:
            return replace(self._readings.read_record(record), replicas=replicas)
        except ProcessGone:
            self._lifecycle.end(record)
            raise

    def _combine(self, records: Sequence[Record]) -> Reading:
        """Read backends at the same time; those that have ended are left out.

        Raises:
            ProcessGone: all have ended.
            BackendUnreadable: none of those that run can be read.
        """
        if len(records) > _READ_AT_ONCE:  # the last ones wait for no deadline of the first
            self._readings.begin(records)
        with ThreadPoolExecutor(min(len(records), _READ_AT_ONCE), "monitor-read") as pool:
            futures = [pool.submit(self._share, [each], records, True) for each in records]
        readings: dict[Record, Reading] = {}
        failure: Exception = ProcessGone(records[-1].backend.pid)
        for record, future in zip(records, futures, strict=True):
            try:
                readings[record] = replace(future.result().reading, replicas=1)
            except BackendUnreadable as error:
                failure = error
                readings[record] = Reading(
                    record.backend, None, NO_SAMPLE, "psutil", None, time.time()
                )
            except ProcessGone:
                continue
        if all(each.sample == NO_SAMPLE for each in readings.values()):
            raise failure
        if any(each.status for each in readings.values()):
            # Who gave no status adds what its process tree holds.
            held = [self._readings.held(record, each) for record, each in readings.items()]
            return combine(list(readings.values()), held)
        return combine(list(readings.values()), [])
