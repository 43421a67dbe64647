"""Measures how fifty plugins slow a reading.

    python benchmarks/hooks.py [--readings 2000] [--plugins 50] [--json FILE]

Starts a backend, and two monitors in one process: one without plugins, one with fifty. Each plugin
implements `monitor_query_status` and `monitor_memory_components`, and returns at once. Reads the
backend through both monitors in turn, over HTTP and by `Monitor.read()`, so that other load on the
machine affects both equally. Prints the median duration of a reading, and its mean CPU time in this
process. The exit code is 1 if the plugins make a reading over HTTP more than 5 % slower.
"""

from __future__ import annotations

import argparse
import http.client
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from monitor_plugin import Backend, Monitor, Settings, Status, hookimpl

ALLOWED_RATIO = 1.05
WARM_READINGS = 200


class Idle:
    """A plugin whose hooks return no result."""

    @hookimpl
    def monitor_query_status(self, backend: Backend, timeout_seconds: float) -> Status | None:
        """Return None, so that the monitor calls `Status` over gRPC."""
        return None

    @hookimpl
    def monitor_memory_components(self, backend: Backend, pids: Sequence[int]) -> Mapping[str, int]:
        """Return no components."""
        return {}


class Cost(NamedTuple):
    """The median duration and the mean CPU time of a reading, in microseconds."""

    median_us: float
    cpu_us: float


def measure(readers: Sequence[Callable[[], object]], readings: int) -> list[Cost]:
    """Call the readers in turn; return the cost of each."""
    seconds: list[list[float]] = [[] for _ in readers]
    cpu = [0.0 for _ in readers]
    for number in range(-WARM_READINGS, readings):
        for place, read in enumerate(readers):
            cpu_before, before = time.process_time(), time.perf_counter()
            read()
            after, cpu_after = time.perf_counter(), time.process_time()
            if number >= 0:
                seconds[place].append(after - before)
                cpu[place] += cpu_after - cpu_before
    return [
        Cost(statistics.median(each) * 1e6, spent / readings * 1e6)
        for each, spent in zip(seconds, cpu, strict=True)
    ]


def over_http(connection: http.client.HTTPConnection) -> None:
    """Request a reading over an open connection."""
    connection.request("GET", "/backend/monitor?model=m")
    answer = connection.getresponse()
    answer.read()
    assert answer.headers["X-Monitor-Source"] == "grpc"


def run(plugins: int, readings: int) -> dict[str, list[Cost]]:
    """Measure readings over HTTP and by `Monitor.read()`: without plugins, and with them."""
    settings = Settings(listen="127.0.0.1:0", sweep_interval_seconds=0, reading_max_age_seconds=0)
    command = [sys.executable, "-m", "monitor_plugin.demo.backend", "--end-with-parent"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        address = process.stdout.readline().removeprefix("serving on ").strip()
        try:
            with (
                Monitor(settings) as bare,
                Monitor(settings, [Idle() for _ in range(plugins)]) as full,
            ):
                for monitor in (bare, full):
                    monitor.hook.monitor_backend_spawned(
                        model="m", pid=process.pid, address=address
                    )
                connections = [
                    http.client.HTTPConnection(each.url.removeprefix("http://"), timeout=60)
                    for each in (bare, full)
                ]
                with closing(connections[0]), closing(connections[1]):
                    return {
                        "http": measure(
                            [lambda each=each: over_http(each) for each in connections],  # type: ignore[misc]
                            readings,
                        ),
                        "read": measure([lambda: bare.read("m"), lambda: full.read("m")], readings),
                    }
        finally:
            process.kill()


def main() -> int:
    """Measure and print; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--readings", type=int, default=2000, help="of each kind")
    parser.add_argument("--plugins", type=int, default=50)
    parser.add_argument("--json", type=Path, help="write the figures there too")
    options = parser.parse_args()
    costs = run(options.plugins, options.readings)
    for way, (bare, full) in costs.items():
        print(
            f"{way}: {bare.median_us:.0f} us without, {full.median_us:.0f} us with "
            f"{options.plugins} plugins: {full.median_us / bare.median_us - 1:+.1%}; "
            f"CPU {bare.cpu_us:.0f} us and {full.cpu_us:.0f} us"
        )
    if options.json:
        options.json.write_text(json.dumps(costs, indent=2) + "\n")
    bare, full = costs["http"]
    met = full.median_us <= ALLOWED_RATIO * bare.median_us
    print(f"with plugins at most {ALLOWED_RATIO:g} times as long: {'met' if met else 'MISSED'}")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
