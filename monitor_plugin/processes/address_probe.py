"""Probes whether anything accepts connections at an address."""

from __future__ import annotations

import contextlib
import errno
import select
import socket
import threading
import time
from collections.abc import Iterable
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any

from ..domain.address import parse_address

_PROBE_SECONDS = 1.0

_Peer = tuple[int, Any]  # the family and the address of a socket, as the module `socket` takes them


def accepts_connection(address: str, timeout_seconds: float = _PROBE_SECONDS) -> bool | None:
    """Whether anything accepts a connection at an address, on this machine or another one.

    Args:
        address: the address, in one of the `FORMS` in `domain/address.py`.
        timeout_seconds: how long to wait, also for the resolution of a name.

    Returns:
        False if every connection was refused, the path or the name does not exist, or the name was
        not resolved in time. None if a connection got no answer in time: the machine may be off, or
        a TCP listener on this machine may be stuck, so that its queue of connections is full.

    Raises:
        OSError: no file descriptor is free.
    """
    target = parse_address(address)
    deadline = time.monotonic() + timeout_seconds
    if target.path is not None:
        return _connects([(socket.AF_UNIX, target.path)], deadline)
    peers = [peer for host in target.hosts for peer in _resolve(host, target.port, deadline)]
    return _connects(peers, deadline)


def _resolve(host: str, port: int, deadline: float) -> list[_Peer]:
    """Return the families and socket addresses of a host; empty if there are none in time."""
    resolve = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
    with contextlib.suppress(OSError):
        return [(each[0], each[4]) for each in resolve(flags=socket.AI_NUMERICHOST)]
    results: SimpleQueue[list[_Peer]] = SimpleQueue()

    def run() -> None:  # DNS may take longer than the caller waits
        try:
            results.put([(each[0], each[4]) for each in resolve()])
        except (OSError, UnicodeError):
            results.put([])

    threading.Thread(target=run, name="monitor-resolve", daemon=True).start()
    try:
        return results.get(timeout=max(0.0, deadline - time.monotonic()))
    except Empty:
        return []


def _connects(peers: Iterable[_Peer], deadline: float) -> bool | None:
    """Whether a connection to one of several socket addresses is accepted; None: no answer yet."""
    with contextlib.ExitStack() as stack:
        pending = {}
        poll = select.poll()
        for family, peer in peers:
            try:
                probe = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE):
                    raise
                continue  # such as IPv6, where it is off
            with contextlib.suppress(OSError):
                probe.setblocking(False)
                try:
                    probe.connect(peer)
                except BlockingIOError:
                    if family == socket.AF_UNIX:  # its queue of connections is full
                        return True
                pending[probe.fileno()] = probe
                poll.register(probe, select.POLLOUT)
        while pending and (left := deadline - time.monotonic()) > 0:
            for number, _ in poll.poll(left * 1000):
                probe = pending.pop(number)
                poll.unregister(number)
                if not probe.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) and _has_peer(probe):
                    return True
        return None if pending else False


def _has_peer(probe: socket.socket) -> bool:
    """Whether a socket is connected to another one: TCP can connect a socket with itself."""
    try:
        return bool(probe.getpeername() != probe.getsockname())
    except OSError:
        return False
