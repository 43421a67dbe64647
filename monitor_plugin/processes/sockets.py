"""Finds the processes that listen at a local address.

The kernel shows the listening sockets of the monitor's network namespace, each with the inode
number that /proc/PID/fd shows for the processes which hold the socket. A process that inherited a
socket holds it, too, such as a worker of a server, or a service whose socket systemd opened.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import struct
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from functools import lru_cache
from typing import NamedTuple

import psutil

from ..concurrency.single_flight import SingleFlight
from ..domain.address import LOOPBACK_HOSTS, parse_address
from ..domain.models import ProcessName
from .process import process_name
from .process_table import read_row
from .socket_diag import TcpListener, list_tcp_listeners

_MAX_AGE_SECONDS = 1.0
_LISTEN = b"0A"  # TCP_LISTEN of the kernel, in the column `st` of /proc/net/tcp
_ACCEPTS_CONNECTIONS = b"00010000"  # __SO_ACCEPTCON, in the column `Flags` of /proc/net/unix

_MAX_PARSED = 4096  # addresses


class ListeningSockets(NamedTuple):
    """The sockets that accept connections to an address.

    Attributes:
        inodes: their inode numbers. Empty if no such socket is seen: nothing listens, or something
            in another network namespace or on another machine, or /proc/net cannot be read.
        seen_at: when the snapshot that shows them was begun (monotonic seconds).
    """

    inodes: frozenset[int]
    seen_at: float


class Listeners(NamedTuple):
    """Which processes of a group hold the sockets that accept at an address.

    Attributes:
        pid: the first process of the group that holds one of the sockets; None if none is seen to.
        others: the sockets that no process of the group is seen to hold.
        is_complete: whether the descriptors of all processes of the group could be read. If not,
            the group may hold the sockets in `others`.
    """

    pid: int | None
    others: frozenset[int]
    is_complete: bool


class SocketSnapshot:
    """The listening sockets of this network namespace, as one pass found them.

    Args:
        taken_at: when the pass began (monotonic seconds).
        tcp: by port, the local IP address (4 or 16 bytes) and the inode of each socket.
        unix: by the last part of the path, the path and the inode of each socket. An abstract name
            has one part, which begins with a NUL.

    Attributes:
        inodes: those of all sockets.
    """

    def __init__(
        self,
        taken_at: float,
        tcp: Mapping[int, Sequence[tuple[bytes, int]]],
        unix: Mapping[str, Sequence[tuple[str, int]]],
    ) -> None:
        self.taken_at = taken_at
        self.unix = unix
        self._tcp = tcp
        groups = (*tcp.values(), *unix.values())
        self.inodes = {inode for sockets in groups for _, inode in sockets}

    def tcp_inodes(self, port: int, ranks: Iterable[Sequence[bytes]]) -> frozenset[int]:
        """Return the inodes of the sockets from which the kernel chooses for a connection.

        Several sockets may share an address (SO_REUSEPORT).

        Args:
            port: the port that is dialled.
            ranks: the local addresses that accept the connection: see `_accepting_addresses`.
        """
        sockets = self._tcp.get(port, ())
        for addresses in ranks if sockets else ():
            if found := frozenset(inode for ip, inode in sockets if ip in addresses):
                return found
        return frozenset()


class _Place(NamedTuple):
    """Where a client of an address connects.

    Attributes:
        path: that of a unix socket: see `Target`; None for TCP.
        port: the TCP port.
        hosts: each host, with the local addresses that accept a connection to it.
    """

    path: str | None
    port: int
    hosts: Sequence[tuple[str, Sequence[Sequence[bytes]]]]


def is_in_other_network(pid: int) -> bool:
    """Whether a process is in another network namespace than the monitor, as far as is known."""
    try:
        other, own = os.stat(f"/proc/{pid}/ns/net"), os.stat("/proc/self/ns/net")
    except OSError:  # it has ended, or may not be read
        return False
    return (other.st_dev, other.st_ino) != (own.st_dev, own.st_ino)


class SocketTable:
    """Tells which processes listen at an address. Safe to call from any thread.

    Addresses have one of the `FORMS` in `domain/address.py`. Snapshots are shared between callers.
    """

    def __init__(self) -> None:
        self._snapshots = SingleFlight(_MAX_AGE_SECONDS, self._take_snapshot)
        # Lists look up the same addresses each time: this takes a third of the time of a lookup.
        self._parse = lru_cache(_MAX_PARSED)(_parse_place)
        self._searches = SingleFlight(_MAX_AGE_SECONDS, self._search_all_processes)
        # The process that holds an inode, and its link to it. A lookup that reads this one link
        # again spares the links of all descriptors of all processes of a backend.
        self._holders: dict[int, tuple[int, str]] = {}
        # For a path with several sockets: what identifies the case, and the sockets that clients
        # reach.
        self._reachable: dict[str, tuple[object, frozenset[int]]] = {}

    def find_sockets(
        self, address: str, max_age_seconds: float = _MAX_AGE_SECONDS
    ) -> ListeningSockets:
        """Find the sockets that accept connections to an address.

        Args:
            address: the address.
            max_age_seconds: the maximum age of the snapshot; 0 takes a new one.
        """
        path, port, hosts = self._parse(address)
        nothing = ListeningSockets(frozenset(), time.monotonic())
        try:
            if not all(_is_own_ip(host) for host, _ in hosts):
                return nothing
            snapshot = self._snapshots.get_since(time.monotonic() - max_age_seconds)
            if path is not None:
                inodes = self._unix_inodes(snapshot, path)
            else:
                found = (snapshot.tcp_inodes(port, ranks) for _, ranks in hosts)
                inodes = frozenset().union(*found)
        except OSError:
            return nothing
        return ListeningSockets(inodes, snapshot.taken_at)

    def find_listeners(self, inodes: frozenset[int], pids: Iterable[int]) -> Listeners:
        """Find the processes of a group that hold listening sockets; reads descriptors now.

        Args:
            inodes: the sockets.
            pids: the processes of the group, parents before their children.
        """
        if not inodes:
            return Listeners(None, inodes, True)
        group = list(pids)
        holders = self.known_holders(inodes, group)
        is_complete = True
        if others := inodes - holders.keys():
            found, is_complete = self._find_holders(others, group)
            holders.update(found)
            others -= found.keys()
        return Listeners(min(holders.values(), key=group.index, default=None), others, is_complete)

    def find_listener(self, address: str, pids: Iterable[int]) -> int | None:
        """Find the process of a group that listens at an address.

        Args:
            address: the address.
            pids: the processes of the group, parents before their children.

        Returns:
            The first process of the group that holds one of the sockets which accept there; None if
            none is seen to.
        """
        return self.find_listeners(self.find_sockets(address).inodes, pids).pid

    def known_holders(self, inodes: Iterable[int], pids: Iterable[int]) -> dict[int, int]:
        """Return the sockets that were found before in processes of a group which still hold them.

        Args:
            inodes: the sockets.
            pids: the processes of the group.

        Returns:
            The PIDs by inode. Reads one link for each inode.
        """
        group = set(pids)
        return {inode: pid for inode in inodes if (pid := self._known_holder(inode)) in group}

    def find_owner(self, sockets: ListeningSockets) -> ProcessName | None:
        """Find a process that holds one of the sockets, among all processes of this machine.

        Reads the descriptors of all processes unless the process was found before, or another call
        has just read them: with a thousand processes that takes a tenth of a second.

        Returns:
            None if there are no sockets. PID and name are None if no process is seen to hold them,
            as the descriptors of other users' processes may not be read.
        """
        if not sockets.inodes:
            return None
        pid = self._any_known_holder(sockets.inodes)
        began_at = 0.0
        while pid is None and began_at < sockets.seen_at:  # another thread may have begun before
            began_at = self._searches.get(max(0.0, time.monotonic() - sockets.seen_at))
            pid = self._any_known_holder(sockets.inodes)
        return ProcessName(pid, None if pid is None else process_name(pid))

    def owner(self, address: str) -> ProcessName | None:
        """Find a process that listens at an address now: see `find_owner`."""
        return self.find_owner(self.find_sockets(address, 0.0))

    def _take_snapshot(self) -> SocketSnapshot:
        snapshot = take_snapshot()
        for inode in list(self._holders):
            if inode not in snapshot.inodes:
                self._holders.pop(inode, None)
        return snapshot

    def _search_all_processes(self) -> float:
        """Find the holders of all listening sockets; return when the search began."""
        began_at = time.monotonic()
        inodes = self._snapshots.get().inodes
        unknown = {inode for inode in inodes if self._known_holder(inode) is None}
        self._find_holders(unknown, sorted(psutil.pids()))
        return began_at

    def _any_known_holder(self, inodes: frozenset[int]) -> int | None:
        return next((pid for each in sorted(inodes) if (pid := self._known_holder(each))), None)

    def _known_holder(self, inode: int) -> int | None:
        """Return the process that was found to hold an inode, if it still does."""
        pid, link = self._holders.get(inode, (None, ""))
        return pid if pid is not None and _socket_inode(link) == inode else None

    def _find_holders(self, inodes: Set[int], pids: Iterable[int]) -> tuple[dict[int, int], bool]:
        """Find the first process that holds each inode.

        Returns:
            The PIDs by inode, and whether all descriptors that were searched could be read.
        """
        found: dict[int, int] = {}
        is_complete = True
        for pid in pids:
            try:
                for link in _descriptors(pid):
                    inode = _socket_inode(link)
                    if inode is not None and inode in inodes and inode not in found:
                        found[inode] = pid
                        self._holders[inode] = pid, link
            except OSError:  # it may not be read, or no descriptor is free
                is_complete = False
            if len(found) == len(inodes):
                break
        return found, is_complete

    def _unix_inodes(self, snapshot: SocketSnapshot, path: str) -> frozenset[int]:
        """Return the inode of the socket that a client of a path reaches."""
        if path.startswith("\0"):
            return frozenset(inode for _, inode in snapshot.unix.get(path, ()))
        real_path = os.path.realpath(path)
        try:
            file = os.stat(real_path)
        except OSError:  # the path was removed: its socket may still listen, but nothing reaches it
            return frozenset()
        # A relative path may be that of another folder.
        paths = {
            inode: bound
            for bound, inode in snapshot.unix.get(real_path.rpartition("/")[2], ())
            if not bound.startswith("/") or os.path.realpath(bound) == real_path
        }
        inodes = frozenset(paths)
        if len(inodes) <= 1 and all(bound.startswith("/") for bound in paths.values()):
            self._reachable.pop(path, None)
            return inodes
        # A server that replaces the socket of another one, which still listens, has the same path.
        key = (inodes, file.st_dev, file.st_ino)
        known = self._reachable.get(path)
        if known is not None and known[0] == key:
            return known[1]
        peer = _peer_pid(path)
        found, _ = self._find_holders(inodes, [] if peer is None else [peer])
        if found:
            self._reachable[path] = key, frozenset(found)
        return frozenset(found)


def take_snapshot() -> SocketSnapshot:
    """Read the listening sockets, where the kernel allows it by sock_diag, else from /proc/net.

    Raises:
        OSError: /proc/net cannot be read, or no file descriptor is free.
    """
    taken_at = time.monotonic()
    tcp: dict[int, list[tuple[bytes, int]]] = {}
    unix: dict[str, list[tuple[str, int]]] = {}
    try:
        listeners = list_tcp_listeners()
    except OSError:
        listeners = _read_tcp_listeners()
    for ip, port, inode in listeners:
        tcp.setdefault(port, []).append((ip, inode))
    for fields in _read_table("unix", 8, 3, _ACCEPTS_CONNECTIONS):
        path = os.fsdecode(fields[7].rstrip(b"\n"))
        path = "\0" + path[1:] if path.startswith("@") else path
        last = path if path.startswith("\0") else path.rpartition("/")[2]
        unix.setdefault(last, []).append((path, int(fields[6])))
    return SocketSnapshot(taken_at, tcp, unix)


def _read_tcp_listeners() -> list[TcpListener]:
    """Read the listening sockets from /proc/net, which also lists the connections."""
    found = []
    for name in ("tcp", "tcp6"):
        for fields in _read_table(name, 11, 3, _LISTEN):
            ip, _, port = fields[1].partition(b":")
            found.append(TcpListener(_parse_ip(ip), int(port, 16), int(fields[9])))
    return found


def _read_table(name: str, size: int, column: int, value: bytes) -> Iterator[list[bytes]]:
    """Yield the fields of the lines of /proc/net/NAME that have a value in a column.

    Args:
        name: the name of the file; without IPv6 in the kernel, `tcp6` does not exist.
        size: how many fields to split a line into; shorter lines are skipped.
        column: the index of the field.
        value: its value.
    """
    with contextlib.suppress(FileNotFoundError), open(f"/proc/net/{name}", "rb") as file:
        for line in file:
            fields = line.split(None, size - 1)
            if len(fields) == size and fields[column] == value:
                yield fields


def _parse_ip(digits: bytes) -> bytes:
    """Parse an address of /proc/net/tcp: words of 32 bits in the machine's byte order."""
    starts = range(0, len(digits), 8)
    return b"".join(struct.pack("=I", int(digits[at : at + 8], 16)) for at in starts)


def _parse_place(address: str) -> _Place:
    path, hosts, port, _ = parse_address(address)
    return _Place(path, port, [(host, _accepting_addresses(host)) for host in hosts])


def _accepting_addresses(host: str) -> list[tuple[bytes, ...]]:
    """List the local addresses of sockets that accept connections to a host, the best first.

    The kernel prefers the address that is dialled to the unspecified one, and that to the one of
    IPv6 for a connection by IPv4. A name has none: names are not resolved, as DNS may change.
    """
    any_ipv6 = bytes(16)
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        return []
    if ip.version == 6:
        return [(ip.packed,), (any_ipv6,)]
    mapped = bytes(10) + b"\xff\xff"
    return [(ip.packed,), (mapped + ip.packed,), (bytes(4),), (mapped + bytes(4), any_ipv6)]


def _is_own_ip(host: str) -> bool:
    """Whether a host is an IP address of this machine."""
    if host in LOOPBACK_HOSTS:
        return True
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        return False
    family = socket.AF_INET if ip.version == 4 else socket.AF_INET6
    with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.bind((host, 0))  # the kernel binds no address of another machine
        return True
    return False


def _descriptors(pid: int) -> list[str]:
    """List the paths of the links to the descriptors of a process; none if it has ended.

    Raises:
        OSError: they may not be read.
    """
    denied: OSError | None = None
    try:
        if found := _list_folder(f"/proc/{pid}/fd"):
            return found
    except PermissionError as error:
        denied = error
    row = read_row(pid)
    if row is not None and row.is_zombie:
        return []
    if row is not None and not row.vms:  # its first thread has exited, while others run
        for task in _list_folder(f"/proc/{pid}/task"):
            with contextlib.suppress(PermissionError):
                if found := _list_folder(f"{task}/fd"):
                    return found
    if denied is not None:
        raise denied
    return []


def _list_folder(path: str) -> list[str]:
    try:
        return [f"{path}/{name}" for name in os.listdir(path)]
    except (FileNotFoundError, ProcessLookupError):
        return []


def _socket_inode(link: str) -> int | None:
    """Return the inode of a descriptor; None if it is no socket or was closed.

    Raises:
        OSError: the link may not be read.
    """
    try:
        target = os.readlink(link)  # noqa: PTH115 - a Path takes longer
    except (FileNotFoundError, ProcessLookupError):
        return None
    return int(target[8:-1]) if target.startswith("socket:[") else None


def _peer_pid(path: str) -> int | None:
    """Return the process that called listen() on the socket of a path; None if it is not known."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        probe.connect(path)
        peer = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        pid: int = struct.unpack("3i", peer)[0]
        return pid or None  # 0: in another PID namespace
    return None
