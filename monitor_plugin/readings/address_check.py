"""Checks which process serves a backend's address: a status is believed only from a member."""

from __future__ import annotations

import os
import time
from functools import partial

import grpc

from ..backends.registry import Record, Registry, Serving
from ..domain.models import Backend
from ..plugins.hooks import Hooks
from ..processes.members import MemberTable
from ..processes.sockets import ListeningSockets, SocketTable, is_in_other_network
from ..rpc.client import StatusClient

_MAX_AGE_SECONDS = 1.0
# While members hold all sockets of the address, the connection is to a member. Another process may
# begin to share the address meanwhile, but it gets new connections alone.
_HELD_MAX_AGE_SECONDS = 5.0
# Where descriptors may not be read, reading again rarely shows more, and needs a process snapshot.
_UNCERTAIN_MAX_AGE_SECONDS = 10.0
# Another process serves the address once two looks find the same one. Most need two.
_MAX_LOOKS = 4


class AddressCheck:
    """Checks which process serves a backend's address. Safe to call from any thread.

    gRPC servers share ports, and the server of a launcher that was killed may live on. So another
    process than a member of the backend may answer. Addresses on other machines are not checked.
    Where descriptors may not be read, or no socket is seen, as in another network namespace, it is
    not known who serves, and an answer is believed. Nor is it known if the registered process is in
    another network namespace, such as that of a container: what listens here is taken for a
    forwarder to it, as docker-proxy is.

    Args:
        socket_table: finds the sockets of an address, and their processes.
        member_table: lists the members of backends.
        registry: stores which other process serves an address.
        status_client: connects to the addresses.
        hooks: reports a change.
    """

    def __init__(
        self,
        socket_table: SocketTable,
        member_table: MemberTable,
        registry: Registry,
        status_client: StatusClient,
        hooks: Hooks,
    ) -> None:
        self._socket_table = socket_table
        self._member_table = member_table
        self._registry = registry
        self._status_client = status_client
        self._hooks = hooks

    def find_address_owner(self, record: Record) -> Serving | None:
        """Return which process serves the address if it is no member: it must not be called.

        Neither the monitor nor a hook may call it: a call would give that process the backend's
        token, and a hook may remember its UNIMPLEMENTED. Reads the sockets unless a member served
        last.
        """
        last = record.serving
        is_held = last is not None and last.served_by is not None and last.address_owner is None
        if last is None or last.backend is not record.backend or not is_held:
            serving = self._report(record, self._find_serving(record, record.backend, 0.0))
            return None if serving.address_owner is None else serving
        return None

    def check_result(self, record: Record, backend: Backend, rpc_error: str | None) -> Serving:
        """Find out which process serves the address, after a request of a status.

        After the first answer on a connection the sockets are read anew, later once a second, or
        every five seconds while members hold them. If another process serves the address, that is
        reported when it is new, and the connection is closed, so that nothing which that process
        answered is remembered as the backend's answer.

        Args:
            record: the backend's record.
            backend: the registration whose status was requested.
            rpc_error: the name of the gRPC code if the request failed, else None.
        """
        is_connected = rpc_error != grpc.StatusCode.UNAVAILABLE.name
        since = self._status_client.connected_at(backend) if is_connected else 0.0
        return self._report(record, self._find_serving(record, backend, since))

    def check_now(self, record: Record) -> Serving:
        """Find out which process serves the address now, and report a change."""
        return self._report(record, self._find_serving(record, record.backend, time.monotonic()))

    def _report(self, record: Record, serving: Serving) -> Serving:
        backend, owner = serving.backend, serving.address_owner
        if owner is not None:
            self._status_client.close_connection(backend)
        if owner is not record.address_owner:
            publish = partial(self._hooks.address_owner_changed, backend, owner)
            self._registry.change_address_owner(record, backend, owner, publish)
        return serving

    def _find_serving(self, record: Record, backend: Backend, since: float) -> Serving:
        """Return which process serves an address, from the sockets or from a recent result.

        Args:
            record: the backend's record.
            backend: its registration.
            since: an older result is not used (monotonic seconds).
        """
        now = time.monotonic()
        last = record.serving
        if last is not None and last.backend is backend and since <= last.seen_at:
            seconds = _MAX_AGE_SECONDS if last.is_certain else _UNCERTAIN_MAX_AGE_SECONDS
            age = now - last.seen_at
            if age < seconds or (age < _HELD_MAX_AGE_SECONDS and self._is_held(record, last)):
                return last
        max_age_seconds = max(0.0, min(_MAX_AGE_SECONDS, now - since))
        sockets = self._socket_table.find_sockets(backend.address, max_age_seconds)
        serving = record.serving = self._read_serving(record, backend, sockets)
        return serving

    def _is_held(self, record: Record, serving: Serving) -> bool:
        """Whether members served the address alone, and still hold the same sockets."""
        if serving.served_by is None or serving.address_owner is not None or not serving.is_certain:
            return False
        pids = [pid for pid, _ in record.members.identities()]
        holders = self._socket_table.known_holders(serving.inodes, pids)
        return len(holders) == len(serving.inodes)

    def _read_serving(self, record: Record, backend: Backend, sockets: ListeningSockets) -> Serving:
        inodes, seen_at = sockets
        serving = Serving(backend, seen_at, inodes=inodes)
        if not inodes:
            return serving
        pids = [pid for pid, _ in record.members.identities()]
        holders = self._socket_table.known_holders(inodes, pids)
        if len(holders) == len(inodes):  # so no process snapshot is needed
            return serving._replace(served_by=min(holders.values(), key=pids.index))
        return self._search_listener(record, serving)

    def _search_listener(self, record: Record, serving: Serving) -> Serving:
        """Complete a `Serving` of which not all sockets were known to be a member's."""
        backend, seen_at, inodes = serving.backend, serving.seen_at, serving.inodes
        if is_in_other_network(record.process.pid):
            return serving._replace(is_certain=False)
        last = record.serving
        found = last.address_owner if last is not None and last.backend is backend else None
        for _ in range(_MAX_LOOKS):
            try:
                pids = self._members_since(record, seen_at)
            except OSError:  # no file descriptor is free
                return serving._replace(is_certain=False)
            served_by, others, is_complete = self._socket_table.find_listeners(inodes, pids)
            serving = serving._replace(served_by=served_by, is_certain=is_complete)
            if not others or not is_complete:
                return serving
            owner = self._socket_table.find_owner(ListeningSockets(others, seen_at))
            if owner is None or owner.pid is None:
                # The socket was closed, or its process may not be read or is not shown.
                if not others & self._socket_table.find_sockets(backend.address, 0.0).inodes:
                    return serving
                if not os.path.exists("/proc/1/stat"):  # noqa: PTH110 - hidden (hidepid)
                    return serving._replace(is_certain=False)
            if owner and found and owner.pid == found.pid:
                return serving._replace(address_owner=owner)
            # A member may have been forked after the snapshot, and have got the socket since.
            found, seen_at = owner, time.monotonic()
        return serving._replace(is_certain=False)  # processes hand the socket on too fast

    def _members_since(self, record: Record, time_seen: float) -> list[int]:
        """List the members from a snapshot that was begun after the sockets were seen.

        Raises:
            OSError: no file descriptor is free.
        """
        members = record.members
        snapshot = self._member_table.snapshot_since(time_seen)
        if members.is_new:
            snapshot = self._member_table.rescan(members)
        return members.pids_in(snapshot)
