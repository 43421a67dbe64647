"""CPU and memory over the last minutes."""

from __future__ import annotations

from monitor_plugin import Backend, Memory
from monitor_plugin.domain.models import Observation, TreeUsage
from monitor_plugin.telemetry.time_series import TimeSeries

A, B = Backend("a", 7, "unix:/a", 1.0), Backend("b", 8, "unix:/b", 1.0)


def observation(backend: Backend, total: int | None, percent: float | None) -> Observation:
    memory = None if total is None else Memory(total)
    return Observation(
        backend=backend, memory=memory, tree=TreeUsage(processes=1, cpu_percent=percent)
    )


def test_time_series_has_the_last_15_minutes() -> None:
    """It has as many points as fit into 15 minutes; an unknown value is None, never 0."""
    time_series = TimeSeries(300.0)
    for number in range(4):
        found = [observation(A, 1 << 30, 100.0 * number), observation(B, None, None)][
            : 2 if number else 1
        ]
        time_series.add(float(number), [*found, Observation(backend=A)][:2] if number else found)
    times, series = time_series.read()
    assert times == [1.0, 2.0, 3.0]
    assert [each.backend for each in series] == [A, B]
    assert series[0].cpu_percent == [100.0, 200.0, 300.0]
    assert series[0].memory == 3 * [1 << 30]
    assert series[1].cpu_percent == series[1].memory == [None, None, None]


def test_a_later_backend_has_fewer_points() -> None:
    """Its points are those of the last sweeps. A backend that is gone has none."""
    time_series = TimeSeries(5.0)
    time_series.add(1.0, [observation(A, 5, 1.0)])
    time_series.add(2.0, [observation(A, 5, 1.0), observation(B, 6, 2.0)])
    assert [len(each.memory) for each in time_series.read()[1]] == [2, 1]
    assert [each.backend for each in time_series.read("b")[1]] == [B]
    time_series.add(3.0, [observation(B, 6, 2.0)])
    assert [(each.backend, each.memory) for each in time_series.read()[1]] == [(B, [6, 6])]
    assert time_series.read()[0] == [1.0, 2.0, 3.0]


def test_time_series_is_bounded() -> None:
    """There are at most 900 points, also of fast sweeps; each takes 8 bytes."""
    time_series = TimeSeries(0.001)
    for number in range(1000):
        time_series.add(float(number), [observation(A, 5, 1.0)])
    times, (series,) = time_series.read()
    assert len(times) == len(series.memory) == len(series.cpu_percent) == 900
    assert [each.itemsize for each in time_series._points[A]] == [4, 4]
