"""A lock for each key, which callers of the same group share, in the order of arrival."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(eq=False)
class _Group:
    name: str
    callers: int = 0


class GroupLock:
    """A lock for each key. Callers that arrive one after the other with the same group share it.

    A caller of another group waits until all callers before it have left. A later caller of the
    first group then waits for that caller, so that no group waits forever. Thread-safe.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._groups: dict[str, deque[_Group]] = {}  # the first one holds the lock of the key

    @contextmanager
    def hold(self, key: str, group: str) -> Iterator[None]:
        """Hold the lock of a key together with the group; wait until the group may have it."""
        with self._changed:
            groups = self._groups.setdefault(key, deque())
            if not groups or groups[-1].name != group:
                groups.append(_Group(group))
            joined = groups[-1]
            joined.callers += 1
        try:
            with self._changed:
                self._changed.wait_for(lambda: groups[0] is joined)
            yield
        finally:
            with self._changed:
                joined.callers -= 1
                if not joined.callers:
                    groups.remove(joined)
                    if not groups:
                        del self._groups[key]
                    self._changed.notify_all()
