from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from monitor_plugin.concurrency.group_lock import Cancelled, GroupLock, LockTimeout

from ..support import eventually


class Callers:
    """Threads that hold a lock until they are told to leave."""

    def __init__(self, lock: GroupLock) -> None:
        self.lock = lock
        self.holding: list[str] = []
        self._pool = ThreadPoolExecutor(50)

    def arrive(
        self, name: Hashable, label: str, leave: threading.Event, key: str = "m", **options: bool
    ) -> Future[None]:
        """Let a thread arrive, and wait until it holds the lock or is in the queue."""
        before = self._count(key, name)

        def run() -> None:
            with self.lock.hold(key, name, **options):
                self.holding.append(label)
                leave.wait(60)

        future = self._pool.submit(run)
        eventually(lambda: self._count(key, name) > before)
        return future

    def _count(self, key: str, name: Hashable) -> int:
        """Count the callers of the last group, if it has this name."""
        last = list(self.lock._groups.get(key, ()))[-1:]
        return sum(each.callers for each in last if each.name == name)


@pytest.fixture
def callers() -> Callers:
    return Callers(GroupLock())


def test_groups_take_turns_in_the_order_of_arrival(callers: Callers) -> None:
    """Neighbours of one group hold the lock together; a later one of it waits for the others."""
    leave = [threading.Event() for _ in range(4)]
    names = ["stop", "stop", "start", "stop"]
    futures = [
        callers.arrive(name, f"{number}", event)
        for number, (name, event) in enumerate(zip(names, leave, strict=True))
    ]
    eventually(lambda: sorted(callers.holding) == ["0", "1"])
    leave[0].set()
    futures[0].result(60)
    assert sorted(callers.holding) == ["0", "1"]
    leave[1].set()
    eventually(lambda: callers.holding[2:] == ["2"])
    leave[2].set()
    eventually(lambda: callers.holding[2:] == ["2", "3"])
    leave[3].set()
    for each in futures:
        each.result(60)
    assert callers.lock._groups == {}


def test_keys_are_independent(callers: Callers) -> None:
    """A caller of another key does not wait."""
    leave = threading.Event()
    first = callers.arrive("start", "a", leave, key="a")
    second = callers.arrive("stop", "b", leave, key="b")
    eventually(lambda: sorted(callers.holding) == ["a", "b"])
    leave.set()
    first.result(60)
    second.result(60)


def test_caller_that_does_not_get_its_turn_leaves_the_queue(callers: Callers) -> None:
    """The time was over, or the group was cancelled; later callers keep their order."""
    leave = threading.Event()
    first = callers.arrive("stop", "first", leave)
    eventually(lambda: callers.holding == ["first"])
    with pytest.raises(LockTimeout), callers.lock.hold("m", "start", 0.01):
        pytest.fail("it holds the lock")
    waiting = callers.arrive("start", "waiting", leave)
    last = callers.arrive("stop", "last", leave, cancels=True)
    with pytest.raises(Cancelled):
        waiting.result(60)
    assert callers.holding == ["first"]
    leave.set()
    first.result(60)
    last.result(60)
    assert callers.holding == ["first", "last"]
    assert callers.lock._groups == {}


def test_canceller_spares_its_own_group_and_later_callers(callers: Callers) -> None:
    """The holder of another group learns of it, and a later caller of that group does not join."""
    leave = threading.Event()
    with callers.lock.hold("m", "start") as group:
        stop = callers.arrive("stop", "stop", leave, cancels=True)
        start = callers.arrive("start", "start", leave)
        assert group.cancelled.is_set()
    eventually(lambda: callers.holding == ["stop"])
    callers.lock.cancel(keep="stop")
    with pytest.raises(Cancelled):
        start.result(60)
    leave.set()
    stop.result(60)


def test_group_runs_a_function_once() -> None:
    """All callers get the result or the error; a later caller calls a function again."""
    lock = GroupLock()
    runs: list[int] = []
    may_end = threading.Event()

    def run() -> None:
        runs.append(1)
        may_end.wait(60)
        if len(runs) == 1:
            raise ValueError("no")

    def call() -> None:
        with lock.hold("m", "start") as group:
            lock.run_once(group, run)

    with ThreadPoolExecutor(10) as pool:
        futures = [pool.submit(call) for _ in range(10)]
        eventually(lambda: lock._groups["m"][0].callers == 10)
        may_end.set()
        errors = [each.exception(60) for each in futures]
    assert [str(each) for each in errors] == ["no"] * 10
    call()
    assert len(runs) == 2
    assert lock._groups == {}


def test_interrupt_reaches_only_the_thread_that_runs_the_function() -> None:
    """Ctrl-C in the thread of a host is no Ctrl-C in the threads that wait for the same result."""
    lock = GroupLock()
    may_end = threading.Event()

    def run() -> None:
        may_end.wait(60)
        raise KeyboardInterrupt

    def call(function: Callable[[], None]) -> None:
        with lock.hold("m", "start") as group:
            lock.run_once(group, function)

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(call, run)
        eventually(lambda: lock._groups and lock._groups["m"][0].result)
        second = pool.submit(call, run)
        eventually(lambda: lock._groups["m"][0].callers == 2)
        may_end.set()
        assert isinstance(first.exception(60), KeyboardInterrupt)
        assert isinstance(second.exception(60), Cancelled)
