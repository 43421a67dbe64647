"""What the monitor costs where nobody asks: memory, registering, sweeps, its import."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from http.client import HTTPConnection

import psutil
from apart import MonitorApart
from goals import Figure, Goal
from listing import backends

_IMPORT = """
import time, msgspec, pluggy
began = time.perf_counter()
import monitor_plugin
print(1000 * (time.perf_counter() - began))
"""


def measure(count: int, swept: int, seconds: float) -> list[Figure]:
    """Measure.

    Args:
        count: how many backends are registered.
        swept: how many of them stay for the sweeps.
        seconds: for how long sweeps are watched.
    """
    return [*_holding(count), *_sweeping(swept, seconds), _importing()]


def _get(port: int, path: str) -> bytes:
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("GET", path)
        return connection.getresponse().read()
    finally:
        connection.close()


def _holding(count: int) -> list[Figure]:
    """What registering takes, and what each backend holds in memory, asked or not."""
    with backends(count) as running, MonitorApart(sweep_interval_seconds=0) as monitor:
        before = monitor.left()["rss"]
        took = []
        for pid, address in running:
            began = time.perf_counter()
            monitor.spawned(f"m{pid}", pid, address)
            took.append(time.perf_counter() - began)
        registered = monitor.left()["rss"]
        _get(monitor.port, "/backends")
        asked = monitor.left()["rss"]
    part = max(1, count // 5)
    slower = statistics.median(took[-part:]) / statistics.median(took[:part])
    last = f"registering {count} backends: the last fifth of the first"
    return [
        Figure("registering a backend", "ms", [1000 * each for each in took]),
        Figure(last, "x", [slower], Goal(at_most=1.5)),
        Figure(
            "memory of a backend without channel",
            "KiB",
            [(registered - before) / 1024 / count],
            Goal(at_most=4),
        ),
        Figure(
            "memory of a backend with a channel",
            "KiB",
            [(asked - before) / 1024 / count],
            Goal(at_most=100),
        ),
    ]


def _sweeping(count: int, seconds: float) -> list[Figure]:
    """What sweeps every 5 s take of a core, here and from what is watched."""
    with backends(count) as running, MonitorApart() as monitor:
        for pid, address in running:
            monitor.spawned(f"m{pid}", pid, address)
        _get(monitor.port, "/backends")  # connects
        children = psutil.Process().children()
        servers = [each for each in children if "light_server" in " ".join(each.cmdline())]
        watched = [psutil.Process(monitor.pid), *servers]
        before = [_cpu_seconds(each) for each in watched]
        time.sleep(seconds)
        used = [_cpu_seconds(each) - was for each, was in zip(watched, before, strict=True)]
    return [
        Figure(
            f"sweeps of {count} backends: the monitor",
            "%",
            [100 * used[0] / seconds],
            Goal(at_most=2),
        ),
        Figure(
            f"sweeps of {count} backends: each backend",
            "%",
            [100 * sum(used[1:]) / seconds / count],
            Goal(at_most=0.1),
        ),
    ]


def _cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _importing() -> Figure:
    took = [float(subprocess.check_output([sys.executable, "-c", _IMPORT])) for _ in range(5)]
    return Figure("import of monitor_plugin", "ms", took, Goal(at_most=60))
