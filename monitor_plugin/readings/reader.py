"""The policy of a reading: what the backend says of itself, else what its process shows."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import psutil

from ..backends.registry import Record, Registry
from ..domain.errors import BackendUnreadable
from ..domain.models import Backend, Memory, Reading, Sample, State, Status
from ..plugins.event_queue import Delivery
from ..plugins.hooks import Hooks
from ..processes.process import ProcessGone
from ..processes.process_table import ProcessTable
from ..rpc.client import StatusClient
from ..rpc.connection import StatusRequest

NO_SAMPLE = Sample(None, None, None, None)


class BackendReader:
    """Reads backends, each anew. Safe to call from any thread.

    Args:
        registry: told of their states.
        status_client: asks them by gRPC.
        table: lists their process trees.
        hooks: asked first, and for what they know of memory.
        status_timeout_seconds: how long asking may take.
    """

    def __init__(
        self,
        registry: Registry,
        status_client: StatusClient,
        table: ProcessTable,
        hooks: Hooks,
        status_timeout_seconds: float,
    ) -> None:
        self._registry = registry
        self._status_client = status_client
        self._table = table
        self._hooks = hooks
        self._status_timeout_seconds = status_timeout_seconds

    def read_record(self, record: Record) -> Reading:
        """Read one backend.

        Raises:
            ProcessGone: its process has ended, whoever answers at its address.
            BackendUnreadable: its status failed, and its process cannot be read.
        """
        backend, components = record.backend, None
        seconds = self._status_timeout_seconds
        request = self._begin(record, backend)
        if record.source is None:
            answer_of_hooks = self._hooks.query_status(backend, seconds)
        else:  # it is to be expected that it answers again
            answer_of_hooks, components = self._hooks.query_both(
                backend, seconds, partial(self._table.tree, backend.pid)
            )
        status, source, rpc_error = self._ask(record, backend, math.inf, request, answer_of_hooks)
        if status is None:
            return self._read_sample(record, backend, rpc_error)
        breakdown = components() if components else self._components(backend)
        status, memory_source = self._fill_memory(record, status, breakdown)
        return Reading(backend, status, None, source, None, time.time(), memory_source)

    def begin(self, records: Sequence[Record]) -> None:
        """Begin to ask by gRPC those that are read soon: their deadlines run at the same time."""
        if not self._hooks.have_a_part_in_status():
            for record in records:
                self._status_client.request_status(record.backend)

    def held(self, record: Record, reading: Reading) -> tuple[Memory | None, str | None]:
        """What a backend holds, and who says so: (None, None) where that is not known."""
        if reading.status is not None:
            return reading.status.memory, reading.memory_source
        try:
            components = self._components(reading.backend)
            filled, source = self._fill_memory(record, Status(State.READY), components)
        except ProcessGone:
            return None, None
        return filled.memory, source

    def ask(
        self, record: Record, patience_seconds: float = math.inf
    ) -> tuple[Status | None, str, str | None]:
        """Ask one backend for its status: the hooks first, then gRPC.

        Returns:
            The status, None where it failed; its source; the gRPC code's name where it failed.

        Raises:
            ProcessGone: its process has ended, whoever answers at its address.
        """
        backend, deadline = record.backend, time.monotonic() + patience_seconds
        request = self._begin(record, backend)
        seconds = min(self._status_timeout_seconds, patience_seconds)
        answer_of_hooks = self._hooks.query_status(backend, seconds)
        return self._ask(record, backend, deadline, request, answer_of_hooks)

    def _begin(self, record: Record, backend: Backend) -> StatusRequest | None:
        """Ask by gRPC at once whoever answered by it before; hooks are asked meanwhile."""
        return self._status_client.request_status(backend) if record.source == "grpc" else None

    def _ask(
        self,
        record: Record,
        backend: Backend,
        deadline: float,
        request: StatusRequest | None,
        answer_of_hooks: Callable[[], Status | None],
    ) -> tuple[Status | None, str, str | None]:
        source, rpc_error = "hook", None
        outcome = request.wait(deadline - time.monotonic()) if request else None
        status = answer_of_hooks()  # which comes first
        if status is None:
            source = "grpc"
            left = deadline - time.monotonic()
            status, rpc_error = outcome or self._status_client.status(backend, left)
        record.source = source if status else None
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
            self._status_client.close_connection(backend)
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

    def _components(self, backend: Backend) -> dict[str, int]:
        return self._hooks.memory_components(backend, partial(self._table.tree, backend.pid))

    def _fill_memory(
        self, record: Record, status: Status, breakdown: dict[str, int]
    ) -> tuple[Status, str | None]:
        """Add what the backend did not report, and what hooks know; and name the total's source."""
        held = None
        if not reports_memory(status):
            held = record.memory.get()
            if record.process.ended():  # read first, then look whether it was the right process
                raise ProcessGone(record.backend.pid)
        memory, source = memory_of(status, breakdown, held)
        return Status(status.state, memory), source


def reports_memory(status: Status | None) -> bool:
    """Whether a backend says what it holds; no process holds 0 bytes: one that says so does not."""
    return status is not None and status.memory is not None and status.memory.total > 0


def memory_of(
    status: Status | None, components: Mapping[str, int], held: tuple[int, str] | None
) -> tuple[Memory | None, str | None]:
    """Say what a backend holds, and who says so; (None, None) where nobody knows.

    Args:
        status: what it says, None where it did not.
        components: what hooks know, in bytes; its own stand before those.
        held: what its process tree holds, in bytes, and how that was read.
    """
    reported = status.memory if status and status.memory else Memory(0)
    breakdown = {**components, **reported.breakdown}
    if reported.total:
        return Memory(reported.total, breakdown), "backend"
    if held is None:
        return None, None
    return Memory(held[0], breakdown), held[1]
