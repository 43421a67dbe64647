"""Which connections stay open, so that slow and idle ones keep no other client out."""

from __future__ import annotations

import errno
import heapq
import logging
import time
from collections.abc import Callable
from typing import Any

from ...config.descriptors import most_connections
from .channel import Channel

_logger = logging.getLogger(__name__)

# A client that holds a thread, as it does not take an answer, and the next one cannot be written.
_STALLED_SECONDS = 10.0
# Within which a connection is not closed to make room: a client must come to its request.
_GRACE_SECONDS = 0.05
_FULL_SECONDS = 0.01  # between looks whether those that have come are past it
_SWEEP_SECONDS = 1.0
_PAUSE_SECONDS = 0.05
# Of requests that have not come whole and answers that were not taken, of all clients; they are
# kept in memory, as files would take descriptors.
_MOST_HELD_BYTES = 128 * 1024 * 1024
_NO_DESCRIPTOR = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}


class Connections:
    """Accepts connections for a waitress server, and closes those that must go.

    Of the connections that may be open an eighth is kept free for those that come: where it is
    not, those that have been quiet for longest and have no request to be answered are closed, so
    that of slow clients any number may come, again and again. Where all have just come or are
    being answered, further ones wait to be accepted.

    Args:
        server: waitress's, whose loop runs in one thread, which alone calls this.
        listen: where it listens, for the log.
        idle_seconds: after how long a quiet connection is closed.
    """

    def __init__(self, server: Any, listen: str, idle_seconds: float) -> None:
        self._server = server
        self._channels: dict[int, Channel] = server.active_channels
        self._idle_seconds = idle_seconds
        self._most = most_connections()
        self._kept_free = max(1, self._most // 8)
        self._starved = False
        self._next_sweep = 0.0
        self._accept_one: Callable[[], None] = server.handle_accept
        server.channel_class = Channel
        server.accept = patient(server.accept, listen, self._starve)
        # Instead of waitress's own, which accepts no more at its limit, and warns of it each time.
        server.readable = self._is_accepting
        server.handle_accept = self._accept

    def tend(self) -> float:
        """Close what must go; tell after how many seconds to be called again, or sooner.

        To be called between two passes of the loop: within one, a new connection may get the
        number of a descriptor that was closed, and what the pass found out about the old one.
        """
        now = time.monotonic()
        if now >= self._next_sweep:
            self._next_sweep = now + min(_SWEEP_SECONDS, self._idle_seconds / 4)
            for channel in list(self._channels.values()):
                if now - channel.quiet_since > self._patience(channel):
                    channel.handle_close()
        self._bound_memory()
        self._make_room(now)
        return _FULL_SECONDS if len(self._channels) >= self._most else _SWEEP_SECONDS

    def close(self) -> None:
        """Close all, once the loop has ended; a thread that waits for a client to read goes on."""
        for channel in list(self._channels.values()):
            channel.handle_close()

    def _patience(self, channel: Channel) -> float:
        if not channel.answering:
            return self._idle_seconds
        return _STALLED_SECONDS if channel.answer_waits else float("inf")

    def _make_room(self, now: float) -> None:
        lacking = len(self._channels) - (self._most - self._kept_free)
        if self._starved:
            self._starved, lacking = False, max(1, lacking)
        if lacking > 0:
            idle = [
                each
                for each in self._channels.values()
                if not each.answering and now - each.quiet_since > _GRACE_SECONDS
            ]
            for channel in heapq.nsmallest(lacking, idle, key=lambda each: each.quiet_since):
                channel.handle_close()

    def _bound_memory(self) -> None:
        """Close the connections that hold most, where all of them hold too much memory."""
        held = {each: each.held_bytes for each in self._channels.values()}
        total = sum(held.values())
        while total > _MOST_HELD_BYTES:
            channel = max(held, key=lambda each: held[each])
            total -= held.pop(channel)
            channel.handle_close()

    def _starve(self) -> None:
        self._starved = True

    def _is_accepting(self) -> bool:
        return bool(self._server.accepting) and len(self._channels) < self._most

    def _accept(self) -> None:
        """Accept several at once, or a crowd's connections would take a pass each."""
        for _ in range(min(self._kept_free, self._most - len(self._channels))):
            before = len(self._channels)
            self._accept_one()
            if len(self._channels) == before:
                break


def patient(
    accept: Callable[[], Any], listen: str, starve: Callable[[], None]
) -> Callable[[], Any]:
    """Make accepting pause where the process has no descriptor left, or the loop would spin.

    Args:
        accept: waitress's.
        listen: where it listens, for the log.
        starve: is told that there is none.
    """
    said = False

    def accept_patiently() -> Any:
        nonlocal said
        try:
            accepted, said = accept(), False
        except OSError as error:
            if error.errno not in _NO_DESCRIPTOR:
                raise
            if not said:
                _logger.warning("no connection is accepted on %s for now: %s", listen, error)
            said, accepted = True, None
            starve()
            time.sleep(_PAUSE_SECONDS)
        return accepted

    return accept_patiently
