"""Accepts and evicts connections, so that slow and idle clients do not keep other clients out."""

from __future__ import annotations

import errno
import heapq
import logging
import time
from collections.abc import Callable
from typing import Any

from ...config.descriptors import max_connections
from .channel import Channel

_logger = logging.getLogger(__name__)

# A client that reads nothing for this long is evicted while a thread waits to write to it.
_STALLED_SECONDS = 10.0
# A connection that was quiet for less than this is not evicted: its request may be on the way.
_GRACE_SECONDS = 0.05
_FULL_SECONDS = 0.01  # interval of evictions while the maximum number of connections is open
_SWEEP_SECONDS = 1.0
_NO_DESCRIPTOR_SECONDS = 0.05
# Maximum size of all unfinished request bodies and unread answers together. They are in memory,
# because files would take descriptors.
_MAX_BUFFERED_BYTES = 128 * 1024 * 1024
_NO_DESCRIPTOR = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}


class Connections:
    """Accepts connections for a waitress server, and evicts some of them.

    An eighth of the maximum number of connections is reserved for new clients. If fewer are free,
    the connections that have been quiet longest are closed, except those with a request that is
    being answered. So any number of slow clients may connect, again and again. While all
    connections are new or are being answered, further clients wait to be accepted.

    Args:
        server: waitress's server. Only the thread of its loop may call the methods of this class.
        listen: the address on which the server listens, for the log.
        idle_seconds: after how long a quiet connection is closed.
    """

    def __init__(self, server: Any, listen: str, idle_seconds: float) -> None:
        self._server = server
        self._channels: dict[int, Channel] = server.active_channels
        self._listen = listen
        self._idle_seconds = idle_seconds
        self._max_open = max_connections()
        self._reserve = max(1, self._max_open // 8)
        self._no_descriptor = False  # since the last call of `evict`
        self._warned = False
        self._next_sweep = 0.0
        self._accept_socket: Callable[[], Any] = server.accept
        self._accept_one: Callable[[], None] = server.handle_accept
        server.channel_class = Channel
        server.accept = self._accept_or_pause
        # Waitress's own `readable` stops accepting at its limit, and logs a warning each time.
        server.readable = self._is_accepting
        server.handle_accept = self._accept_several

    def evict(self) -> float:
        """Close connections that were quiet too long, buffer too much, or take the reserve.

        Call this between two passes of the loop. If a connection were closed during a pass, a new
        connection could get the same descriptor number, and the loop would take events of the old
        connection for events of the new one.

        Returns:
            Seconds until the next call, at most.
        """
        now = time.monotonic()
        if now >= self._next_sweep:
            self._next_sweep = now + min(_SWEEP_SECONDS, self._idle_seconds / 4)
            for channel in list(self._channels.values()):
                # Read first: `quiet_since` is set before an answer counts as unread.
                seconds = self._max_quiet_seconds(channel)
                if now - channel.quiet_since > seconds:
                    channel.handle_close()
        self._evict_largest()
        self._evict_quietest(now)
        return _FULL_SECONDS if len(self._channels) >= self._max_open else _SWEEP_SECONDS

    def close(self) -> None:
        """Close all connections. Call this after the loop has ended."""
        for channel in list(self._channels.values()):
            channel.handle_close()

    def _max_quiet_seconds(self, channel: Channel) -> float:
        if not channel.is_answering:
            return self._idle_seconds
        return _STALLED_SECONDS if channel.has_unread_answer else float("inf")

    def _evict_quietest(self, now: float) -> None:
        lacking = len(self._channels) - (self._max_open - self._reserve)
        if self._no_descriptor:
            self._no_descriptor, lacking = False, max(1, lacking)
        if lacking > 0:
            idle = [
                each
                for each in self._channels.values()
                if not each.is_answering and now - each.quiet_since > _GRACE_SECONDS
            ]
            for channel in heapq.nsmallest(lacking, idle, key=lambda each: each.quiet_since):
                channel.handle_close()

    def _evict_largest(self) -> None:
        sizes = {each: each.buffered_bytes for each in self._channels.values()}
        total = sum(sizes.values())
        while total > _MAX_BUFFERED_BYTES:
            channel = max(sizes, key=lambda each: sizes[each])
            total -= sizes.pop(channel)
            channel.handle_close()

    def _is_accepting(self) -> bool:
        return bool(self._server.accepting) and len(self._channels) < self._max_open

    def _accept_several(self) -> None:
        """Accept several connections per pass of the loop: many clients may connect together."""
        for _ in range(min(self._reserve, self._max_open - len(self._channels))):
            before = len(self._channels)
            self._accept_one()
            if len(self._channels) == before:
                break

    def _accept_or_pause(self) -> Any:
        """Accept a connection. Pause if no descriptor is free: the loop would spin otherwise."""
        try:
            accepted = self._accept_socket()
        except OSError as error:
            if error.errno not in _NO_DESCRIPTOR:
                raise
            if not self._warned:
                _logger.warning("no connection is accepted on %s for now: %s", self._listen, error)
            self._warned = self._no_descriptor = True
            time.sleep(_NO_DESCRIPTOR_SECONDS)
            return None
        self._warned = False
        return accepted
