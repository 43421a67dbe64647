"""The policy of a reading: what the backend says of itself, else what its process shows."""

from __future__ import annotations

import math
import time
from functools import partial

import psutil

from .errors import BackendUnreadable, ModelNotLoaded
from .hooks import Hooks
from .lifecycle import Lifecycle
from .models import Backend, Memory, Reading, State, Status
from .process import ProcessGone
from .process_table import ProcessTable
from .registry import Record, Registry
from .status_client import StatusClient


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

    def read(self, model: str) -> Reading:
        """Read the newest backend of a model.

        Raises:
            ModelNotLoaded: none is registered.
            BackendUnreadable: its status failed, and its process cannot be read.
        """
        while records := self._registry.records(model):
            try:
                return self.read_record(records[-1])
            except ProcessGone:
                self._lifecycle.end(records[-1])
        raise ModelNotLoaded(model, self._lifecycle.describe_last_end(model))

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
        if record.process.ended():
            raise ProcessGone(backend.pid)
        if status is not None:
            self._note_state(record, backend, status.state)
        return status, source, rpc_error

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

    def _note_state(self, record: Record, backend: Backend, number: int) -> None:
        if number in State.__members__.values():
            current = State(number)
            tell = partial(self._hooks.state_changed, backend, current=current)
            self._hooks.wait(self._registry.change_state(record, current, tell))

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
