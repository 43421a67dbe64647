from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from monitor_plugin.concurrency.single_flight import SingleFlight

from ..support import eventually


class Gate:
    """A computation that waits until the event `open` is set, and counts its calls."""

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


def test_single_flight_caches_a_value() -> None:
    """Within the maximum age a value is computed once."""
    single_flight = SingleFlight(3600.0, itertools.count().__next__)
    assert [single_flight.get() for _ in range(5)] == [0] * 5


def test_single_flight_recomputes_an_old_value() -> None:
    """A value that is too old is not returned."""
    single_flight = SingleFlight(0.0, itertools.count().__next__)
    values = [single_flight.get()]
    eventually(lambda: single_flight.get() > values[0])


def test_single_flight_computes_nothing_before_the_first_get() -> None:
    """The constructor computes nothing."""
    gate = Gate()
    SingleFlight(1.0, gate)
    assert gate.calls == 0


def _waiting(single_flight: SingleFlight[int]) -> int:
    """Count the threads that wait for the computation in progress."""
    future: Any = single_flight._future
    return len(future._condition._waiters)


def test_callers_during_a_computation_share_it() -> None:
    """Callers wait for a computation in progress, even if its value is then too old."""
    gate = Gate()
    single_flight = SingleFlight(0.0, gate)
    with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(single_flight.get)]
        eventually(lambda: gate.calls)
        futures += [pool.submit(single_flight.get) for _ in range(7)]
        eventually(lambda: _waiting(single_flight) == 7)
        gate.open.set()
        assert [future.result(timeout=60) for future in futures] == [1] * 8


def test_single_flight_has_one_computation_at_a_time() -> None:
    """The computations of many threads never overlap, with a maximum age of 0."""
    gate = Gate()
    gate.open.set()
    single_flight = SingleFlight(0.0, gate)
    with ThreadPoolExecutor(8) as pool:
        values = list(pool.map(lambda _: single_flight.get(), range(400)))
    assert gate.most_at_once == 1
    assert set(values) == set(range(1, gate.calls + 1))


def test_single_flight_computes_without_its_lock() -> None:
    """The computation runs without the lock: callers wait for the value, not for the lock."""
    single_flight: SingleFlight[bool]

    def compute() -> bool:
        # Another thread can take and give back the lock while this runs.
        free = single_flight._lock.acquire(timeout=60)
        single_flight._lock.release()
        return free

    single_flight = SingleFlight(3600.0, compute)
    assert single_flight.get()


def test_value_since_a_time_is_of_no_computation_that_began_before() -> None:
    """A later computation serves all callers that ask for an earlier time."""
    gate = Gate()
    single_flight = SingleFlight(3600.0, gate)
    with ThreadPoolExecutor() as pool:
        first = pool.submit(single_flight.get)
        eventually(lambda: gate.calls == 1)
        asked_at = time.monotonic()
        others = [pool.submit(single_flight.get_since, asked_at) for _ in range(3)]
        gate.open.set()
        assert first.result(30) == 1
        assert [each.result(30) for each in others] == [2, 2, 2]
    assert single_flight.get_since(asked_at) == 2


def test_failed_computation_reaches_all_callers_and_is_not_cached() -> None:
    """The exception is raised in all callers that waited; the next call computes again."""

    def fail_first(count: int) -> int:
        if count == 1:
            raise RuntimeError("no figure")
        return count

    gate = Gate(fail_first)
    single_flight = SingleFlight(3600.0, gate)
    failures = []

    def ask() -> None:
        try:
            single_flight.get()
        except RuntimeError as error:
            failures.append(str(error))

    first = threading.Thread(target=ask)
    first.start()
    eventually(lambda: gate.calls)
    others = [threading.Thread(target=ask) for _ in range(3)]
    for thread in others:
        thread.start()
    eventually(lambda: _waiting(single_flight) == 3)
    gate.open.set()
    for thread in [first, *others]:
        thread.join(30)
    assert failures == ["no figure"] * 4
    assert single_flight.get() == 2
    assert single_flight.get() == 2


def test_failed_computation_of_any_kind_leaves_no_caller_waiting() -> None:
    """A SystemExit of the computation reaches its callers, and the next call computes again."""

    def leave() -> int:
        raise SystemExit(1)

    single_flight = SingleFlight(3600.0, leave)
    for _ in range(2):
        with pytest.raises(SystemExit):
            single_flight.get()
