"""How many answers a second, and how soon, side by side: the monitor, the floor, naive builds."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from apart import MonitorApart
from contenders import backend, bare_status, circus, naive, supervisord
from goals import Figure, Goal
from load import Load, by_calls, by_wrk

MANY = 16
Contender = Callable[[int, float], Load]


def measure(rounds: int, seconds: float, brief: bool = False) -> list[Figure]:
    """Start everything, let each have its turn in each round, and put it side by side.

    Args:
        rounds: how often.
        seconds: of each turn.
        brief: the first scene alone, and without a round to warm up.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        scenes = _scenes(stack, folder, 2 if brief else MANY)
        if brief:
            scenes = dict([*scenes.items()][:1])
        results: dict[tuple[str, str], list[Load]] = {}
        for turn in range(brief, rounds + 1):
            for scene, (clients, contenders) in scenes.items():
                for name, ask in contenders.items():
                    load = ask(clients, seconds if turn else min(seconds, 1.0))
                    if turn:  # after one to warm up
                        results.setdefault((scene, name), []).append(load)
    return [*_plain(results), *([] if brief else _judged(results))]


def _scenes(
    stack: ExitStack, folder: Path, many_backends: int
) -> dict[str, tuple[int, dict[str, Contender]]]:
    """Start all, and give who competes in each scene, and with how many clients."""
    enter = stack.enter_context
    spoken = [enter(backend()) for _ in range(many_backends)]
    silent = enter(backend("--no-status"))
    monitor = enter(MonitorApart(sweep_interval_seconds=0))
    for number, target in enumerate(spoken):
        monitor.spawned(f"m{number}", target.pid, target.address)
    monitor.spawned("s0", silent.pid, silent.address)

    def http(port: int, count: int, prefix: str = "m") -> Contender:
        return lambda clients, seconds: by_wrk(port, clients, seconds, count, prefix)

    floor = enter(naive("floor", [silent], "s"))
    kept = enter(naive("kept", spoken, "m"))
    channel_each = enter(naive("each", spoken, "m"))
    bare = enter(bare_status(spoken[0]))
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
        "psutil per request": http(enter(naive("psutil", [silent], "s")), 1, "s"),
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


def _plain(results: dict[tuple[str, str], list[Load]]) -> list[Figure]:
    return [
        Figure(f"{scene}: {name}", "req/s", [each.rate for each in loads])
        for (scene, name), loads in results.items()
    ]


def _judged(results: dict[tuple[str, str], list[Load]]) -> list[Figure]:
    def rates(scene: str, other: str, goal: float) -> Figure:
        ours, theirs = results[scene, "monitor-plugin"], results[scene, other]
        ratios = [one.rate / two.rate for one, two in zip(ours, theirs, strict=True)]
        return Figure(f"{scene}: of {other}", "x", ratios, Goal(at_least=goal))

    scene = "gRPC, 1 client"
    three = ("monitor-plugin", "the floor", "bare Status call")
    halves = zip(*([each.p50_ms for each in results[scene, name]] for name in three), strict=True)
    return [
        rates("gRPC, 16 clients", "the floor", 0.85),
        rates("16 backends, 16 clients", "Status, kept channel", 1.5),
        Figure(
            f"{scene}: p50 of (floor + bare call)",
            "x",
            [ours / (floor + bare) for ours, floor, bare in halves],
            Goal(at_most=1.15),
        ),
        rates("sample, 1 client", "the floor", 0.85),
        rates("sample, 16 clients", "the floor", 0.85),
    ]
