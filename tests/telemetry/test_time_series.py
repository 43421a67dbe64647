"""Figures of the last minutes."""

from __future__ import annotations

from monitor_plugin import Backend, Memory
from monitor_plugin.domain.models import Observation, TreeUsage
from monitor_plugin.telemetry.time_series import TimeSeries

A, B = Backend("a", 7, "unix:/a", 1.0), Backend("b", 8, "unix:/b", 1.0)


def seen(backend: Backend, total: int | None, percent: float | None) -> Observation:
    memory = None if total is None else Memory(total)
    return Observation(
        backend=backend, memory=memory, tree=TreeUsage(processes=1, cpu_percent=percent)
    )


def test_the_last_minutes_are_kept() -> None:
    """As many points as fit into 15 minutes; what was not known is None, and never 0."""
    history = TimeSeries(300.0)
    for number in range(4):
        found = [seen(A, 1 << 30, 100.0 * number), seen(B, None, None)][: 2 if number else 1]
        history.add(float(number), [*found, Observation(backend=A)][:2] if number else found)
    times, series = history.read()
    assert times == [1.0, 2.0, 3.0]
    assert [each.backend for each in series] == [A, B]
    assert series[0].cpu_percent == [100.0, 200.0, 300.0]
    assert series[0].memory == 3 * [1 << 30]
    assert series[1].cpu_percent == series[1].memory == [None, None, None]


def test_who_came_later_has_fewer_points() -> None:
    """They are of the last sweeps; and who is gone has none."""
    history = TimeSeries(5.0)
    history.add(1.0, [seen(A, 5, 1.0)])
    history.add(2.0, [seen(A, 5, 1.0), seen(B, 6, 2.0)])
    assert [len(each.memory) for each in history.read()[1]] == [2, 1]
    assert [each.backend for each in history.read("b")[1]] == [B]
    history.add(3.0, [seen(B, 6, 2.0)])
    assert [(each.backend, each.memory) for each in history.read()[1]] == [(B, [6, 6])]
    assert history.read()[0] == [1.0, 2.0, 3.0]


def test_it_is_bounded() -> None:
    """Fast sweeps keep no more than 900 points, and a backend's take 8 bytes each."""
    history = TimeSeries(0.001)
    for number in range(1000):
        history.add(float(number), [seen(A, 5, 1.0)])
    times, (series,) = history.read()
    assert len(times) == len(series.memory) == len(series.cpu_percent) == 900
    assert [each.itemsize for each in history._points[A]] == [4, 4]
