from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from monitor_plugin.concurrency.single_flight import SingleFlight

from ..support import eventually


class Gate:
    """A computation that waits to be opened, and counts."""

    def __init__(self, result: Callable[[int], int] = lambda count: count) -> None:
        self._result = result
        self._lock = threading.Lock()
        self.open = threading.Event()
        self.calls = 0
        self.at_once = 0
        self.most_at_once = 0

    def __call__(self) -> int:
        with self._lock:
            self.calls += 1
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
            count = self.calls
        try:
            assert self.open.wait(30)
            return self._result(count)
        finally:
            with self._lock:
                self.at_once -= 1


def test_a_young_value_is_handed_out_again() -> None:
    """Within its age a value is computed once."""
    shared = SingleFlight(3600.0, itertools.count().__next__)
    assert [shared.get() for _ in range(5)] == [0] * 5


def test_an_old_value_is_computed_anew() -> None:
    """A value that is too old is not handed out."""
    shared = SingleFlight(0.0, itertools.count().__next__)
    values = [shared.get()]
    eventually(lambda: shared.get() > values[0])


def test_nothing_is_computed_before_it_is_asked_for() -> None:
    """Making it computes nothing."""
    gate = Gate()
    SingleFlight(1.0, gate)
    assert gate.calls == 0


def _waiting(shared: SingleFlight[int]) -> int:
    """Count the threads that wait for the value that is being computed."""
    future: Any = shared._future
    return len(future._condition._waiters)


def test_all_who_ask_meanwhile_share_one_computation() -> None:
    """Who asks while a value is computed waits for it, even when it is too old by then."""
    gate = Gate()
    shared = SingleFlight(0.0, gate)
    with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(shared.get)]
        eventually(lambda: gate.calls)
        futures += [pool.submit(shared.get) for _ in range(7)]
        eventually(lambda: _waiting(shared) == 7)
        gate.open.set()
        assert [future.result(timeout=60) for future in futures] == [1] * 8


def test_there_is_one_computation_at_a_time() -> None:
    """Many threads that ask again and again, for values that are at once too old, never overlap."""
    gate = Gate()
    gate.open.set()
    shared = SingleFlight(0.0, gate)
    with ThreadPoolExecutor(8) as pool:
        values = list(pool.map(lambda _: shared.get(), range(400)))
    assert gate.most_at_once == 1
    assert set(values) == set(range(1, gate.calls + 1))


def test_the_lock_is_free_while_it_is_computed() -> None:
    """The computation runs outside the lock, so who asks waits for the value, not for a lock."""
    shared: SingleFlight[bool]

    def compute() -> bool:
        # Another thread can take and give back the lock while this runs.
        free = shared._lock.acquire(timeout=60)
        shared._lock.release()
        return free

    shared = SingleFlight(3600.0, compute)
    assert shared.get()


def test_a_failure_reaches_all_who_waited_and_is_not_kept() -> None:
    """What the computation raises reaches everyone who waited; the next call computes again."""

    def fail_first(count: int) -> int:
        if count == 1:
            raise RuntimeError("no figure")
        return count

    gate = Gate(fail_first)
    shared = SingleFlight(3600.0, gate)
    failures = []

    def ask() -> None:
        try:
            shared.get()
        except RuntimeError as error:
            failures.append(str(error))

    first = threading.Thread(target=ask)
    first.start()
    eventually(lambda: gate.calls)
    others = [threading.Thread(target=ask) for _ in range(3)]
    for thread in others:
        thread.start()
    eventually(lambda: _waiting(shared) == 3)
    gate.open.set()
    for thread in [first, *others]:
        thread.join(30)
    assert failures == ["no figure"] * 4
    assert shared.get() == 2
    assert shared.get() == 2


def test_a_failure_of_any_kind_leaves_no_one_waiting() -> None:
    """Even an exit raised by the computation is passed on, and the next call computes."""

    def leave() -> int:
        raise SystemExit(1)

    shared = SingleFlight(3600.0, leave)
    for _ in range(2):
        with pytest.raises(SystemExit):
            shared.get()
