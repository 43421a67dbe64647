"""The policy of a reading: what the backend says of itself, else what its process shows."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import psutil
from msgspec.structs import replace

from .errors import BackendUnreadable, ModelNotLoaded, PidNotHeld
from .events import Delivery
from .hooks import Hooks
from .lifecycle import Lifecycle
from .models import Backend, Memory, Reading, Sample, State, Status
from .process import ProcessGone
from .process_table import ProcessTable
from .registry import Record, Registry
from .replicas import combine
from .status_client import StatusClient

_READ_AT_ONCE = 64
_NO_SAMPLE = Sample(None, None, None, None)


class Readings:
    """Reads backends. Safe to call from any thread.

    Args:
        registry: where they stand.
        lifecycle: told of those that turn out to have ended.
        status_client: asks them by gRPC.
        table: lists their process trees.
        hooks: asked first, and for what they know of memory.
        status_timeout_seconds: how long asking may take.
    """

    def __init__(
        self,
        registry: Registry,
        lifecycle: Lifecycle,
        status_client: StatusClient,
        table: ProcessTable,
        hooks: Hooks,
        status_timeout_seconds: float,
    ) -> None:
        self._registry = registry
        self._lifecycle = lifecycle
        self._status_client = status_client
        self._table = table
        self._hooks = hooks
        self._status_timeout_seconds = status_timeout_seconds

    def read(self, model: str, pid: int | None = None) -> Reading:
        """Read a model: its backend, all its replicas together, or the one with a PID.

        Raises:
            PidNotHeld: the model does not hold that PID.
            ModelNotLoaded: no backend of it is registered.
            BackendUnreadable: the status failed, and the process cannot be read (of each of them).
        """
        while records := self._registry.records(model):
            wanted = [each for each in records if pid in (None, each.backend.pid)]
            if pid is not None and not wanted:
                raise PidNotHeld(model, pid, [each.backend.pid for each in records])
            try:
                reading = self._read_together(wanted)
            except ProcessGone:  # of a single one, or the last of them
                continue
            return reading if pid is None else replace(reading, replicas=len(records))
        raise ModelNotLoaded(model, self._lifecycle.describe_last_end(model))

    def _read_together(self, records: Sequence[Record]) -> Reading:
        """Read backends at the same time; those that have ended are left out.

        Raises:
            ProcessGone: all have ended.
            BackendUnreadable: none of those that run can be read.
        """
        if len(records) == 1:
            return self._read_or_end(records[0])
        with ThreadPoolExecutor(min(len(records), _READ_AT_ONCE), "monitor-read") as pool:
            futures = [pool.submit(self._read_or_end, each) for each in records]
        readings: dict[Record, Reading] = {}
        failure: Exception = ProcessGone(records[-1].backend.pid)
        for record, future in zip(records, futures, strict=True):
            try:
                readings[record] = future.result()
            except BackendUnreadable as error:
                failure = error
                readings[record] = Reading(
                    record.backend, None, _NO_SAMPLE, "psutil", None, time.time()
                )
            except ProcessGone:
                continue
        if all(each.sample == _NO_SAMPLE for each in readings.values()):
            raise failure
        if any(each.status for each in readings.values()):
            # Who gave no status adds what its process tree holds.
            held = [self._held(record, each) for record, each in readings.items()]
            return combine(list(readings.values()), held)
        return combine(list(readings.values()), [])

    def _held(self, record: Record, reading: Reading) -> tuple[Memory | None, str | None]:
        """What a backend holds, and who says so: (None, None) where that is not known."""
        if reading.status is not None:
            return reading.status.memory, reading.memory_source
        try:
            filled, source = self._fill_memory(record, reading.backend, Status(State.READY))
        except ProcessGone:
            return None, None
        return filled.memory, source

    def _read_or_end(self, record: Record) -> Reading:
        try:
            return self.read_record(record)
        except ProcessGone:
            self._lifecycle.end(record)
            raise

    def read_record(self, record: Record) -> Reading:
        """Read one backend.

        Raises:
            ProcessGone: its process has ended, whoever answers at its address.
            BackendUnreadable: its status failed, and its process cannot be read.
        """
        backend = record.backend
        status, source, rpc_error = self.ask(record)
        if status is None:
            return self._read_sample(record, backend, rpc_error)
        status, memory_source = self._fill_memory(record, backend, status)
        return Reading(backend, status, None, source, None, time.time(), memory_source)

    def ask(
        self, record: Record, patience_seconds: float = math.inf
    ) -> tuple[Status | None, str, str | None]:
        """Ask one backend for its status: the hooks first, then gRPC.

        Returns:
            The status, None where it failed; its source; the gRPC code's name where it failed.

        Raises:
            ProcessGone: its process has ended, whoever answers at its address.
        """
        backend, source, rpc_error = record.backend, "hook", None
        status = self._hooks.query_status(backend, self._status_timeout_seconds)
        if status is None:
            source = "grpc"
            status, rpc_error = self._status_client.status(backend, patience_seconds)
        self._hooks.wait(self.note(record, backend, status))
        return status, source, rpc_error

    def note(self, record: Record, backend: Backend, status: Status | None) -> Delivery | None:
        """Take note of what asking a backend gave; `status` is None where that failed.

        Returns:
            The event, if its state has changed.

        Raises:
            ProcessGone: its process has ended, whoever answers at its address.
        """
        ended = record.process.ended()
        if ended or record.backend is not backend:
            # It may have been forgotten before this very call connected to it anew.
            self._status_client.forget(backend)
        if ended:
            raise ProcessGone(backend.pid)
        if status is None or status.state not in State.__members__.values():
            return None
        current = State(status.state)
        tell = partial(self._hooks.state_changed, backend, current=current)
        return self._registry.change_state(record, current, tell)

    def _read_sample(self, record: Record, backend: Backend, rpc_error: str | None) -> Reading:
        try:
            sample = record.sampler.sample()
        except (psutil.Error, OSError) as error:
            raise BackendUnreadable(backend.model, backend.pid, str(error)) from error
        if (sample.rss, sample.vms, sample.memory_percent, sample.cpu_percent) == (None,) * 4:
            raise BackendUnreadable(
                backend.model,
                backend.pid,
                f"no figure of it may be read, and Status failed: {rpc_error}",
            )
        return Reading(backend, None, sample, "psutil", rpc_error, time.time())

    def _fill_memory(
        self, record: Record, backend: Backend, status: Status
    ) -> tuple[Status, str | None]:
        """Add what the backend did not report, and what hooks know; and name the total's source."""
        breakdown: dict[str, int] = {}
        if self._hooks.has_memory_components():
            breakdown = self._hooks.memory_components(backend, self._table.tree(backend.pid))
        total, source = 0, "backend"
        if status.memory:
            breakdown = {**breakdown, **status.memory.breakdown}
            total = status.memory.total
        if not total:  # no process holds 0 bytes: it does not know
            held = record.memory.get()
            if record.process.ended():  # read first, then look whether it was the right process
                raise ProcessGone(backend.pid)
            if held is None:
                return Status(status.state, None), None
            total, source = held
        return Status(status.state, Memory(total, breakdown)), source
