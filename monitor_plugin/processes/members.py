"""Decides which processes belong to a backend: its members.

The registered process is the root. Its members are the root, all descendants of members, the
processes of each session and process group that a member leads or led, and, while the root runs,
the processes of its control groups that are the backend's alone. A process that was found once
stays a member until it ends, regardless of its parent, unless it is registered as another backend.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from ..concurrency.single_flight import SingleFlight
from .control_group_files import Group
from .control_groups import ControlGroups
from .member_pidfds import MemberPidfds
from .process_table import (
    ProcessIdentity,
    ProcessRow,
    ProcessSnapshot,
    read_rss,
    take_snapshot,
)

_MAX_AGE_SECONDS = 1.0
# A reading that needs the members' RSS uses the snapshot of the last sweep, if that is not older.
_RSS_MAX_AGE_SECONDS = 5.0
_MAX_GONE = 100


class MemberChanges(NamedTuple):
    """What a snapshot changes in the members of a backend.

    Attributes:
        found: the members, except the root, that no snapshot had shown before.
        gone: the members that neither run nor are zombies any more, with their last rows.
    """

    found: Sequence[ProcessIdentity] = ()
    gone: Sequence[tuple[ProcessIdentity, ProcessRow]] = ()


class Members:
    """The members of one backend, as the newest snapshot shows them.

    Safe to call from any thread.

    Args:
        root: the registered process.
        known: other processes that belong to the backend.
        former_root: the registered process that this one replaces, if nothing else shows that both
            belong to the same backend.

    Attributes:
        root: the registered process.
        former_root: see above.
    """

    def __init__(
        self,
        root: ProcessIdentity,
        known: Iterable[ProcessIdentity] = (),
        former_root: ProcessIdentity | None = None,
    ) -> None:
        self.root = root
        self.former_root = former_root
        self._lock = threading.Lock()
        # In the order in which they were found, the root first. A process whose parent was found in
        # the same snapshot comes after its parent.
        self._running: dict[ProcessIdentity, ProcessRow | None] = dict.fromkeys([root, *known])
        # The last rows of members that are gone, until `take_gone` is called.
        self._gone: deque[tuple[ProcessIdentity, ProcessRow]] = deque(maxlen=_MAX_GONE)
        # Members that have ended, while a process of their session or process group runs. The
        # kernel does not reuse their PIDs until then.
        self._ended_leaders: list[ProcessIdentity] = []
        self._excluded: frozenset[int] = frozenset()
        self._updated_at: float | None = None

    @property
    def is_new(self) -> bool:
        """Whether no snapshot has been searched for members yet."""
        return self._updated_at is None

    def identities(self) -> list[ProcessIdentity]:
        """List the members that the newest snapshot shows, the root first if it is one of them."""
        with self._lock:
            return list(self._running)

    def excluded(self) -> frozenset[int]:
        """List the processes that the newest snapshot shows as members of another backend."""
        with self._lock:
            return self._excluded

    def rows(self) -> Mapping[ProcessIdentity, ProcessRow | None]:
        """Return the members with their newest rows; None: it was in no snapshot yet."""
        with self._lock:
            return self._running

    def rss(self) -> tuple[int, float] | None:
        """Return the RSS of the members in the newest snapshot.

        Returns:
            Bytes, and when the snapshot read them (monotonic seconds); None if the snapshot shows
            no member with memory.
        """
        rows = [row for row in self.rows().values() if row]
        rss = sum([row.rss for row in rows])
        return (rss, max([row.read_at for row in rows])) if rss else None

    def take_gone(self) -> Sequence[tuple[ProcessIdentity, ProcessRow]]:
        """Return the last rows of the members that are gone since the last call of this method.

        They have the exit code where it is known. At most 100 members are listed, the last ones. A
        zombie is not gone.
        """
        with self._lock:
            gone = list(self._gone)
            self._gone.clear()
            return gone

    def add_gone(self, identity: ProcessIdentity, row: ProcessRow) -> None:
        """Add a member to those that `take_gone` returns."""
        with self._lock:
            self._gone.append((identity, row))

    def pids_in(self, snapshot: ProcessSnapshot) -> list[int]:
        """List the members that a snapshot shows, the root first if it is one of them."""
        rows = snapshot.rows
        return [pid for pid, started in self.identities() if _runs(rows, pid, started)]

    def update(
        self,
        snapshot: ProcessSnapshot,
        in_control_group: Iterable[int] = (),
        excluded: Collection[int] = (),
    ) -> MemberChanges:
        """Find the members in a snapshot; ignore a snapshot that is older than the last one.

        Args:
            snapshot: all processes.
            in_control_group: the processes of the control groups that are the backend's alone.
            excluded: processes that are members of another backend instead.

        Returns:
            The members that were found or are gone since the last snapshot.
        """
        rows = snapshot.rows
        with self._lock:
            if self._updated_at is not None and snapshot.taken_at < self._updated_at:
                return MemberChanges()
            is_first, self._updated_at = self._updated_at is None, snapshot.taken_at
            self._excluded = frozenset(excluded)
            self._ended_leaders = [
                (pid, started)
                for pid, started in (*self._ended_leaders, *self._running)
                if pid not in rows and snapshot.led_by(pid)
            ]
            running = [pid for pid, started in self._running if _runs(rows, pid, started)]
            led = [each for pid, _ in self._ended_leaders for each in snapshot.led_by(pid)]
            found = {
                pid: None for pid in (*running, *led, *in_control_group) if pid not in excluded
            }
            queue = list(found)
            for pid in queue:  # the loop extends `queue`
                fresh = [
                    each
                    for each in (*snapshot.children(pid), *snapshot.led_by(pid))
                    if each not in found and each not in excluded
                ]
                found.update(dict.fromkeys(fresh))
                queue.extend(fresh)
            before = self._running
            now = self._running = {(pid, rows[pid].started): rows[pid] for pid in found}
        if before.keys() == now.keys() and not is_first:
            return MemberChanges()
        return MemberChanges(
            [each for each in now if each != self.root and before.get(each) is None],
            [
                (identity, row)
                for identity, row in before.items()
                if row and not _runs(rows, *identity)
            ],
        )


def _runs(rows: Mapping[int, ProcessRow], pid: int, started: float) -> bool:
    return pid in rows and rows[pid].started == started


class MemberTable:
    """Keeps the members of all backends up to date, from snapshots that callers share.

    Safe to call from any thread.

    Args:
        take: takes a snapshot.
        pidfds: holds pidfds of members of registered backends, which show how these have ended;
            None holds none.
        control_groups: reads the control groups of processes; None creates a new reader.
    """

    def __init__(
        self,
        take: Callable[[], ProcessSnapshot] = take_snapshot,
        pidfds: MemberPidfds | None = None,
        control_groups: ControlGroups | None = None,
    ) -> None:
        self._take = take
        self._control_groups = control_groups or ControlGroups()
        self._pidfds = pidfds
        self._lock = threading.Lock()
        # The members of registered backends; and of ended ones, in the order of their ends.
        self._registered: dict[Members, None] = {}
        self._ended: dict[Members, None] = {}
        # Control groups of registered backends that another backend was in, too. A process that
        # this one has left there must not be taken for a member.
        self._shared_groups: set[Group] = set()
        self._snapshots = SingleFlight(_MAX_AGE_SECONDS, self._take_for_all)

    def track(self, members: Members) -> None:
        """Update the members of a registered backend from each shared snapshot."""
        with self._lock:
            self._registered[members] = None

    def track_ended(self, members: Members) -> None:
        """Go on updating the members of a backend whose root has ended.

        From now on, a process that is also a member of a registered backend, or of a backend that
        ended before, is none of these members. Later calls do nothing.
        """
        with self._lock:
            if members in self._ended:
                return
            self._registered.pop(members, None)
            self._ended[members] = None
        self._release_pidfds(members)

    def forget(self, members: Members) -> None:
        """Update these members no longer."""
        with self._lock:
            self._registered.pop(members, None)
            self._ended.pop(members, None)
        self._release_pidfds(members)

    def _record_changes(self, members: Members, changes: MemberChanges) -> None:
        """Hold the pidfds of members that were found, and record how others have ended."""
        pidfds = self._pidfds
        for identity, row in changes.gone:
            code = pidfds.release(identity) if pidfds is not None else None
            members.add_gone(identity, row if code is None else row._replace(exit_code=code))
        if pidfds is None or not self._is_registered(members):  # the ends are not reported
            return
        for identity in changes.found:
            pidfds.hold(identity)
        if not self._is_registered(members):  # it was forgotten meanwhile
            self._release_pidfds(members)

    def _is_registered(self, members: Members) -> bool:
        with self._lock:
            return members in self._registered

    def _release_pidfds(self, members: Members) -> None:
        if self._pidfds is not None:
            for identity in members.identities():
                self._pidfds.release(identity)

    def snapshot(self, max_age_seconds: float = _MAX_AGE_SECONDS) -> ProcessSnapshot:
        """Return a shared snapshot, in which the members of all tracked backends were found.

        Args:
            max_age_seconds: maximum age of the snapshot.

        Raises:
            OSError: no file descriptor is free.
        """
        return self._snapshots.get(max_age_seconds)

    def snapshot_since(self, oldest: float) -> ProcessSnapshot:
        """Return a shared snapshot that was begun at `oldest` (monotonic seconds) or later.

        Raises:
            OSError: no file descriptor is free.
        """
        return self._snapshots.get_since(oldest)

    def rescan(self, members: Members) -> ProcessSnapshot:
        """Take a snapshot that begins now, and find the members of one backend in it.

        Raises:
            OSError: no file descriptor is free.
        """
        registered, ended = self._tracked()
        if members not in ended:
            registered, ended = [members], []
        # Otherwise find the members of all backends, as a process that belongs to another one is
        # excluded.
        snapshot = self._take()
        self._update(registered, ended, snapshot)
        return snapshot

    def pids(self, members: Members) -> list[int]:
        """List the members of a backend, from a snapshot at most one second old.

        Lists the root alone if no member runs, or if no snapshot can be taken.
        """
        try:
            snapshot = self._refresh(members, _MAX_AGE_SECONDS)
            return members.pids_in(snapshot) or [members.root[0]]
        except OSError:
            return [members.root[0]]

    def identities(self, members: Members) -> list[ProcessIdentity]:
        """List the members of a backend, as the newest snapshot shows them.

        The snapshot is at most one second old, unless none can be taken.
        """
        with contextlib.suppress(OSError):
            self._refresh(members, _MAX_AGE_SECONDS)
        return members.identities()

    def read_rss(self, members: Members) -> int | None:
        """Read the RSS of the members of a backend now, in bytes.

        Members that were started in the last five seconds may be missing.

        Returns:
            None if no member runs, or if no file descriptor is free.
        """
        try:
            self._refresh(members, _RSS_MAX_AGE_SECONDS)
        except OSError:
            return None
        return read_rss(members.identities())

    def _refresh(self, members: Members, max_age_seconds: float) -> ProcessSnapshot:
        """Return a snapshot in which these members were found."""
        return self.rescan(members) if members.is_new else self.snapshot(max_age_seconds)

    def _take_for_all(self) -> ProcessSnapshot:
        # List the backends first: a snapshot that began before a registration may lack the root.
        registered, ended = self._tracked()
        snapshot = self._take()
        self._update(registered, ended, snapshot)
        self._control_groups.forget_ended(snapshot)
        if self._shared_groups:
            self._forget_shared_groups(registered)
        return snapshot

    def _forget_shared_groups(self, registered: Sequence[Members]) -> None:
        used = {group for each in registered for group in self._control_groups.of(*each.root).own}
        with self._lock:
            self._shared_groups &= used

    def _tracked(self) -> tuple[Sequence[Members], Sequence[Members]]:
        with self._lock:
            return list(self._registered), list(self._ended)

    def _update(
        self, registered: Sequence[Members], ended: Sequence[Members], snapshot: ProcessSnapshot
    ) -> None:
        with self._lock:
            roots = {each.root: each for each in self._registered}
        in_groups = self._find_in_control_groups(registered, roots, snapshot)
        for members in registered:
            others = _members_of_others(members, roots, snapshot)
            changes = members.update(snapshot, in_groups.get(members, ()), others)
            if changes.found or changes.gone:
                self._record_changes(members, changes)
        if not ended:
            return
        excluded = {pid for members in registered for pid in members.pids_in(snapshot)}
        for members in ended:
            members.update(snapshot, excluded=excluded)
            excluded.update(members.pids_in(snapshot))

    def _find_foreign_groups(self, rows: Mapping[int, ProcessRow]) -> set[Group]:
        """List the control groups that another backend was in, or that the monitor is in."""
        with self._lock:
            foreign = set(self._shared_groups)
        for pid in _ancestors(os.getpid(), rows):
            foreign |= self._control_groups.of(pid, rows[pid].started).containing
        return foreign

    def _find_in_control_groups(
        self,
        tracked: Sequence[Members],
        roots: Mapping[ProcessIdentity, Members],
        snapshot: ProcessSnapshot,
    ) -> dict[Members, list[int]]:
        """List the processes of each control group that one backend has for itself.

        A control group, with the groups below it, is a backend's alone if no process in it started
        before the backend's root, except known members and what an ended backend has left behind
        there, and if neither the monitor, nor an ancestor of the monitor is in it, and neither is
        nor was another backend's root. So a group of the host never counts. Nor do slices, and the
        sessions of users: a user may start further processes there.
        """
        rows, groups_of = snapshot.rows, self._control_groups.of
        foreign = self._find_foreign_groups(rows)
        alone: dict[Group, Members] = {}
        for members in tracked:
            # Of members that are not registered here, the other backends are not known.
            if members.root in roots and _runs(rows, *members.root):
                groups = groups_of(*members.root).exclusive - foreign
                alone.update(dict.fromkeys(groups, members))
        if not alone:  # so the control groups of other processes need not be read
            return {}
        known = {members: set(members.identities()) for members in alone.values()}
        ended = self._tracked()[1]
        left_behind = {each for one in ended for each in one.identities()} - roots.keys()
        found: dict[Group, list[int]] = {group: [] for group in alone}
        for pid, row in rows.items():
            identity = pid, row.started
            for group in groups_of(*identity).containing & found.keys():
                members = alone[group]
                if identity in left_behind and identity not in known[members]:
                    continue  # it stays a member of the ended backend
                is_older = row.started < members.root[1] and identity not in known[members]
                other = roots.get(identity, members)
                if other is not members and not _is_related(members, other, rows):
                    with self._lock:
                        self._shared_groups.add(group)
                if is_older or other is not members:
                    del found[group]
                else:
                    found[group].append(pid)
        in_groups: dict[Members, list[int]] = {}
        for group, pids in found.items():
            in_groups.setdefault(alone[group], []).extend(pids)
        return in_groups


def _members_of_others(
    members: Members, roots: Mapping[ProcessIdentity, Members], snapshot: ProcessSnapshot
) -> set[int]:
    """List the members of other registered backends that would be found as members of this one.

    They share its process group or control group, or belonged to it until they were registered.
    A backend that the root has started belongs to both.

    Args:
        members: the members of this backend.
        roots: the registered backends by their roots.
        snapshot: all processes.
    """
    rows, root = snapshot.rows, members.root[0]
    led = [(pid, rows[pid].started) for pid in snapshot.led_by(root)]
    found: set[int] = set()
    for identity in roots.keys() & [*members.rows(), *led]:
        if identity == members.root:
            continue
        other = roots[identity]
        if _is_related(members, other, rows):
            continue
        current = Members(other.root, other.identities())
        current.update(snapshot)
        found.update(current.pids_in(snapshot))
    return {pid for pid in found if root not in _ancestors(pid, rows)}


def _is_related(members: Members, other: Members, rows: Mapping[int, ProcessRow]) -> bool:
    """Whether one of two roots has started the other, or both belong to one backend.

    Two processes of one backend are registered while one replaces the other.
    """
    return (
        members.root[0] in _ancestors(other.root[0], rows)
        or other.root[0] in _ancestors(members.root[0], rows)
        or (members.root in other.identities() and other.root in members.identities())
        or members.former_root == other.root
        or other.former_root == members.root
    )


def _ancestors(pid: int, rows: Mapping[int, ProcessRow]) -> list[int]:
    """List a process and its ancestors."""
    found = []
    while pid in rows:
        found.append(pid)
        pid = rows[pid].parent
    return found
