"""The registered backends and the last exits: plain data under one lock, without I/O."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple, TypeVar

from ..domain.models import (
    Backend,
    BackendExit,
    LeftBehindProcess,
    Observation,
    ProcessName,
    State,
)
from ..domain.postmortems import PostMortem
from ..domain.units import HostExit
from ..processes.members import Members
from ..processes.oom import OomKillCounter
from ..processes.output_files import OutputFiles
from ..processes.process import Process
from ..processes.process_table import ProcessIdentity
from ..processes.sampler import Sampler
from ..processes.tree_memory import TreeMemory

T = TypeVar("T")

MAX_EXITS = 100
MAX_RECENT_ENDS = 10_000
_RECENT_SECONDS = 3600.0


class Conflict(Exception):
    """Another record has the PID or the address.

    Attributes:
        record: the other record.
    """

    def __init__(self, record: Record) -> None:
        super().__init__(record)
        self.record = record


class NotRegistered(Exception):
    """The record is not in the registry, or was removed."""


class ShutdownInProgress(Exception):
    """A shutdown of the backend is in progress, so that its record must not be replaced."""


class EndedBackend(NamedTuple):
    """A backend that has ended, and its exit.

    Attributes:
        oom_certain: None unless the kernel killed a process of the backend's control group just
            before the exit, because memory ran out; then whether that group was the backend's own.
        group: the folder of the backend's control group; None if it is not known.
        left_behind: the members that still run; None: they were not searched for yet.
        id: the number of the end, greater than those of earlier ends, also of an earlier monitor.
        postmortem: all that is known of the end; None until its parts were read.
        output: the files that the process wrote its output to; closed when the exit is dropped.
        ends_last_hour: how many backends of the model have ended within the hour before, with this
            one.
        host_exit: what the host says of the end; None until it was asked, and if it says nothing.
    """

    backend: Backend
    exit: BackendExit
    oom_certain: bool | None
    group: str | None = None
    left_behind: Sequence[LeftBehindProcess] | None = None
    id: int = 0
    postmortem: PostMortem | None = None
    output: OutputFiles | None = None
    ends_last_hour: int = 1
    host_exit: HostExit | None = None

    @property
    def uptime_seconds(self) -> float:
        """The time from the creation of the process to its end, in seconds."""
        return max(0.0, self.exit.ended_at - self.backend.created_at)

    @property
    def may_have_left(self) -> bool:
        """Whether processes are left behind, or may be: a shutdown searches for them itself."""
        if self.left_behind is None:
            return self.exit.cause != "shutdown"
        return bool(self.left_behind)


class RecentEnds:
    """Counts the ends of each model within an hour, also of exits that are no longer stored.

    Of more than `MAX_RECENT_ENDS` ends within an hour, the oldest are not counted.
    """

    def __init__(self) -> None:
        self._ends: deque[tuple[float, str]] = deque()  # oldest first
        self._counts: Counter[str] = Counter()

    def add(self, model: str) -> int:
        """Count an end that happens now; return how many the model had within the hour."""
        now = time.monotonic()
        self._ends.append((now, model))
        self._counts[model] += 1
        while self._ends[0][0] <= now - _RECENT_SECONDS or len(self._ends) > MAX_RECENT_ENDS:
            _, dropped = self._ends.popleft()
            self._counts[dropped] -= 1
            if not self._counts[dropped]:
                del self._counts[dropped]
        return self._counts[model]


class Serving(NamedTuple):
    """Which process serves a backend's address, as the listening sockets showed.

    Attributes:
        backend: the registration that has the address.
        seen_at: when the sockets were read (monotonic seconds).
        served_by: PID of the member that listens at the address; None if none is seen to.
        address_owner: the process that listens there and is no member; None if there is none, or if
            that is not known.
        is_certain: whether all descriptors that matter could be read.
        inodes: the sockets that accept at the address.
    """

    backend: Backend
    seen_at: float
    served_by: int | None = None
    address_owner: ProcessName | None = None
    is_certain: bool = True
    inodes: frozenset[int] = frozenset()


@dataclass(eq=False)
class Record:
    """A registered backend, and the objects that live as long as its process.

    `process`, `sampler`, `members`, `oom` and `former` never change. `tree_memory`, `tree_read_at`,
    `observation`, `serving`, `source`, `has_requests`, `saw_start` and `shared_readings` are
    replaced without the registry's lock. The other attributes change only under that lock.

    Attributes:
        backend: the immutable description of the backend; a new object for each registration.
        canonical_address: the form of the address in which two addresses are compared.
        process: the handle that notices the end of the process.
        sampler: reads samples of the process.
        members: the processes that belong to the backend.
        oom: counts the kernel's out-of-memory kills in the backend's control group.
        spawned_at: when the process was created (seconds since boot). `replace` keeps the time of
            the first process.
        saw_start: whether the monitor knew the backend before it was READY.
        ready_seconds: the time from `spawned_at` to the first READY; None before that READY, and if
            `saw_start` is False.
        ready_at: when the first READY was seen, in seconds since the epoch.
        registered_at: when this address was registered (monotonic seconds).
        answered: whether the backend has answered at this address, or a hook gave its status.
        state: the last known state.
        state_changed_at: when that state was first seen, in seconds since the epoch.
        source: the source of the last status; None if the last request of a status failed.
        has_requests: whether it had requests by the last status: see `Status.has_requests`.
        serving: which process serves the address, as last read; None before the first time.
        address_owner: the process that serves the address and is no member, as last reported.
        observation: the result of the last sweep.
        tree_memory: the memory of the members at the last reading; None before the first reading.
        tree_read_at: when the last reading began (monotonic seconds), also if it failed.
        stopping: whether a shutdown is stopping the backend.
        in_shutdown: whether a shutdown of the backend is in progress, in any phase.
        is_replaced: whether another record has taken the place of this one.
        shared_readings: the model reader's readings of the model while this is its oldest backend;
            the registry only drops them, when the record is removed or updated.
        output: the files that the process writes its output to; None in tests, and after an adopted
            process has taken them over.
        former: the process that the host registered, if another one was adopted in its place.
    """

    backend: Backend
    canonical_address: str
    process: Process
    sampler: Sampler
    members: Members
    oom: OomKillCounter
    spawned_at: float = 0.0
    saw_start: bool = False
    ready_seconds: float | None = None
    ready_at: float | None = None
    registered_at: float = field(default_factory=time.monotonic)
    answered: bool = False
    state: State | None = None
    state_changed_at: float | None = None
    source: str | None = None
    has_requests: bool = False
    serving: Serving | None = None
    address_owner: ProcessName | None = None
    observation: Observation | None = None
    tree_memory: TreeMemory | None = None
    tree_read_at: float = -math.inf
    stopping: bool = False
    in_shutdown: bool = False
    is_replaced: bool = False
    shared_readings: object = None
    output: OutputFiles | None = None
    former: ProcessIdentity | None = None

    def is_starting(self, grace_seconds: float) -> bool:
        """Whether the backend has not answered yet, and was registered less than a grace ago.

        A backend that accepts connections and does not answer is starting too: it may be loading.
        One whose address another process serves is not: an operator should see that.
        """
        if self.answered or self.address_owner is not None:
            return False
        return time.monotonic() - self.registered_at < grace_seconds

    def peak_rss(self) -> int | None:
        """Return the most resident memory that the members are known to have had, in bytes.

        See `TreeUsage.peak_rss`. None before the memory was read.
        """
        if self.tree_memory is None or self.tree_memory.peak_rss is None:
            return None
        tree = self.observation.tree if self.observation else None
        return max(self.tree_memory.peak_rss, (tree.peak_rss if tree else None) or 0)


class Registry:
    """The registered backends, oldest first, and the last exits. Safe to call from any thread.

    Methods with the parameter `publish` call it under the lock after the change, and return its
    result. So the events of a PID or an address are published in the order of the changes.
    `publish` must not block; it puts an event into a queue.

    Attributes:
        on_change: called under the lock when `models` may have changed; it must not block.
    """

    def __init__(self) -> None:
        self.on_change: Callable[[], object] = lambda: None
        self._lock = threading.Lock()
        self._records: dict[int, Record] = {}
        self._by_model: dict[str, dict[int, Record]] = {}
        self._by_address: dict[str, Record] = {}
        self._exits: dict[Backend, EndedBackend] = {}  # oldest first
        self._recent_ends = RecentEnds()
        self._last_end_id = int(time.time() * 1000)

    def records(self, model: str | None = None) -> list[Record]:
        """List the records of one model or of all models, in the order of their registration."""
        with self._lock:
            return list(
                (self._records if model is None else self._by_model.get(model, {})).values()
            )

    def find(self, pid: int) -> Record | None:
        """Find the record of a PID."""
        with self._lock:
            return self._records.get(pid)

    def find_by_address(self, canonical_address: str) -> Record | None:
        """Find the record of an address."""
        with self._lock:
            return self._by_address.get(canonical_address)

    def add(self, record: Record, publish: Callable[[], T]) -> T:
        """Add a record.

        Raises:
            Conflict: a record has the same PID or address.
        """
        with self._lock:
            conflicting = self._records.get(record.backend.pid) or self._by_address.get(
                record.canonical_address
            )
            if conflicting is not None:
                raise Conflict(conflicting)
            self._insert(record)
            return publish()

    def update(
        self,
        record: Record,
        backend: Backend,
        canonical_address: str,
        publish: Callable[[], T],
    ) -> T:
        """Give a record another model or address, and make it the newest registration.

        At another address the backend has not answered yet.

        Raises:
            Conflict: another record has the address.
            NotRegistered: the record was removed.
        """
        with self._lock:
            holder = self._by_address.get(canonical_address)
            if holder is not None and holder is not record:
                raise Conflict(holder)
            if self._records.get(backend.pid) is not record:
                raise NotRegistered
            self._remove(record)
            if record.backend.model != backend.model:  # the time to READY is the old model's
                record.saw_start, record.ready_seconds, record.ready_at = False, None, None
            record.backend = backend
            if record.canonical_address != canonical_address:
                record.canonical_address = canonical_address
                record.registered_at, record.answered = time.monotonic(), False
            self._insert(record)
            return publish()

    def replace(self, old: Record, new: Record, publish: Callable[[], T]) -> T:
        """Put a new record of the same model and address in the place of another record.

        The new one is the newest registration. What is known of the server at the address stays
        known.

        Raises:
            Conflict: another record has the new PID.
            NotRegistered: the old record was removed, or has another model or address by now.
            ShutdownInProgress: a shutdown of the old record's backend is in progress.
        """
        with self._lock:
            holder = self._by_address.get(new.canonical_address)
            if holder is not old or old.backend.model != new.backend.model:
                raise NotRegistered
            if conflicting := self._records.get(new.backend.pid):
                raise Conflict(conflicting)
            if old.in_shutdown:
                raise ShutdownInProgress
            new.state, new.state_changed_at = old.state, old.state_changed_at
            new.source, new.address_owner = old.source, old.address_owner
            new.has_requests = old.has_requests
            new.registered_at, new.answered = old.registered_at, old.answered
            new.spawned_at, new.saw_start = old.spawned_at, old.saw_start
            new.ready_seconds, new.ready_at = old.ready_seconds, old.ready_at
            self._remove(old)
            old.is_replaced = True
            self._insert(new)
            return publish()

    def begin_shutdown(self, model: str, pid: int | None = None) -> list[Record]:
        """List the records of a model, or the one with a PID; `replace` refuses them from now on.

        Pass them to `end_shutdown` later.
        """
        with self._lock:
            records = [
                each
                for each in self._by_model.get(model, {}).values()
                if pid in (None, each.backend.pid)
            ]
            for record in records:
                record.in_shutdown = True
            return records

    def end_shutdown(self, records: Iterable[Record]) -> None:
        """Let `replace` accept these records again."""
        with self._lock:
            for record in records:
                record.in_shutdown = False

    def _insert(self, record: Record) -> None:
        backend = record.backend
        self._records[backend.pid] = record
        self._by_model.setdefault(backend.model, {})[backend.pid] = record
        self._by_address[record.canonical_address] = record
        self.on_change()

    def _remove(self, record: Record) -> None:
        backend = record.backend
        del self._records[backend.pid]
        del self._by_address[record.canonical_address]
        del self._by_model[backend.model][backend.pid]
        if not self._by_model[backend.model]:
            del self._by_model[backend.model]
        record.shared_readings = None  # they refer to other records
        self.on_change()

    def models(self) -> list[str]:
        """List the models that have a backend, or processes that a backend has left behind.

        A backend that has just ended by itself counts until its processes are searched for.
        """
        with self._lock:
            left = (each.backend.model for each in self._exits.values() if each.may_have_left)
            return list(dict.fromkeys([*self._by_model, *left]))

    def set_answered(self, record: Record, backend: Backend) -> None:
        """Record that a backend has answered; nothing if it was registered again since."""
        with self._lock:
            if record.backend is backend:
                record.answered = True

    def set_stopping(self, record: Record, stopping: bool) -> None:
        """Set whether a shutdown is stopping the backend."""
        with self._lock:
            record.stopping = stopping

    def change_state(
        self, record: Record, state: State, publish: Callable[[State | None], T]
    ) -> T | None:
        """Set the state of a backend; if it changes, call `publish` with the previous state.

        The state of a record that was replaced does not change: a reading may have begun before.
        """
        with self._lock:
            previous = record.state
            if previous is state or record.is_replaced:
                return None
            record.state = state
            record.state_changed_at = time.time()
            if state is State.READY and record.ready_at is None:
                record.ready_at = record.state_changed_at
                if record.saw_start:
                    now = time.clock_gettime(time.CLOCK_BOOTTIME)
                    record.ready_seconds = max(0.0, now - record.spawned_at)
            return publish(previous)

    def change_address_owner(
        self,
        record: Record,
        backend: Backend,
        owner: ProcessName | None,
        publish: Callable[[], object],
    ) -> None:
        """Set which other process serves the address of a registration.

        Calls `publish` if it is another process than before, or none any more.
        """
        with self._lock:
            previous = record.address_owner
            if record.backend is not backend or self._records.get(backend.pid) is not record:
                return
            record.address_owner = owner
            # A process may change its name: compare PIDs.
            is_same = previous is not None and owner is not None and previous.pid == owner.pid
            if not is_same and previous is not owner:
                publish()

    def move_to_exits(
        self,
        record: Record,
        exit: BackendExit,
        oom_certain: bool | None,
        publish: Callable[[EndedBackend], T],
    ) -> T:
        """Replace a record by its exit; its PID and its address become free.

        Raises:
            NotRegistered: another thread removed the record.
        """
        with self._lock:
            if self._records.get(record.backend.pid) is not record:
                raise NotRegistered
            self._remove(record)
            self._last_end_id += 1
            group, id = record.oom.group, self._last_end_id
            ended = EndedBackend(
                *(record.backend, exit, oom_certain, group),
                id=id,
                output=record.output,
                ends_last_hour=self._recent_ends.add(record.backend.model),
            )
            self._exits[record.backend] = ended
            dropped = self._trim_exits()
            result = publish(ended)
        _close_output(dropped)
        return result

    def _trim_exits(self) -> list[EndedBackend]:
        """Drop and return the oldest exits, except those that left a process which still runs.

        The caller closes the files of their output when it no longer holds the lock.
        """
        surplus = max(0, len(self._exits) - MAX_EXITS)
        droppable = (each for each, ended in self._exits.items() if not ended.left_behind)
        return [self._exits.pop(backend) for backend in list(islice(droppable, surplus))]

    def last_exits(self) -> list[EndedBackend]:
        """List the last exits, oldest first.

        These are the last `MAX_EXITS`, and older ones with processes that were left behind.
        """
        with self._lock:
            return list(self._exits.values())

    def complete_exit(
        self, backend: Backend, complete: Callable[[EndedBackend], EndedBackend]
    ) -> None:
        """Complete the facts of an exit, if it is still stored.

        Args:
            backend: the backend that has ended.
            complete: returns the exit with further facts; called under the lock, so that no fact of
                another thread is lost.
        """
        with self._lock:
            if backend in self._exits:
                self._exits[backend] = complete(self._exits[backend])

    def find_exit(self, id: int) -> EndedBackend | None:
        """Find an exit by its number; None if it is not stored, or not any more."""
        with self._lock:
            return next((each for each in self._exits.values() if each.id == id), None)

    def latest(self, ended: EndedBackend) -> EndedBackend:
        """Return an exit as it is stored now; unchanged if it is not stored any more."""
        with self._lock:
            return self._exits.get(ended.backend, ended)

    def set_postmortem(self, backend: Backend, postmortem: PostMortem) -> None:
        """Add the post-mortem to an exit, if it is still stored."""
        with self._lock:
            if backend in self._exits:
                ended = self._exits[backend]
                self._exits[backend] = ended._replace(postmortem=postmortem)

    def set_left_behind(self, ended: EndedBackend, processes: Sequence[LeftBehindProcess]) -> None:
        """Set the processes that an ended backend left behind, and that still run.

        Args:
            ended: the exit, which is stored again if it was dropped meanwhile.
            processes: the processes.
        """
        with self._lock:
            stored = self._exits.get(ended.backend)
            if stored is None and not processes:
                return
            had_some = stored is not None and stored.may_have_left
            self._exits[ended.backend] = (stored or ended)._replace(left_behind=processes)
            if stored is None:
                by_age = sorted(self._exits.items(), key=lambda each: each[1].exit.ended_at)
                self._exits = dict(by_age)
            dropped = self._trim_exits()
            if had_some != bool(processes):
                self.on_change()
        _close_output(dropped)

    def clear(self) -> list[Record]:
        """Remove and return all records."""
        with self._lock:
            records = list(self._records.values())
            for record in records:
                self._remove(record)
            return records


def _close_output(exits: Iterable[EndedBackend]) -> None:
    """Close the files of the output of exits that were dropped."""
    for each in exits:
        if each.output:
            each.output.close()
