"""Limits the number of open channels, which take one or two file descriptors each."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from ..config.descriptors import max_channels

Owner = TypeVar("Owner", bound=Hashable)


class ChannelLimit(Generic[Owner]):
    """The owners of the open channels, least recently used first. Safe to call from any thread.

    The cost of an operation does not depend on the number of channels, apart from channels in use.
    An owner reports each channel that it opens and closes, also those that `make_room` closes.

    Args:
        close_if_idle: closes the channel of an owner, unless a call uses it. It is called without
            a lock.
    """

    def __init__(self, close_if_idle: Callable[[Owner], object]) -> None:
        self._close_if_idle = close_if_idle
        self._lock = threading.Lock()
        self._owners: OrderedDict[Owner, None] = OrderedDict()

    def opened(self, owner: Owner) -> None:
        """Add an owner that has opened its channel."""
        with self._lock:
            self._owners[owner] = None

    def used(self, owner: Owner) -> None:
        """Make an owner the most recently used one, if its channel is open."""
        with self._lock:
            if owner in self._owners:
                self._owners.move_to_end(owner)

    def closed(self, owner: Owner) -> None:
        """Remove an owner that closes its channel."""
        with self._lock:
            self._owners.pop(owner, None)

    def make_room(self) -> bool:
        """Close idle channels, least recently used first, until one more may be opened.

        Returns:
            False if the limit is reached, and no channel is idle.
        """
        for _ in range(len(self._owners) + 1):
            with self._lock:
                if len(self._owners) < max_channels():
                    return True
                if not self._owners:
                    return False
                owner = next(iter(self._owners))
                # The next call of `make_room` tries other owners first.
                self._owners.move_to_end(owner)
            self._close_if_idle(owner)
        return False
