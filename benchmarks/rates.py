"""Measures answers a second and their latency: the monitor's and those of other programs."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from contenders import backend, bare_status, circus, naive, supervisord
from goals import Figure, Goal
from load import Load, by_calls, by_wrk
from monitor_process import MonitorProcess

MANY = 16
Contender = Callable[[int, float], Load]


def measure(rounds: int, seconds: float, brief: bool = False) -> list[Figure]:
    """Start everything, and measure each contender once in each round.

    Args:
        rounds: number of measured rounds; a round to warm up comes before them.
        seconds: duration of each measurement.
        brief: measure the first scene alone, without a round to warm up.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        scenes = _scenes(stack, folder, 2 if brief else MANY)
        if brief:
            scenes = dict([*scenes.items()][:1])
        results: dict[tuple[str, str], list[Load]] = {}
        for number in range(brief, rounds + 1):
            for scene, (clients, contenders) in scenes.items():
                for name, measure_load in contenders.items():
                    load = measure_load(clients, seconds if number else min(seconds, 1.0))
                    if number:  # round 0 warms up
                        results.setdefault((scene, name), []).append(load)
    return [*_rates(results), *([] if brief else _goals(results))]


def _scenes(
    stack: ExitStack, folder: Path, many_backends: int
) -> dict[str, tuple[int, dict[str, Contender]]]:
    """Start everything; return the number of clients and the contenders of each scene."""
    enter = stack.enter_context
    with_status = [enter(backend()) for _ in range(many_backends)]
    without_status = enter(backend("--no-status"))
    monitor = enter(MonitorProcess(sweep_interval_seconds=0))
    for number, target in enumerate(with_status):
        monitor.spawned(f"m{number}", target.pid, target.address)
    monitor.spawned("s0", without_status.pid, without_status.address)

    def http(port: int, count: int, prefix: str = "m") -> Contender:
        return lambda clients, seconds: by_wrk(port, clients, seconds, count, prefix)

    floor = enter(naive("floor", [without_status], "s"))
    kept = enter(naive("kept", with_status, "m"))
    channel_each = enter(naive("each", with_status, "m"))
    bare = enter(bare_status(with_status[0]))
    one: dict[str, Contender] = {
        "the floor": http(floor, 1, "s"),
        "monitor-plugin": http(monitor.port, 1),
        "Status, kept channel": http(kept, 1),
        "Status, a channel each": http(channel_each, 1),
        "supervisord XML-RPC": http(enter(supervisord(folder)), 0),
        "circus stats": partial(by_calls, enter(circus(folder))),
    }
    sample: dict[str, Contender] = {
        "the floor": http(floor, 1, "s"),
        "monitor-plugin": http(monitor.port, 1, "s"),
        "psutil per request": http(enter(naive("psutil", [without_status], "s")), 1, "s"),
    }
    many: dict[str, Contender] = {
        "monitor-plugin": http(monitor.port, MANY),
        "Status, kept channel": http(kept, MANY),
        "Status, a channel each": http(channel_each, MANY),
    }
    return {
        "gRPC, 1 client": (1, {**one, "bare Status call": partial(by_calls, bare)}),
        "gRPC, 16 clients": (16, one),
        "sample, 1 client": (1, sample),
        "sample, 16 clients": (16, sample),
        "16 backends, 16 clients": (16, many),
    }


def _rates(results: dict[tuple[str, str], list[Load]]) -> list[Figure]:
    return [
        Figure(f"{scene}: {name}", "req/s", [each.rate for each in loads])
        for (scene, name), loads in results.items()
    ]


def _goals(results: dict[tuple[str, str], list[Load]]) -> list[Figure]:
    def ratio(scene: str, other: str, goal: float) -> Figure:
        ours, theirs = results[scene, "monitor-plugin"], results[scene, other]
        ratios = [one.rate / two.rate for one, two in zip(ours, theirs, strict=True)]
        return Figure(f"{scene}: of {other}", "x", ratios, Goal(at_least=goal))

    scene = "gRPC, 1 client"
    three = ("monitor-plugin", "the floor", "bare Status call")
    medians = zip(*([each.p50_ms for each in results[scene, name]] for name in three), strict=True)
    return [
        ratio("gRPC, 16 clients", "the floor", 0.85),
        ratio("16 backends, 16 clients", "Status, kept channel", 1.5),
        Figure(
            f"{scene}: p50 of (floor + bare call)",
            "x",
            [ours / (floor + bare) for ours, floor, bare in medians],
            Goal(at_most=1.15),
        ),
        ratio("sample, 1 client", "the floor", 0.85),
        ratio("sample, 16 clients", "the floor", 0.85),
    ]
