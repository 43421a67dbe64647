"""Measures costs without client requests: memory, registration, sweeps and the import."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from http.client import HTTPConnection

import psutil
from goals import Figure, Goal
from listing import backends
from monitor_process import MonitorProcess

_IMPORT = """
import time, msgspec, pluggy
began = time.perf_counter()
import monitor_plugin
print(1000 * (time.perf_counter() - began))
"""


def measure(count: int, swept: int, seconds: float) -> list[Figure]:
    """Measure all costs.

    Args:
        count: number of backends for registration and memory.
        swept: number of backends for sweeps.
        seconds: for how long the CPU time of sweeps is measured.
    """
    return [*_measure_registration(count), *_measure_sweeps(swept, seconds), _measure_import()]


def _get(port: int, path: str) -> bytes:
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("GET", path)
        return connection.getresponse().read()
    finally:
        connection.close()


def _measure_registration(count: int) -> list[Figure]:
    """Measure the time of registration, and the memory of a backend before and after a reading."""
    with backends(count) as running, MonitorProcess(sweep_interval_seconds=0) as monitor:
        before = monitor.count_resources()["rss"]
        took = []
        for pid, address in running:
            began = time.perf_counter()
            monitor.spawned(f"m{pid}", pid, address)
            took.append(time.perf_counter() - began)
        registered = monitor.count_resources()["rss"]
        _get(monitor.port, "/backends")
        connected = monitor.count_resources()["rss"]
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
            [(connected - before) / 1024 / count],
            Goal(at_most=100),
        ),
    ]


def _measure_sweeps(count: int, seconds: float) -> list[Figure]:
    """Measure what sweeps every 5 s take, in percent of a core: of the monitor, of each backend."""
    with backends(count) as running, MonitorProcess() as monitor:
        for pid, address in running:
            monitor.spawned(f"m{pid}", pid, address)
        _get(monitor.port, "/backends")  # opens the channels
        processes = [psutil.Process(pid) for pid in (monitor.pid, *(pid for pid, _ in running))]
        before = [_cpu_seconds(each) for each in processes]
        time.sleep(seconds)
        used = [_cpu_seconds(each) - was for each, was in zip(processes, before, strict=True)]
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


def _measure_import() -> Figure:
    took = [float(subprocess.check_output([sys.executable, "-c", _IMPORT])) for _ in range(5)]
    return Figure("import of monitor_plugin", "ms", took, Goal(at_most=60))
