"""Backends come and go: registration with its checks, and every way by which an end is noticed."""

from __future__ import annotations

import os
import time
from functools import partial
from typing import TypeGuard

import psutil

from ..concurrency.periodic import PeriodicTask
from ..concurrency.single_flight import SingleFlight
from ..config.descriptors import most_pidfds
from ..domain.address import canonical_address
from ..domain.errors import InvalidBackend
from ..domain.exits import describe_exit, make_exit
from ..domain.model_name import fault_in_model_name
from ..domain.models import Backend
from ..plugins.event_queue import Delivery
from ..plugins.hooks import Hooks
from ..processes.exit_watcher import ExitWatcher
from ..processes.oom import OomKillCounter
from ..processes.process import Process, ProcessGone
from ..processes.process_table import ProcessTable, read_row
from ..processes.sampler import BASELINE_INTERVAL_SECONDS, Sampler
from ..rpc.channels import ChannelSecurity
from ..rpc.client import StatusClient
from .counters import ModelCounter
from .registry import Record, Registry

# Reading PSS costs milliseconds per GiB of the backend's memory.
_TREE_MEMORY_MAX_AGE_SECONDS = 5.0


class Lifecycle:
    """Fills and empties the registry. Safe to call from any thread.

    Args:
        registry: where backends stand.
        table: sums the memory of process trees.
        status_client: told of backends that are gone, so that it closes their channels.
        hooks: told of backends that came and went.
        counter: counts ends.
        security: says which addresses may not be called.
    """

    def __init__(
        self,
        registry: Registry,
        table: ProcessTable,
        status_client: StatusClient,
        hooks: Hooks,
        counter: ModelCounter,
        security: ChannelSecurity,
    ) -> None:
        self._registry = registry
        self._table = table
        self._status_client = status_client
        self._hooks = hooks
        self._counter = counter
        self._security = security
        self._watcher = ExitWatcher(self._on_end)
        self._ticker = PeriodicTask("monitor-ticker", BASELINE_INTERVAL_SECONDS, self._mark)
        self._closed = False

    def start(self) -> None:
        """Start noticing ends, and keeping the marks from which figures are measured."""
        self._watcher.start()
        self._ticker.start()

    def close(self) -> None:
        """Stop noticing ends, and forget all backends; their processes are left alone."""
        self._closed = True
        self._ticker.close()
        self._watcher.close()
        self._forget_all()

    def _forget_all(self) -> None:
        for record in self._registry.clear():
            self._let_go(record)

    def spawned(self, model: str, pid: int, address: str) -> None:
        """Register a backend, or update its record: see `monitor_backend_spawned`.

        Raises:
            InvalidBackend: something is wrong with it; nothing was changed.
        """
        self._refuse_if_closed(model, pid, address)
        fault = fault_in_model_name(model) or _fault_in_pid(pid)
        try:
            canonical = canonical_address(address)
            self._security.check(address)
        except ValueError as error:
            fault = fault or str(error)
        if fault:
            raise InvalidBackend(
                f"the backend was not registered: {fault}", model=model, pid=pid, address=address
            )
        # Of subclasses, a text of numpy say, the plain value: what encodes them knows no others.
        model, pid, address = str.__str__(model), int.__int__(pid), str.__str__(address)
        while not self._register(model, pid, address, canonical):
            pass  # something had ended, or came, meanwhile
        self._refuse_if_closed(model, pid, address)  # meanwhile

    def _refuse_if_closed(self, model: str, pid: int, address: str) -> None:
        if self._closed:
            self._forget_all()  # what came too late to be let go with the others
            raise InvalidBackend("the monitor is closed", model=model, pid=pid, address=address)

    def _register(self, model: str, pid: int, address: str, canonical: str) -> bool:
        """Add a backend, or update its record; False where what it went by has changed."""
        told: list[Delivery | None] = []
        record = self._registry.record(pid)
        if record and not record.process.ended():
            # A creation time moves with the system's clock; the process, which runs, is the same.
            previous = record.backend
            backend = Backend(model, pid, address, previous.created_at)
            if backend == previous:
                return True
            tell = partial(self._tell_registered, backend, told)
            in_the_way = self._registry.update(record, backend, canonical, tell)
            if told:
                self._status_client.close_connection(previous)
        else:
            if record:
                self.end(record)
            record = self._open_record(model, pid, address, canonical)
            backend = record.backend
            tell = partial(self._tell_registered, backend, told)
            in_the_way = self._registry.add(record, tell)
            if not told:
                self._discard(record)
            elif record.process.ended():  # before it stood where the watcher finds it
                self.end(record)
        if told:
            self._hooks.wait(told[0])
        elif in_the_way and in_the_way.process.ended():
            self.end(in_the_way)
        elif in_the_way and in_the_way.backend.pid != pid:
            raise _address_taken(backend, in_the_way.backend)
        return bool(told)

    def _tell_registered(self, backend: Backend, told: list[Delivery | None]) -> None:
        told.append(self._hooks.backend_registered(backend))

    def _open_record(self, model: str, pid: int, address: str, canonical: str) -> Record:
        try:
            process = Process(pid, keep_descriptor=self._watcher.pidfd_count() < most_pidfds())
            backend = Backend(model, pid, address, process.created_at)
            memory = SingleFlight(
                _TREE_MEMORY_MAX_AGE_SECONDS, partial(self._table.tree_memory, pid)
            )
            record = Record(
                backend, canonical, process, Sampler(process), memory, OomKillCounter(pid)
            )
        except (ProcessGone, psutil.Error, OSError) as error:
            raise InvalidBackend(
                f"the backend was not registered: {error}", model=model, pid=pid, address=address
            ) from None
        self._watcher.watch(process)
        return record

    def _discard(self, record: Record) -> None:
        self._watcher.unwatch(record.process)
        record.process.close()

    def exited(self, model: str, pid: int, exit_code: int | None) -> None:
        """Take the host's word that a backend ended: see `monitor_backend_exited`.

        Raises:
            InvalidBackend: an argument has a wrong type.
        """
        fault = fault_in_model_name(model)
        if not _is_integer(pid):
            fault = fault or f"the PID must be an integer, not {pid!r}"
        if exit_code is not None and not _is_integer(exit_code):
            fault = fault or f"the exit code must be an integer or None, not {exit_code!r}"
        if fault:
            message = f"the end of a backend was not noted: {fault}"
            raise InvalidBackend(message, model=model, pid=pid, address=None)
        if exit_code is not None:
            exit_code = int.__int__(exit_code)
        record = self._registry.record(pid)
        if record and record.backend.model == model and record.process.ended():
            self.end(record, exit_code)
        self._complete(model, pid, exit_code)

    def _complete(self, model: str, pid: int, exit_code: int | None) -> None:
        """Add an exit code to the newest end of a PID, where it is missing there."""
        for end in reversed(self._registry.ends()):
            if (end.backend.model, end.backend.pid) == (model, pid):
                exit = end.exit
                if exit.exit_code is None and exit.signal is None and exit_code is not None:
                    stopped = exit.cause == "shutdown"
                    completed = make_exit(exit_code, stopped, end.oom_kill_seen, exit.ended_at)
                    self._registry.replace_end(end, end._replace(exit=completed))
                return

    def end(self, record: Record, exit_code: int | None = None) -> None:
        """Take a backend whose process has ended out of the registry, once, and tell of it.

        Args:
            record: the backend's.
            exit_code: what the host said; None to find out.
        """
        self._hooks.wait(self._end(record, exit_code))

    def _on_end(self, process: Process) -> None:
        record = self._registry.record(process.pid)
        if record and record.process is process:
            self._end(record, None)  # without waiting: other processes end too

    def _end(self, record: Record, exit_code: int | None) -> Delivery | None:
        if exit_code is None:
            exit_code = record.process.exit_code()
        oom_kill_seen = record.oom.has_risen() and not any(
            other is not record and other.oom.path == record.oom.path
            for other in self._registry.records()
        )
        exit = make_exit(exit_code, record.stopping, oom_kill_seen, time.time())
        told: list[Delivery | None] = []

        def tell() -> None:
            told.append(self._hooks.backend_gone(record.backend, exit))

        if not self._registry.end(record, exit, oom_kill_seen, tell):
            # A late reader may have opened a connection again.
            self._status_client.close_connection(record.backend)
            return None
        self._let_go(record)
        self._counter.ended(record.backend, exit)
        return told[0]

    def _let_go(self, record: Record) -> None:
        self._status_client.close_connection(record.backend)
        self._discard(record)

    def _mark(self) -> None:
        for record in self._registry.records():
            try:
                record.sampler.record_baseline()
                record.oom.update()
            except ProcessGone:
                self._end(record, None)

    def describe_last_end(self, model: str) -> str | None:
        """Say how the last backend of a model ended; None where none is remembered."""
        for end in reversed(self._registry.ends()):
            if end.backend.model == model:
                return f"its process {end.backend.pid} {describe_exit(end.exit, time.time())}"
        return None


def _fault_in_pid(pid: object) -> str | None:
    if not _is_integer(pid):
        return f"the PID must be an integer, not {pid!r}"
    if pid in (0, 1) or pid < 0:
        return f"PID {pid} is no process that may be watched and stopped"
    ancestor = os.getpid()
    while ancestor > 1:
        try:
            row = read_row(ancestor)
        except OSError as error:
            return f"the monitor cannot look at it: {error}"
        # Who leads a session is stopped with its members.
        if pid in (ancestor, row.session if row else ancestor):
            return f"PID {pid} is the monitor's own process, its ancestor, or leads their session"
        ancestor = row.parent if row else 0
    return None


def _is_integer(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _address_taken(backend: Backend, holder: Backend) -> InvalidBackend:
    return InvalidBackend(
        f"the backend was not registered: address {backend.address!r} is held by process "
        f"{holder.pid} of model {holder.model!r}, which runs",
        model=backend.model,
        pid=backend.pid,
        address=backend.address,
    )
