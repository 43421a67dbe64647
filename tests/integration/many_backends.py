"""Registers many backends in its own process, and prints the resources that it uses, as JSON.

python many_backends.py live COUNT LIMIT  COUNT backends at the same time, with at most LIMIT
                                          descriptors
python many_backends.py turn COUNT        COUNT registrations one after the other
"""

from __future__ import annotations

import faulthandler
import gc
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import psutil

from monitor_plugin import Monitor, Settings

LIGHT_BACKEND = Path(__file__).parents[2] / "benchmarks" / "light_backend.py"
ROUNDS = 4


@contextmanager
def backends(count: int) -> Iterator[list[tuple[int, int]]]:
    """Run backends that listen at all local addresses; yield the PID and the port of each."""
    options = ["--count", str(count), "--addr", "0.0.0.0:0"]
    with subprocess.Popen(
        [sys.executable, "-S", "-E", str(LIGHT_BACKEND), *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as running:
        assert running.stdin
        assert running.stdout
        with running.stdin:
            lines = [running.stdout.readline().split() for _ in range(count)]
            yield [(int(pid), int(address.rpartition(":")[2])) for pid, address in lines]


def wait_gone(monitor: Monitor) -> None:
    """Wait until no backend is registered."""
    deadline = time.monotonic() + 60
    while monitor.backends() and time.monotonic() < deadline:
        time.sleep(0.01)


def live_at_once(monitor: Monitor, count: int) -> Counter[str]:
    """Register all backends, read each, and end them; count the sources of the readings."""
    with backends(count) as running:
        for pid, port in running:
            monitor.hook.monitor_backend_spawned(
                model=str(pid), pid=pid, address=f"127.0.0.1:{port}"
            )
        sources = Counter(monitor.read(str(pid)).source for pid, _ in running)
    wait_gone(monitor)
    return sources


def in_turn(monitor: Monitor, count: int) -> Counter[str]:
    """Register `count` times: each process ten times, at other addresses; count the sources."""
    sources: Counter[str] = Counter()
    with backends(count // 10) as running:
        for pid, port in running:
            for number in range(10):
                address = f"127.0.0.{number + 1}:{port}"
                monitor.hook.monitor_backend_spawned(model="m", pid=pid, address=address)
                if number % 5 == 0:
                    sources[monitor.read("m").source] += 1
            os.kill(pid, signal.SIGKILL)
            wait_gone(monitor)
    return sources


def count_resources(monitor: Monitor) -> dict[str, int]:
    """Count the backends, descriptors, threads and the RSS (bytes) of this process."""
    gc.collect()
    return {
        "backends": len(monitor.backends()),
        "descriptors": len(os.listdir("/proc/self/fd")),
        "threads": threading.active_count(),
        "rss": psutil.Process().memory_info().rss,
    }


def count_settled(monitor: Monitor) -> dict[str, int]:
    """Count the resources when descriptors and threads have not changed for a second."""
    counts = [count_resources(monitor)]
    while len(counts) < 10:
        time.sleep(0.1)
        now = count_resources(monitor)
        same = all(now[each] == counts[-1][each] for each in ("descriptors", "threads"))
        counts = [*counts, now] if same else [now]
    return counts[-1]


def measure(work: Callable[[Monitor], Counter[str]], warm_up: Callable[[Monitor], object]) -> None:
    """Do the work ROUNDS times; print the resources before, after each round, and after closing.

    The warm-up is gRPC's first use, in which it opens some descriptors of its own.
    """
    counts, sources = [], []
    with Monitor(Settings(listen="127.0.0.1:0", status_timeout_seconds=30.0)) as monitor:
        warm_up(monitor)
        counts.append(count_settled(monitor))
        for _ in range(ROUNDS):
            sources.append(work(monitor))
            deadline = time.monotonic() + 30  # gRPC frees a closed channel later, on its threads
            while time.monotonic() < deadline:
                now = count_resources(monitor)
                if all(now[each] <= counts[0][each] for each in ("descriptors", "threads")):
                    break
                time.sleep(0.05)
            counts.append(now)
    counts.append(count_resources(monitor))
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    print(json.dumps({"counts": counts, "sources": sources, "limit": limit}))


def main() -> None:
    """Run the command of the command line."""
    command, count = sys.argv[1], int(sys.argv[2])
    faulthandler.dump_traceback_later(280, exit=True)  # before the test's own timeout
    if command == "live":
        limit = int(sys.argv[3])
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    work = live_at_once if command == "live" else in_turn
    measure(partial(work, count=count), partial(work, count=10))


if __name__ == "__main__":
    main()
