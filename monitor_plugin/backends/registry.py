"""Who is registered, and who was. Plain data under one lock: no I/O, no calls out."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple, TypeVar

from ..concurrency.single_flight import SingleFlight
from ..domain.models import Backend, BackendExit, State
from ..domain.observation import Observation
from ..processes.oom import OomKillCounter
from ..processes.process import Process
from ..processes.sampler import Sampler

T = TypeVar("T")

ENDS_KEPT = 100


class EndedBackend(NamedTuple):
    """A backend that has ended, and how.

    Attributes:
        oom_kill_seen: whether a process of its control group, which no other backend shared, was
            killed for want of memory just before.
    """

    backend: Backend
    exit: BackendExit
    oom_kill_seen: bool


class Record:
    """A registered backend, and what the monitor keeps for as long as it runs.

    `process`, `sampler`, `memory` and `oom` stay the same while `backend` may be updated; the other
    attributes change under the registry's lock alone, but for `observation` and `source`, which are
    replaced.

    Attributes:
        backend: the frozen record that is handed out.
        canonical_address: the address in the form by which two are compared.
        process: the handle by which its end is noticed.
        sampler: reads its figures.
        memory: what its process tree holds, bytes and source, shared for some seconds.
        oom: follows what the kernel kills for want of memory.
        state: the last known state that it was in.
        state_changed_at: when that was first seen, in seconds since the epoch.
        source: where its last status came from; None where asking it failed the last time.
        observation: what the last sweep found of it.
        stopping: whether a shutdown is ending it.
    """

    def __init__(
        self,
        backend: Backend,
        canonical_address: str,
        process: Process,
        sampler: Sampler,
        memory: SingleFlight[tuple[int, str] | None],
        oom: OomKillCounter,
    ) -> None:
        self.backend = backend
        self.canonical_address = canonical_address
        self.process = process
        self.sampler = sampler
        self.memory = memory
        self.oom = oom
        self.state: State | None = None
        self.state_changed_at: float | None = None
        self.source: str | None = None
        self.observation: Observation | None = None
        self.stopping = False


class Registry:
    """The registered backends by PID, oldest first, and the last ends. Safe from any thread.

    Attributes:
        on_change: called, under the lock, when a backend came or went; it must not block.
    """

    def __init__(self) -> None:
        self.on_change: Callable[[], object] = lambda: None
        self._lock = threading.Lock()
        self._records: dict[int, Record] = {}
        self._by_model: dict[str, dict[int, Record]] = {}
        self._by_address: dict[str, Record] = {}
        self._ends: deque[EndedBackend] = deque(maxlen=ENDS_KEPT)

    def records(self, model: str | None = None) -> list[Record]:
        """List the records, of one model or of all, in the order of their registration."""
        with self._lock:
            return list(
                (self._records if model is None else self._by_model.get(model, {})).values()
            )

    def record(self, pid: int) -> Record | None:
        """Find the record of a PID."""
        with self._lock:
            return self._records.get(pid)

    def add(self, record: Record, then: Callable[[], object]) -> Record | None:
        """Add a record, unless one is in its way: of the same PID, or at the same address.

        Once it is added `then` is called under the lock, before it can end: see `change_state`.

        Returns:
            The record in the way; None when it was added.
        """
        with self._lock:
            in_the_way = self._records.get(record.backend.pid) or self._by_address.get(
                record.canonical_address
            )
            if in_the_way is None:
                self._insert(record)
                then()
            return in_the_way

    def update(
        self,
        record: Record,
        backend: Backend,
        canonical_address: str,
        then: Callable[[], object],
    ) -> Record | None:
        """Give a record another model or address, as its newest registration.

        Once that is done `then` is called under the lock, before it can end: see `change_state`.

        Returns:
            The record that holds the address; None when the update was made. A record that is no
            longer registered is left alone.
        """
        with self._lock:
            holder = self._by_address.get(canonical_address)
            if holder is not None and holder is not record:
                return holder
            if self._records.get(backend.pid) is record:
                self._remove(record)
                record.backend = backend
                record.canonical_address = canonical_address
                self._insert(record)
                then()
            return None

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
        self.on_change()

    def models(self) -> list[str]:
        """List the models that have a backend."""
        with self._lock:
            return list(self._by_model)

    def set_stopping(self, record: Record, stopping: bool) -> None:
        """Note that a shutdown is ending it, or no longer is."""
        with self._lock:
            record.stopping = stopping

    def change_state(
        self, record: Record, state: State, then: Callable[[State | None], T]
    ) -> T | None:
        """Note the state that a backend is in; where it differs from the last, call `then`.

        `then` gets the previous state, and is called under the lock, so that changes are handed on
        in their order: it must do no more than put something into a queue.
        """
        with self._lock:
            previous = record.state
            if previous is state:
                return None
            record.state = state
            record.state_changed_at = time.time()
            return then(previous)

    def end(
        self, record: Record, exit: BackendExit, oom_kill_seen: bool, then: Callable[[], object]
    ) -> bool:
        """Move a record to the ends; False where another thread was first.

        Once that is done `then` is called under the lock, before another backend can have its PID
        or its address: see `change_state`.
        """
        with self._lock:
            if self._records.get(record.backend.pid) is not record:
                return False
            self._remove(record)
            self._ends.append(EndedBackend(record.backend, exit, oom_kill_seen))
            then()
            return True

    def ends(self) -> list[EndedBackend]:
        """List the last ENDS_KEPT ends, oldest first."""
        with self._lock:
            return list(self._ends)

    def replace_end(self, known: EndedBackend, completed: EndedBackend) -> None:
        """Replace an end, where it is still kept."""
        with self._lock:
            if known in self._ends:
                self._ends[self._ends.index(known)] = completed

    def clear(self) -> list[Record]:
        """Forget all that is registered, and list it."""
        with self._lock:
            records = list(self._records.values())
            for record in records:
                self._remove(record)
            return records
