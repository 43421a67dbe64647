"""A lock for each key. Callers of one group share it; groups get it in the order of arrival."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field


class Cancelled(Exception):
    """The group was cancelled."""


class LockTimeout(Exception):
    """The lock was not free in time."""


@dataclass(eq=False)
class Group:
    """Callers that hold the lock of a key together, or wait for it together.

    Attributes:
        name: the name of the group.
        callers: the number of callers.
        cancelled: set by `GroupLock.cancel`, or by a caller with `cancels`.
        result: the result of the function that the group runs once; None before its call.
    """

    name: Hashable
    callers: int = 0
    cancelled: threading.Event = field(default_factory=threading.Event)
    result: Future[None] | None = None

    @property
    def is_open(self) -> bool:
        """Whether a caller may still join the group."""
        is_done = self.result is not None and self.result.done()
        return not is_done and not self.cancelled.is_set()


class GroupLock:
    """A lock for each key. Callers that arrive one after the other with the same group share it.

    A caller of another group waits until all callers before it have left. A later caller of the
    first group then waits for that caller, so that no group waits forever. Thread-safe.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._groups: dict[str, deque[Group]] = {}  # the first one holds the lock of the key

    @contextmanager
    def hold(
        self, key: str, name: Hashable, seconds: float | None = None, *, cancels: bool = False
    ) -> Iterator[Group]:
        """Hold the lock of a key as a caller of a group; wait until the group has the lock.

        Args:
            key: the key.
            name: the name of the group.
            seconds: the maximum time to wait; None for no limit.
            cancels: cancel the groups of other names that arrived before.

        Raises:
            Cancelled: the group was cancelled during the wait.
            LockTimeout: the group did not get the lock in time.
        """
        with self._changed:
            groups = self._groups.setdefault(key, deque())
            if cancels:
                self._cancel([each for each in groups if each.name != name])
            if not groups or groups[-1].name != name or not groups[-1].is_open:
                groups.append(Group(name))
            group = groups[-1]
            group.callers += 1
        try:
            with self._changed:
                self._changed.wait_for(
                    lambda: groups[0] is group or group.cancelled.is_set(), seconds
                )
                if group.cancelled.is_set():
                    raise Cancelled
                if groups[0] is not group:
                    raise LockTimeout
            yield group
        finally:
            with self._changed:
                group.callers -= 1
                if not group.callers:
                    groups.remove(group)
                    if not groups:
                        del self._groups[key]
                    self._changed.notify_all()

    def is_free(self, key: str) -> bool:
        """Whether no caller holds the lock of a key, or waits for it."""
        with self._changed:
            return key not in self._groups

    def run_once(self, group: Group, function: Callable[[], None]) -> None:
        """Call a function unless a caller of the group has called it; else wait for that result.

        Raises:
            Exception: what the function raised. If that is no `Exception`, such as a
                `KeyboardInterrupt`, only the caller of the function gets it; the other callers get
                `Cancelled`.
        """
        with self._changed:
            result = group.result
            leads = result is None
            if result is None:
                result = group.result = Future()
        if not leads:
            result.result()
            return
        try:
            function()
        except BaseException as error:
            result.set_exception(error if isinstance(error, Exception) else Cancelled())
            raise
        result.set_result(None)

    def cancel(self, keep: Hashable) -> None:
        """Cancel the groups of all keys, except those with the name `keep`."""
        with self._changed:
            found = [each for groups in self._groups.values() for each in groups]
            self._cancel([each for each in found if each.name != keep])

    def _cancel(self, groups: list[Group]) -> None:
        for each in groups:
            each.cancelled.set()
        self._changed.notify_all()
