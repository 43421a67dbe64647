"""Finds the members that end while the root of their backend runs, and how they ended.

How a member ended is known if it is a zombie of the monitor's own user, or if its pidfd was held
(see `MemberPidfds`). Many backends start and end processes by design, such as a server that forks
for each request, or a shell script. The end of a member is always listed if a signal is known to
have killed the member, or if the member stays a zombie for a second. Another end is left out,

- if the member exited with code 0;
- if the member was not seen at an age of a second or more: then a short task has ended;
- if the cause is unknown, and the root ends within two seconds as well.

Of ends with the same signal or exit code, only the first 10 are listed, and of ends with an unknown
cause the first 3, until there was none of the same kind for ten minutes.
"""

from __future__ import annotations

import time
from collections.abc import Set
from dataclasses import dataclass, field

from msgspec.structs import replace

from ..domain.exits import make_member_end
from ..domain.models import MemberEnd
from .members import Members
from .process_table import TICKS_PER_SECOND, ProcessIdentity, ProcessRow

_LEAST_AGE_SECONDS = 1.0
_ZOMBIE_SECONDS = 1.0
_MAX_OF_A_KIND = 10
_MAX_UNEXPLAINED = 3
_QUIET_SECONDS = 600.0


@dataclass(eq=False)
class _Backend:
    """What is known of the members of one backend.

    Attributes:
        zombies: when each zombie whose end is not decided yet was first seen (monotonic seconds).
        decided: the zombies whose end was listed, or is never listed.
        unexplained: ends of an unknown cause that the last call found.
        kinds: by signal (negative) or exit code, how many ends were found, and the time of the last
            one (monotonic seconds).
        was_stopping: whether a shutdown stopped the backend at the last call.
    """

    zombies: dict[ProcessIdentity, float] = field(default_factory=dict)
    decided: set[ProcessIdentity] = field(default_factory=set)
    unexplained: list[MemberEnd] = field(default_factory=list)
    kinds: dict[int | None, tuple[int, float]] = field(default_factory=dict)
    was_stopping: bool = False


class MemberEndFinder:
    """Finds the members that end while the root of their backend runs. Not thread-safe."""

    def __init__(self) -> None:
        self._backends: dict[Members, _Backend] = {}

    def find(self, members: Members, is_stopping: bool) -> list[MemberEnd]:
        """List the members of a backend that have ended, each once. Call this every two seconds.

        Args:
            members: the members of a backend whose root runs.
            is_stopping: whether a shutdown stops the backend. Members that end during a shutdown
                are never listed.
        """
        backend = self._backends.setdefault(members, _Backend())
        is_silent, backend.was_stopping = is_stopping or backend.was_stopping, is_stopping
        rows, gone = members.rows(), members.take_gone()
        # The root has not ended since the last call, or this call would not have been made.
        found, backend.unexplained = backend.unexplained, []
        for identity, last_row in gone:
            if end := _end_of_gone(backend, identity, last_row):
                is_explained = end.signal is not None or end.exit_code is not None
                (found if is_explained else backend.unexplained).append(end)
        for identity, row in rows.items():
            if row is None or not row.is_zombie or identity == members.root:
                continue
            if end := _end_of_zombie(backend, identity, row):
                found.append(end)
        if is_silent:
            backend.decided |= backend.zombies.keys()
            backend.unexplained.clear()
            return []
        return [end for each in found if (end := _unless_repeated(backend, each))]

    def forget_except(self, kept: Set[Members]) -> None:
        """Forget all backends but these."""
        for members in self._backends.keys() - kept:
            del self._backends[members]


def _end_of_gone(backend: _Backend, identity: ProcessIdentity, row: ProcessRow) -> MemberEnd | None:
    """Return the end of a member that is gone; None if it is left out, or was listed before."""
    backend.zombies.pop(identity, None)
    if identity in backend.decided:
        backend.decided.remove(identity)
        return None
    is_killed = row.exit_code is not None and row.exit_code < 0
    if not is_killed and (row.exit_code == 0 or _age(row) < _LEAST_AGE_SECONDS):
        return None
    return make_member_end(identity[0], row.name, row.exit_code, is_zombie=False)


def _end_of_zombie(
    backend: _Backend, identity: ProcessIdentity, row: ProcessRow
) -> MemberEnd | None:
    """Return the end of a zombie; None if it is left out for now, or was listed before."""
    if identity in backend.decided:
        return None
    if row.exit_code is None or row.exit_code >= 0:
        seen_at = backend.zombies.setdefault(identity, row.read_at)
        if row.read_at - seen_at < _ZOMBIE_SECONDS:
            return None
    backend.zombies.pop(identity, None)
    backend.decided.add(identity)
    return make_member_end(identity[0], row.name, row.exit_code, is_zombie=True)


def _unless_repeated(backend: _Backend, end: MemberEnd) -> MemberEnd | None:
    """Return an end; None during a pause. The last end before a pause has `pauses` set."""
    now, kind = time.monotonic(), end.exit_code if end.signal is None else -end.signal
    count, last_at = backend.kinds.get(kind, (0, now))
    count = 1 if now - last_at >= _QUIET_SECONDS else count + 1
    backend.kinds[kind] = count, now
    most = _MAX_UNEXPLAINED if kind is None else _MAX_OF_A_KIND
    if count > most:
        return None
    return replace(end, pauses=count == most)


def _age(row: ProcessRow) -> float:
    """Return the age of a process in seconds when its row was read."""
    since_boot = row.read_at + time.clock_gettime(time.CLOCK_BOOTTIME) - time.monotonic()
    return since_boot - row.started / TICKS_PER_SECOND
