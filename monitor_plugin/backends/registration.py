"""Checks and records what hosts report: backends that were spawned, and backends that exited."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial

import psutil

from ..concurrency.closing import close_all
from ..config.descriptors import max_pidfds
from ..domain.address import canonical_address
from ..domain.errors import InvalidBackend, InvalidRequest
from ..domain.model_name import validate_model_name
from ..domain.models import Backend
from ..plugins.hooks import Hooks
from ..plugins.plugin_queue import Delivery
from ..processes.members import Members, MemberTable
from ..processes.oom import OomKillCounter
from ..processes.output_files import OutputFiles, OutputFileTable
from ..processes.process import Process, ProcessGone
from ..processes.process_table import (
    TICKS_PER_SECOND,
    ProcessIdentity,
    find_descendants,
    read_ancestry,
    read_row,
)
from ..processes.sampler import Sampler
from ..rpc.channels import ChannelSecurity
from ..rpc.client import StatusClient
from .exits import ExitRecorder
from .left_behind import LeftBehindTracker
from .refusals import Refusals
from .registry import Conflict, NotRegistered, Record, Registry, ShutdownInProgress

# If a process is registered within this time after its creation, its time to READY is measured even
# if its first answer is READY. A host may register a backend only when the backend listens.
_START_SEEN_SECONDS = 10.0
# For so long after the end of an adopted process, its former is not registered again: a client such
# as `docker run` ends soon after its container.
_FORMER_ENDS_SECONDS = 10.0
_MAX_ADOPTIONS = 1000


class Registration:
    """Registers the backends that hosts report. Safe to call from any thread.

    Args:
        registry: the registered backends.
        member_table: finds the members of backends.
        status_client: closes its channel to the address that a backend had before.
        hooks: called for each registration.
        exit_recorder: records the exits.
        left_behind: tracks the members of backends.
        security: decides which addresses may be called.
        refusals: stores the registrations that are refused.
        output_table: holds the files that backends write their output to.
        on_added: called after a backend was added; it must not block.
    """

    def __init__(
        self,
        registry: Registry,
        member_table: MemberTable,
        status_client: StatusClient,
        hooks: Hooks,
        exit_recorder: ExitRecorder,
        left_behind: LeftBehindTracker,
        security: ChannelSecurity,
        refusals: Refusals,
        output_table: OutputFileTable,
        on_added: Callable[[], object],
    ) -> None:
        self._registry = registry
        self._member_table = member_table
        self._status_client = status_client
        self._hooks = hooks
        self._exit_recorder = exit_recorder
        self._left_behind = left_behind
        self._security = security
        self._refusals = refusals
        self._output_table = output_table
        self._on_added = on_added
        self._closed = False
        # The records of adopted processes, by the PIDs that hosts know, newest last.
        self._adoptions: dict[int, Record] = {}

    def close(self) -> None:
        """Refuse further registrations, and remove all backends; their processes still run."""
        self._closed = True
        self._remove_all()

    def _remove_all(self) -> None:
        release = self._exit_recorder.release
        close_all(*(partial(release, record) for record in self._registry.clear()))

    def spawned(self, model: str, pid: int, address: str) -> None:
        """Register a backend, or update its record: see `monitor_backend_spawned`.

        Raises:
            InvalidBackend: an argument cannot be used; nothing was changed.
        """
        self._refuse_if_closed(model, pid, address)
        try:
            plain_model = validate_model_name(model)
            plain_pid = _validate_pid(pid)
            canonical = canonical_address(address)
            self._security.check(address)
        except (InvalidRequest, ValueError) as error:
            raise self._refuse(error, model, pid, address) from None
        # The JSON encoder accepts no subclasses of str, such as numpy's.
        plain_address = str.__str__(address)
        while True:
            try:
                delivery = self._register(plain_model, plain_pid, plain_address, canonical)
            except NotRegistered:  # the record to be updated was removed meanwhile
                continue
            except ShutdownInProgress:
                reason = (
                    f"a shutdown of model {model!r} is in progress, so process {pid} cannot take "
                    "the place of the registered one; register it again after the shutdown"
                )
                raise self._refuse(reason, model, pid, address) from None
            except (ProcessGone, psutil.Error, OSError) as error:
                raise self._refuse(error, model, pid, address) from None
            except Conflict as conflict:
                holder = conflict.record
                if holder.process.ended():
                    self._exit_recorder.record_exit(holder)
                elif holder.backend.pid != pid:
                    reason = (
                        f"address {address!r} is held by process {holder.backend.pid} of model "
                        f"{holder.backend.model!r}, which runs; stop that model first, or give "
                        "this process another address"
                    )
                    raise self._refuse(reason, model, pid, address) from None
                # Otherwise another thread registered the same PID: update that record.
                continue
            break
        self._drop_refusals(plain_model, plain_pid, plain_address)
        if delivery:
            self._hooks.wait([delivery])
        self._refuse_if_closed(model, pid, address)  # `close` may have run meanwhile

    def _refuse(self, reason: object, model: str, pid: int, address: str) -> InvalidBackend:
        """Store a refusal, and return its exception."""
        self._refusals.add(model, pid, address, reason)
        message = f"the backend was not registered: {reason}"
        return InvalidBackend(message, model=model, pid=pid, address=address)

    def _drop_refusals(self, model: str, pid: int, address: str) -> None:
        """Drop the refusals of a backend that was just registered, also of its other processes.

        A program may have a refused process that started the registered one, and still runs.
        """
        self._refusals.remove(pid)
        for each in self._refusals.find(model, address):
            record = self._registry.find(pid)
            with suppress(OSError):  # no file descriptor is free
                if record and self._is_same_backend(record, each.pid):
                    self._refusals.remove(each.pid)

    def _refuse_if_closed(self, model: str, pid: int, address: str) -> None:
        if self._closed:
            self._remove_all()  # a backend may have been added after `close` removed the others
            raise InvalidBackend("the monitor is closed", model=model, pid=pid, address=address)

    def _register(self, model: str, pid: int, address: str, canonical: str) -> Delivery | None:
        """Add a backend, or update or replace its record; return the event of the registration.

        Raises:
            Conflict: another record has the PID or the address.
            NotRegistered: the record to be updated or replaced was removed meanwhile.
            ShutdownInProgress: the record to be replaced is that of a backend in a shutdown.
            ProcessGone, psutil.Error, OSError: the process does not run, or cannot be read.
        """
        if adopted := self._find_adopted(pid):
            if not adopted.process.ended():
                pid = adopted.backend.pid
            elif self._has_just_ended(adopted):
                return None
        record = self._registry.find(pid)
        if record is None or record.process.ended():
            if record:
                self._exit_recorder.record_exit(record)
            holder = self._registry.find_by_address(canonical)
            if holder and holder.backend.model == model and self._is_same_backend(holder, pid):
                if holder.former:  # the host does not know the adopted process
                    return None
                new = self._open_record(model, pid, address, canonical, holder.members.identities())
                return self._replace(holder, new)
            return self._add(model, pid, address, canonical)
        # Keep the creation time: a new reading of it would move with the system's clock.
        previous = record.backend
        backend = Backend(model, pid, address, previous.created_at)
        if backend == previous:
            return None
        publish = partial(self._hooks.backend_registered, backend)
        delivery = self._registry.update(record, backend, canonical, publish)
        self._status_client.close_connection(previous)
        return delivery

    def _add(self, model: str, pid: int, address: str, canonical: str) -> Delivery:
        record = self._open_record(model, pid, address, canonical)
        publish = partial(self._hooks.backend_registered, record.backend)
        try:
            delivery = self._registry.add(record, publish)
        except Conflict:
            self._exit_recorder.release(record)
            raise
        self._on_added()
        if record.process.ended():  # the watcher may have seen the end before the record was added
            self._exit_recorder.record_exit(record)
        return delivery

    def _is_same_backend(self, record: Record, pid: int) -> bool:
        """Whether a process belongs to a registered backend, or the backend's root to the process.

        Raises:
            OSError: no file descriptor is free.
        """
        snapshot = self._member_table.rescan(record.members)
        row = snapshot.rows.get(pid)
        if row is None or record.process.ended():
            return False
        if (pid, row.started) in record.members.identities():
            return True
        members = Members((pid, row.started))
        members.update(snapshot)
        return record.members.root in members.identities()

    def _replace(self, old: Record, new: Record) -> Delivery:
        """Put the record of another process of a backend in the place of the registered one's.

        Raises:
            Conflict: another record has the new PID.
            NotRegistered: the old record was removed, or has another model or address by now.
            ShutdownInProgress: a shutdown of the backend is in progress.
        """
        publish = partial(self._hooks.backend_registered, new.backend)
        # A client writes to a file what the adopted process has written to a pipe.
        takes_output = new.former and new.output and new.output.is_empty
        if takes_output:
            new.output, old.output = old.output, new.output
        try:
            delivery = self._registry.replace(old, new, publish)
        except (Conflict, NotRegistered, ShutdownInProgress):
            if takes_output:
                new.output, old.output = old.output, new.output
            self._exit_recorder.release(new)
            raise
        self._on_added()
        self._exit_recorder.release(old)
        if new.process.ended():  # the watcher may have seen the end before the record was added
            self._exit_recorder.record_exit(new)
        return delivery

    def adopt(self, backend: Backend, pid: int) -> None:
        """Replace the registered process of a backend: see `Monitor.adopt_process`.

        Raises:
            InvalidBackend: the process cannot be adopted; nothing was changed.
        """
        try:
            delivery = self._adopt(backend, _validate_pid(pid))
        except NotRegistered:
            reason: object = f"process {backend.pid} is not registered as this backend"
        except ShutdownInProgress:
            reason = f"a shutdown of model {backend.model!r} is in progress; try again after it"
        except Conflict as conflict:
            holder = conflict.record.backend
            reason = f"it belongs to process {holder.pid} of model {holder.model!r}, which runs"
        except (ProcessGone, psutil.Error, OSError, ValueError) as error:
            reason = error
        else:
            if delivery:
                self._hooks.wait([delivery])
            return
        message = (
            f"process {pid!r} was not adopted in the place of process {backend.pid} of model "
            f"{backend.model!r}: {reason}"
        )
        raise InvalidBackend(message, model=backend.model, pid=pid, address=backend.address)

    def _adopt(self, backend: Backend, pid: int) -> Delivery | None:
        """Replace a backend's record by that of any process; None if it is registered already.

        Raises:
            Conflict: another record has the process, or stands for it.
            NotRegistered: the backend is not registered, or has another record by now.
            ShutdownInProgress: a shutdown of the backend is in progress.
            ProcessGone, psutil.Error, OSError: the process does not run, or cannot be read.
        """
        old = self._registry.find(backend.pid)
        if self._closed or old is None or old.backend != backend:
            raise NotRegistered
        if pid == backend.pid:
            return None
        for other in (self._registry.find(pid), self._find_adopted(pid)):
            if other and other.process.ended():
                self._exit_recorder.record_exit(other)
            elif other and other is not old:
                raise Conflict(other)
        if old.process.ended():
            self._exit_recorder.record_exit(old)
            raise NotRegistered
        new = self._open_record(
            *(backend.model, pid, backend.address, old.canonical_address),
            known_members=old.members.identities(),
            former_root=old.members.root,
        )
        former = old.former or old.members.root
        new.former = None if former == new.members.root else former
        delivery = self._replace(old, new)
        self._adoptions.pop(former[0], None)  # so that it becomes the newest
        if new.former:
            self._adoptions[former[0]] = new
        for oldest in list(self._adoptions)[:-_MAX_ADOPTIONS]:
            self._adoptions.pop(oldest, None)
        return delivery

    def _find_adopted(self, pid: int) -> Record | None:
        """Find the newest record of the process that was adopted in the place of a process."""
        record = self._adoptions.get(pid)
        if record is None or record.former is None:
            return None
        with suppress(OSError):  # no file descriptor is free
            row = read_row(pid)
            if row is not None and row.started != record.former[1]:  # the PID was reused
                return None
        return record

    def _has_just_ended(self, record: Record) -> bool:
        """Whether the process of a record has ended within the last ten seconds."""
        if self._registry.find(record.backend.pid) is record:
            self._exit_recorder.record_exit(record)
        ends = [each for each in self._registry.last_exits() if each.backend == record.backend]
        return any(time.time() - each.exit.ended_at < _FORMER_ENDS_SECONDS for each in ends)

    def host_pid(self, pid: int) -> int:
        """Return the PID by which a host knows a backend: see `Monitor.host_pid`."""
        record = self._registry.find(pid)
        return record.former[0] if record and record.former else pid

    def _open_record(
        self,
        model: str,
        pid: int,
        address: str,
        canonical: str,
        known_members: Sequence[ProcessIdentity] = (),
        former_root: ProcessIdentity | None = None,
    ) -> Record:
        """Open a process, and make its record.

        Raises:
            ProcessGone, psutil.Error, OSError: the process does not run, or cannot be read.
        """
        watcher = self._exit_recorder.watcher
        process = Process(pid, keep_descriptor=watcher.pidfd_count() < max_pidfds())
        try:
            sampler, oom, row = Sampler(process), OomKillCounter(pid), read_row(pid)
            if row is None or process.ended():  # check after reading: see `Process`
                raise ProcessGone(pid)
        except BaseException:
            process.close()
            raise
        backend = Backend(model, pid, address, process.created_at)
        # If the process is killed before the first snapshot, its children are orphans by then.
        known = [*known_members, *find_descendants(pid)]
        members = Members((pid, row.started), known, former_root)
        watcher.watch(process)
        self._left_behind.track(members)
        spawned_at = row.started / TICKS_PER_SECOND
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - spawned_at
        saw_start = age <= _START_SEEN_SECONDS
        output = OutputFiles(process, self._output_table)
        return Record(
            *(backend, canonical, process, sampler, members, oom, spawned_at, saw_start),
            output=output,
        )

    def exited(self, model: str, pid: int, exit_code: int | None) -> None:
        """Record the exit that a host reports: see `monitor_backend_exited`.

        Raises:
            InvalidBackend: an argument has a wrong type.
        """
        try:
            validate_model_name(model)
            _validate_integer("the PID must be an integer", pid)
            if exit_code is not None:
                exit_code = _validate_integer("the exit code must be an integer or None", exit_code)
        except (InvalidRequest, ValueError) as error:
            message = f"the end of a backend was not recorded: {error}"
            raise InvalidBackend(message, model=model, pid=pid, address=None) from None
        record = self._registry.find(pid)
        if record is None and (record := self._find_adopted(pid)):
            pid = record.backend.pid
        if record and record.backend.model == model and record.process.ended():
            self._exit_recorder.record_exit(record, exit_code)
        self._exit_recorder.add_exit_code(model, pid, exit_code)


def _validate_pid(value: object) -> int:
    """Return a PID that a backend may have, as a plain int.

    Raises:
        ValueError: the value is no PID, or a stop of that process would stop the monitor.
    """
    pid = _validate_integer("the PID must be an integer", value)
    if pid <= 1:
        raise ValueError(f"PID {pid} is no process that may be watched and stopped")
    try:
        ancestry = list(read_ancestry(os.getpid()))
    except OSError as error:
        raise ValueError(f"the monitor cannot read its ancestors: {error}") from None
    for ancestor, row in ancestry:
        # A stop of a leader stops all processes of its session and of its process group.
        if pid in ((ancestor, row.session, row.group) if row else (ancestor,)):
            raise ValueError(
                f"PID {pid} is the monitor's own process, its ancestor, or leads their session or "
                "process group"
            )
    return pid


def _validate_integer(requirement: str, value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return int.__int__(value)  # the plain value of a subclass, such as numpy's
    raise ValueError(f"{requirement}, not {value!r}")
