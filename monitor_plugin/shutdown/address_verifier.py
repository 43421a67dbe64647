"""Verifies that nothing accepts connections at the address of a backend that was stopped."""

from __future__ import annotations

import threading
import time

from ..backends.registry import Record, Registry
from ..domain.errors import ShutdownFailed
from ..domain.models import ProcessName
from ..processes.address_probe import accepts_connection
from ..processes.members import MemberTable
from ..processes.sockets import SocketTable

_POLL_SECONDS = 0.2
# A socket may be closed a moment after its process was seen to have ended.
_CLOSING_SECONDS = 1.0


class AddressVerifier:
    """Verifies that nothing serves the address of a backend. Safe to call from any thread.

    Args:
        registry: the registered backends.
        member_table: lists the members of the other backends.
        socket_table: tells which processes listen at an address.
    """

    def __init__(
        self, registry: Registry, member_table: MemberTable, socket_table: SocketTable
    ) -> None:
        self._registry = registry
        self._member_table = member_table
        self._socket_table = socket_table

    def verify(
        self, record: Record, deadline: float, interrupted: threading.Event
    ) -> ShutdownFailed | None:
        """Wait until nothing accepts at a backend's address, unless another backend holds it.

        The wait takes at most one second, or until the deadline if that is later: a client such as
        `docker run` may end before the container that it started.

        Args:
            record: a backend without members.
            deadline: when to stop waiting, by the monotonic clock.
            interrupted: ends the wait when it is set.

        Returns:
            None if the address is free or another registered backend holds it; otherwise what
            serves it.

        Raises:
            OSError: no file descriptor is free.
        """
        if self._is_free(record) or self._is_held_by_other(record):
            return None
        deadline = max(deadline, time.monotonic() + _CLOSING_SECONDS)
        while (left := deadline - time.monotonic()) > 0:
            if interrupted.wait(min(_POLL_SECONDS, left)):
                break
            if self._is_free(record):
                return None
        if self._is_held_by_other(record):  # it may have been registered meanwhile
            return None
        address = record.backend.address
        owner = self._socket_table.owner(address)
        reason = f"its processes have ended, but {address} is still served{_by(owner)}"
        pids = [] if owner is None or owner.pid is None else [owner.pid]
        return ShutdownFailed(record.backend.model, reason, pids)

    def _is_free(self, record: Record) -> bool:
        """Whether nothing accepts at the address, or another backend is registered at it."""
        holder = self._registry.find_by_address(record.canonical_address)
        if holder is not None and holder is not record and not holder.process.ended():
            return True
        address = record.backend.address
        accepts = accepts_connection(address)
        if accepts is None:  # a listener may be stuck
            return not self._socket_table.find_sockets(address, 0.0).inodes
        return not accepts

    def _is_held_by_other(self, record: Record) -> bool:
        """Whether members of other backends hold all sockets that accept at the address.

        For example, one address of a server of two models may have been given as `localhost`, and
        the other one as `[::1]`.
        """
        inodes = self._socket_table.find_sockets(record.backend.address, 0.0).inodes
        others = [each.members for each in self._registry.records() if each is not record]
        pids = [pid for members in others for pid in self._member_table.pids(members)]
        listeners = self._socket_table.find_listeners(inodes, pids)
        return listeners.pid is not None and not listeners.others


def _by(owner: ProcessName | None) -> str:
    if owner is None or owner.pid is None:
        return ""
    return f" by process {owner.pid}" + (f" ({owner.name})" if owner.name else "")
