"""Readings of one backend: its status, or a sample of its process if the status fails."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

import grpc
import psutil
from msgspec.structs import replace

from ..backends.registry import Record, Registry, Serving
from ..domain.errors import BackendUnreadable
from ..domain.models import Backend, Memory, ProcessName, Reading, State, Status
from ..gpu.reader import GpuReader
from ..plugins.hooks import HookQuery, Hooks
from ..processes.limits import LimitsReader
from ..processes.members import MemberTable
from ..processes.process import ProcessGone
from ..processes.tree_memory import TreeTotal, tree_total
from ..rpc.call import StatusOutcome
from ..rpc.client import StatusClient
from .address_check import AddressCheck
from .replicas import NO_MEMORY, NO_SAMPLE, SourcedMemory, sourced_memory


class StatusResult(NamedTuple):
    """The result of requesting a status from hooks, and by gRPC or HTTP.

    Attributes:
        status: the status; None if the request failed.
        source: `hook`, `grpc` or `http`.
        rpc_error: the name of the gRPC code if the request failed, else None.
        answered: whether the backend has answered, with a status or with an error of its own.
        served_by: PID of the member that listens at the address; None if none is seen to.
        address_owner: the process that listens there and is no member; None if there is none, or
            if that is not known.
        protocol: see `Reading.protocol`.
        status_error: see `Reading.status_error`.
    """

    status: Status | None
    source: str
    rpc_error: str | None
    answered: bool = False
    served_by: int | None = None
    address_owner: ProcessName | None = None
    protocol: str | None = None
    status_error: str | None = None


def result_of_call(outcome: StatusOutcome) -> StatusResult:
    """Return the result of a request by gRPC or HTTP."""
    status, rpc_error, answered, source, protocol, error_text, _ = outcome
    return StatusResult(
        status, source, rpc_error, answered, protocol=protocol, status_error=error_text
    )


def result_of_address_owner(serving: Serving) -> StatusResult:
    """Return the result if another process serves the address, whatever that process answers."""
    code = grpc.StatusCode.UNAVAILABLE.name
    return StatusResult(None, "grpc", code, False, serving.served_by, serving.address_owner)


class BackendReader:
    """Reads backends, without a cache. Safe to call from any thread.

    Args:
        registry: stores the backends' states.
        status_client: requests statuses by gRPC and HTTP.
        member_table: lists the members of backends.
        limits_reader: reads the limits of the registered processes.
        address_check: tells whether a member serves a backend's address.
        gpu_reader: reads the GPUs that the members use.
        hooks: requests statuses before the client does, and adds memory components.
        status_timeout_seconds: the maximum time of a reading: for the hooks, the client and the
            memory components together.
    """

    def __init__(
        self,
        registry: Registry,
        status_client: StatusClient,
        member_table: MemberTable,
        limits_reader: LimitsReader,
        address_check: AddressCheck,
        gpu_reader: GpuReader,
        hooks: Hooks,
        status_timeout_seconds: float,
    ) -> None:
        self._registry = registry
        self._status_client = status_client
        self._member_table = member_table
        self._limits_reader = limits_reader
        self._address_check = address_check
        self._gpu_reader = gpu_reader
        self._hooks = hooks
        self._status_timeout_seconds = status_timeout_seconds

    def read(self, record: Record) -> Reading:
        """Read one backend.

        Raises:
            ProcessGone: the registered process has ended, even if the address still answers.
            BackendUnreadable: the status request failed, and the process cannot be read.
        """
        backend, deadline = record.backend, self.deadline()
        if serving := self._address_check.find_address_owner(record):
            result = self.confirm(record, backend, result_of_address_owner(serving))
            return self._read_sample(record, backend, result)
        # If a status is likely, one run of the hooks queries the status and the memory components.
        pids = None if record.source is None else partial(self._member_table.pids, record.members)
        query = self._hooks.begin_query(backend, self._status_timeout_seconds, pids)
        result = self._request_status(record, backend, deadline, query)
        breakdown = query.memory_components()  # also without a status: the hooks must be watched
        result = self.confirm(record, backend, result)
        if result.status is None:
            return self._read_sample(record, backend, result)
        if pids is None:
            breakdown = self._hook_components(record, backend, deadline)
        breakdown = self._with_gpus(record, breakdown, deadline)
        completed = self._complete_memory(record, result.status, breakdown)
        return Reading(
            backend,
            replace(result.status, memory=completed.memory),
            None,
            result.source,
            None,
            time.time(),
            completed.source,
            memory_age_seconds=completed.age_seconds,
            protocol=result.protocol,
        )

    def start_requests(self, records: Sequence[Record]) -> None:
        """Start the requests of backends that will be read, so that the deadlines overlap."""
        if not self._hooks.may_delay_status():
            for record in records:
                if not self._address_check.find_address_owner(record):
                    self._status_client.request_status(record.backend)

    def deadline(self) -> float:
        """Return the deadline of a reading that begins now, by the monotonic clock."""
        return time.monotonic() + self._status_timeout_seconds

    def memory(self, record: Record, reading: Reading, deadline: float) -> SourcedMemory:
        """Return the memory of a backend that was just read, with or without a status.

        Hooks may add components until the deadline, a time by the monotonic clock.
        """
        if reading.status is not None:
            return sourced_memory(reading)
        try:
            components = self._hook_components(record, reading.backend, deadline)
            components = self._with_gpus(record, components, deadline)
            return self._complete_memory(record, None, components)
        except ProcessGone:
            return NO_MEMORY

    def status(self, record: Record, timeout_seconds: float = math.inf) -> StatusResult:
        """Request the status of one backend from hooks, and otherwise by gRPC or HTTP.

        Raises:
            ProcessGone: the registered process has ended, even if the address still answers.
        """
        backend = record.backend
        if serving := self._address_check.find_address_owner(record):
            return self.confirm(record, backend, result_of_address_owner(serving))
        seconds = min(self._status_timeout_seconds, timeout_seconds)
        deadline = time.monotonic() + seconds
        query = self._hooks.begin_query(backend, seconds)
        result = self._request_status(record, backend, deadline, query)
        return self.confirm(record, backend, result)

    def _request_status(
        self, record: Record, backend: Backend, deadline: float, query: HookQuery
    ) -> StatusResult:
        """Wait for the status of the hooks, and otherwise for that of the client.

        The client's request starts when the hooks have answered without a status. It starts
        immediately if the last status came by gRPC or HTTP. If the hooks have not answered after
        half of the time, the request starts then, so that half of the time is left for it.
        """
        client, request = self._status_client, None
        if record.source in ("grpc", "http"):
            request = client.request_status(backend)
        half_time = deadline - (deadline - time.monotonic()) / 2
        if not query.wait(half_time):
            request = request or client.request_status(backend)
        status = query.status()  # takes precedence over the client's
        if status is not None:
            return StatusResult(status, "hook", None, answered=True)
        request = request or client.request_status(backend)
        return result_of_call(request.wait(deadline - time.monotonic()))

    def confirm(self, record: Record, backend: Backend, result: StatusResult) -> StatusResult:
        """Check which process gave the result that was just received, and record its state.

        Returns:
            The result, with the process that serves the address. If that process is no member, the
            result is UNAVAILABLE.

        Raises:
            ProcessGone: the registered process has ended, even if the address still answers.
        """
        ended = record.process.ended()
        if ended or record.is_replaced or record.backend is not backend:
            # The request may have opened a connection after the backend's connection was closed.
            self._status_client.close_connection(backend)
        if ended:
            raise ProcessGone(backend.pid)
        if result.address_owner is None:
            serving = self._address_check.check_result(record, backend, result.rpc_error)
            if serving.address_owner is not None:
                result = result_of_address_owner(serving)
            else:
                result = result._replace(served_by=serving.served_by)
        status = result.status
        if status is not None:
            record.has_requests = status.has_requests
        if record.state is None and not record.answered and _is_not_ready_yet(result):
            record.saw_start = True
        record.source = result.source if status else None
        if result.answered and not record.answered:
            self._registry.set_answered(record, backend)
        if status is not None and status.state in State.__members__.values():
            current = State(status.state)
            publish = partial(self._hooks.state_changed, backend, current=current)
            self._registry.change_state(record, current, publish)
        return result

    def _read_sample(self, record: Record, backend: Backend, result: StatusResult) -> Reading:
        limits = self._limits_reader.read(*record.members.root)
        try:
            sample = record.sampler.sample(self._limits_reader.usable_bytes(limits))
        except (psutil.Error, OSError) as error:
            raise BackendUnreadable(backend.model, backend.pid, str(error)) from error
        if sample == NO_SAMPLE:
            raise BackendUnreadable(
                backend.model,
                backend.pid,
                f"no figure of it may be read, and Status failed: {result.rpc_error}",
            )
        return Reading(
            backend,
            None,
            sample,
            "psutil",
            result.rpc_error,
            time.time(),
            address_owner=result.address_owner,
            status_error=result.status_error,
        )

    def _hook_components(self, record: Record, backend: Backend, deadline: float) -> dict[str, int]:
        pids = partial(self._member_table.pids, record.members)
        return self._hooks.memory_components(backend, pids, deadline)

    def _with_gpus(
        self, record: Record, components: dict[str, int], deadline: float
    ) -> dict[str, int]:
        """Add the memory on GPUs to the components of hooks. A hook's component has precedence."""
        seconds = max(0.0, min(1.0, deadline - time.monotonic()))
        gpus = self._gpu_reader.read(wait_seconds=seconds)
        if not gpus.has_uses:
            return components
        held = gpus.held_by(self._member_table.identities(record.members))
        return {**held.components, **components}

    def _complete_memory(
        self, record: Record, status: Status | None, components: dict[str, int]
    ) -> SourcedMemory:
        """Complete the reported memory by the process tree's memory and the hooks' components."""
        total = None
        if not reports_memory(status):
            rss, now = self._member_table.read_rss(record.members), time.monotonic()
            total = tree_total(record.tree_memory, rss, now)
            if record.process.ended():  # check after reading: the PID may have a new process
                raise ProcessGone(record.backend.pid)
        return complete_memory(status, components, total)


def _is_not_ready_yet(result: StatusResult) -> bool:
    """Whether the first result of a backend shows that its model is not loaded yet."""
    if result.status is not None:
        return result.status.state == State.UNINITIALIZED
    is_unavailable = result.rpc_error == grpc.StatusCode.UNAVAILABLE.name
    return is_unavailable and result.address_owner is None


def reports_memory(status: Status | None) -> bool:
    """Whether a status reports memory; 0 bytes mean that it does not, as no process has 0."""
    return status is not None and status.memory is not None and status.memory.total > 0


def complete_memory(
    status: Status | None, components: Mapping[str, int], total: TreeTotal | None
) -> SourcedMemory:
    """Combine the known figures of a backend's memory; `NO_MEMORY` if no total is known.

    Args:
        status: the backend's status; its components replace hooks' components of the same name.
        components: the components of GPUs and hooks, in bytes.
        total: the memory of the process tree; None if it is not known.
    """
    reported = status.memory if status and status.memory else Memory(0)
    breakdown = {**components, **reported.breakdown}
    if reported.total:
        return SourcedMemory(Memory(reported.total, breakdown), "backend")
    if total is None:
        return NO_MEMORY
    return SourcedMemory(Memory(total.amount, breakdown), total.source, total.age_seconds)
