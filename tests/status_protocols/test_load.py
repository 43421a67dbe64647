"""The figures of servers are checked, and the state follows from them."""

from __future__ import annotations

import math

import pytest

from monitor_plugin.domain.models import State
from monitor_plugin.status_protocols.load import Load, Rate, mean_percent, total
from monitor_plugin.status_protocols.protocol import BusyWhen

from .support import Clock

INVALID: list[object] = [None, True, -1, -0.5, math.nan, math.inf, 10**30, "1", [1], {}]


@pytest.mark.parametrize(
    ("busy_when", "load", "state"),
    [
        ("any", Load(), State.READY),
        ("any", Load(0, 0), State.READY),
        ("any", Load(1, 0), State.BUSY),
        ("any", Load(0, 1), State.BUSY),
        ("any", Load(None, 1), State.BUSY),
        ("full", Load(), State.READY),
        ("full", Load(3, 0), State.READY),
        ("full", Load(4, 0), State.BUSY),
        ("full", Load(3, 1), State.BUSY),
    ],
)
def test_state_follows_from_the_load(busy_when: BusyWhen, load: Load, state: State) -> None:
    assert load.status(busy_when, 4).state == state


def test_server_of_unknown_capacity_is_full_when_requests_wait() -> None:
    assert Load(100, 0).status("full").state == State.READY
    assert Load(100, 1).status("full").state == State.BUSY


@pytest.mark.parametrize("invalid", INVALID)
def test_sum_with_an_invalid_figure_is_unknown(invalid: object) -> None:
    assert total([1, invalid]) is None
    assert mean_percent([0.5, invalid]) is None


def test_sums_and_means_of_figures() -> None:
    assert (total([]), total([1, 2.5]), total([2**63, 2**63])) == (None, 3.5, None)
    assert mean_percent([]) is None
    assert (mean_percent([0, 0.5]), mean_percent([1.5])) == (25, None)


def test_rate_of_a_counter(clock: Clock) -> None:
    """A reset, a long pause and an unknown counter give no rate; a short pause the last one."""
    rate = Rate()

    def after(seconds: float, counter: float | None) -> float | None:
        clock.now += seconds
        return rate.update(counter)

    assert after(0, 100) is None
    assert after(0.1, 105) is None
    assert after(1.9, 200) == 50
    assert after(0.1, 205) == 50
    assert after(0.9, 200) == 0
    assert after(1, 10) is None
    assert after(1, 30) == 20
    assert after(61, 100) is None
    assert after(1, 101) == 1
    assert after(1, None) is None
    assert after(1, 103) is None
