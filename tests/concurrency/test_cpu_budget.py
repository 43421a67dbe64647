"""A thread's CPU time stays below a share of one core."""

from __future__ import annotations

import contextlib
import random

import pytest

from monitor_plugin.concurrency.cpu_budget import CpuBudget


class Clocks:
    """Both clocks of a thread, which a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.cpu = 50.0

    def budget(self, share: float, max_credit_seconds: float) -> CpuBudget:
        return CpuBudget(share, max_credit_seconds, lambda: self.now, lambda: self.cpu)

    def work(self, seconds: float, cpu_share: float = 1.0) -> None:
        """Let a piece of work take so long."""
        self.now += seconds
        self.cpu += seconds * cpu_share


def test_long_work_is_followed_by_a_long_pause() -> None:
    """After 1.7 s of work, the next work may begin 85 s after the beginning of the first."""
    clocks = Clocks()
    budget = clocks.budget(0.02, 0.0)
    assert budget.wait_seconds() == 0
    with budget.spend():
        clocks.work(1.7)
    assert budget.wait_seconds() == pytest.approx(85 - 1.7)
    clocks.now += 80
    assert budget.wait_seconds() == pytest.approx(5 - 1.7)
    clocks.now += 5
    assert budget.wait_seconds() == 0


@pytest.mark.parametrize("costs", [(0.0001, 0.001), (0.01, 0.03), (0.5, 5.0), (0.0001, 5.0)])
def test_share_holds_over_an_hour(costs: tuple[float, float]) -> None:
    """The share does not depend on the cost of the work, or on its waits."""
    clocks = Clocks()
    budget = clocks.budget(0.02, 0.1)
    chance = random.Random(1)
    began, used_before = clocks.now, clocks.cpu
    while clocks.now - began < 3600:
        if seconds := budget.wait_seconds():
            clocks.now += max(seconds, 1e-6)  # a shorter time would not change the clock
            continue
        used, elapsed = clocks.cpu - used_before, clocks.now - began
        assert used <= 0.02 * elapsed + 0.1 + 1e-6
        with budget.spend():
            clocks.work(chance.uniform(*costs), chance.choice([0.1, 1.0]))


def test_credit_of_a_long_pause_is_limited() -> None:
    """After a night without work the thread may not take a core for minutes."""
    clocks = Clocks()
    budget = clocks.budget(0.02, 0.1)
    clocks.now += 36_000
    assert budget.wait_seconds() == 0
    with budget.spend():
        clocks.work(0.3)
    assert budget.wait_seconds() == pytest.approx(0.2 / 0.02 - 0.3)


def test_failed_work_counts_as_well() -> None:
    """Its CPU time was used."""
    clocks = Clocks()
    budget = clocks.budget(0.02, 0.0)
    with contextlib.suppress(RuntimeError), budget.spend():
        clocks.work(1.0)
        raise RuntimeError
    assert budget.wait_seconds() == pytest.approx(50 - 1.0)


def test_work_of_other_threads_does_not_count() -> None:
    """By default the CPU time is that of the thread, and time passes by itself."""
    budget = CpuBudget(0.5, 0.0)
    with budget.spend():
        pass
    assert budget.wait_seconds() < 1
