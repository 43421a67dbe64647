"""Finds the processes that backends leave behind: members that still run after the exit.

A backend's members get a second to end as well, as workers that notice a closed pipe do. Those that
still run then are reported once, and listed in the exit until they have ended.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from ..domain.models import LeftBehindProcess
from ..plugins.hooks import Hooks
from ..processes.members import Members, MemberTable
from ..processes.process import process_name
from ..processes.process_table import ProcessSnapshot
from .registry import EndedBackend, Record, Registry

_logger = logging.getLogger(__name__)

_GRACE_SECONDS = 1.0
# Backends that are registered, or end, within this time share a snapshot.
_GATHER_SECONDS = 0.1
_INTERVAL_SECONDS = 2.0
_PAUSE_PER_CPU_SECOND = 9  # so that snapshots use at most a tenth of a core


@dataclass(eq=False)
class _Entry:
    """A backend whose members may still run.

    Attributes:
        record: its record, which is no longer registered.
        ended: its exit, as it was recorded.
        ended_at: when the exit was recorded (monotonic seconds).
        searched_at: when the newest snapshot that was searched was taken (monotonic seconds).
        is_reported: whether its members were reported as left behind.
    """

    record: Record
    ended: EndedBackend
    ended_at: float = field(default_factory=time.monotonic)
    searched_at: float = 0.0
    is_reported: bool = False


class LeftBehindTracker:
    """Finds and reports the processes that backends leave behind. Safe to call from any thread.

    Its thread sleeps while no backend was registered or has ended lately, and none has left a
    process behind.

    Args:
        registry: stores the processes with the exits.
        member_table: finds the members of backends, also after the exit.
        hooks: report the processes.
        on_searched: called once for each exit, when it is known which members still run; it must
            not block.
    """

    def __init__(
        self,
        registry: Registry,
        member_table: MemberTable,
        hooks: Hooks,
        on_searched: Callable[[Record, EndedBackend, Sequence[LeftBehindProcess]], object],
    ) -> None:
        self._registry = registry
        self._member_table = member_table
        self._hooks = hooks
        self._on_searched = on_searched
        self._changed = threading.Condition()  # guards the attributes below
        self._entries: dict[Record, _Entry] = {}
        self._due_at = math.inf
        self._closing = False
        self._thread: threading.Thread | None = None
        # Held while what a snapshot showed is stored, so that an older one does not replace it.
        self._storing = threading.Lock()

    def start(self) -> None:
        """Start the thread.

        Raises:
            RuntimeError: no thread can be started.
        """
        self._closing = False
        thread = threading.Thread(target=self._run, name="monitor-left-behind", daemon=True)
        thread.start()
        self._thread = thread  # only a started thread can be joined

    def close(self) -> None:
        """End the thread; it may be started again."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread:
            self._thread.join()
            self._thread = None

    def track(self, members: Members) -> None:
        """Track the members of a backend, and find them soon.

        If the root is killed, its children can only be found if they were found before.
        """
        self._member_table.track(members)
        self._search_in(_GATHER_SECONDS)

    def forget(self, members: Members) -> None:
        """Track the members of a backend no longer."""
        self._member_table.forget(members)

    def add(self, record: Record, ended: EndedBackend) -> None:
        """Go on tracking the members of a backend whose exit is being recorded. Does not block."""
        with self._changed:
            self._entries[record] = _Entry(record, ended)
        # A shutdown searches for members by itself.
        self._search_in(_GRACE_SECONDS if record.stopping else _GATHER_SECONDS)

    def records(self, model: str, pid: int | None = None) -> list[Record]:
        """List the records of the ended backends of a model whose members may still run.

        Args:
            model: the name of the model.
            pid: the PID that the backend had; None lists all.
        """
        with self._changed:
            return [
                each
                for each in self._entries
                if each.backend.model == model and pid in (None, each.backend.pid)
            ]

    def has(self, model: str, pid: int | None = None) -> bool:
        """Whether any member of an ended backend of a model may still run: see `records`."""
        records = self.records(model, pid)
        with self._changed:
            if any(self._entries[each].is_reported for each in records if each in self._entries):
                return True
        return bool(self.select_running(records))

    def select_running(self, records: Sequence[Record]) -> list[Record]:
        """Search for the members of ended backends now; return the records of which any may run.

        If no file descriptor is free, they are assumed to run.
        """
        records = self._known(records)
        if not records:
            return []
        with suppress(OSError):
            self._search(records)
        return self._known(records)

    def _known(self, records: Iterable[Record]) -> list[Record]:
        with self._changed:
            return [each for each in records if each in self._entries]

    def _search_in(self, seconds: float) -> None:
        with self._changed:
            self._due_at = min(self._due_at, time.monotonic() + seconds)
            self._changed.notify_all()

    def _run(self) -> None:
        while self._wait_until_due():
            cpu_began = time.thread_time()
            try:
                self._search_all()
            except Exception:  # also if no file descriptor is free: search again
                _logger.exception("the members of backends could not be searched for")
                self._search_in(_INTERVAL_SECONDS)
            pause = _PAUSE_PER_CPU_SECOND * (time.thread_time() - cpu_began)
            with self._changed:
                self._changed.wait_for(lambda: self._closing, pause)

    def _wait_until_due(self) -> bool:
        """Wait until a search is due; False: the thread is to end."""
        with self._changed:
            while not self._closing:
                seconds = self._due_at - time.monotonic()
                if seconds <= 0:
                    self._due_at = math.inf
                    return True
                self._changed.wait(None if math.isinf(seconds) else seconds)
            return False

    def _search_all(self) -> None:
        with self._changed:
            records = list(self._entries)
        self._search(records)
        with self._changed:
            waits = [
                _INTERVAL_SECONDS if each.is_reported else _GRACE_SECONDS
                for each in self._entries.values()
            ]
        if waits:
            self._search_in(min(waits))

    def _search(self, records: Iterable[Record]) -> None:
        """Take a snapshot, in which the members of all backends are found; store what still runs.

        Raises:
            OSError: no file descriptor is free.
        """
        with self._changed:
            entries = [self._entries[each] for each in records if each in self._entries]
            # Not earlier, as this makes the snapshots of a shutdown in progress take longer.
            for entry in entries:
                self._member_table.track_ended(entry.record.members)
        snapshot = self._member_table.snapshot_since(time.monotonic())
        for entry in entries:
            self._store(entry, snapshot)

    def _store(self, entry: _Entry, snapshot: ProcessSnapshot) -> None:
        """Store, and report once, which members of an ended backend a snapshot shows.

        They are not reported during a shutdown of the backend, which may still end them.
        """
        record = entry.record
        processes = _running(record.members, snapshot)
        with self._storing:
            if snapshot.taken_at < entry.searched_at:
                return
            entry.searched_at = snapshot.taken_at
            was_reported = entry.is_reported
            if not processes:
                entry.searched_at = math.inf  # a snapshot that was begun before is ignored
                with self._changed:
                    self._entries.pop(record, None)
                self._member_table.forget(record.members)
            elif not entry.is_reported:
                age = snapshot.taken_at - entry.ended_at
                if record.stopping or age < _GRACE_SECONDS:
                    return
                entry.is_reported = True
                self._hooks.backend_left_behind(record.backend, [each.pid for each in processes])
            self._registry.set_left_behind(entry.ended, processes)
            if not was_reported:
                self._on_searched(record, entry.ended, processes)


def _running(members: Members, snapshot: ProcessSnapshot) -> tuple[LeftBehindProcess, ...]:
    """Describe the members that run. A zombie does not, nor does a process that is not seen."""
    rows = snapshot.rows
    return tuple(
        LeftBehindProcess(pid, process_name(pid), rows[pid].rss if rows[pid].vms else None)
        for pid in members.pids_in(snapshot)
        if not rows[pid].is_zombie
    )
