"""Registers many backends in its own process, and prints the resources that it uses, as JSON.

python many_backends.py serve COUNT       serves gRPC at COUNT ports, and prints them
python many_backends.py live LIMIT        a backend for each port at the same time, with at most
                                          LIMIT descriptors
python many_backends.py turn COUNT        COUNT registrations one after the other

The last two read the ports from standard input.
"""

from __future__ import annotations

import faulthandler
import gc
import json
import os
import resource
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import grpc
import psutil

from monitor_plugin import Monitor, Settings
from monitor_plugin.rpc.protocol import SERVICE

ROUNDS = 4


def serve(count: int) -> None:
    """Serve `Status` with READY at many ports, and print them."""
    handler = grpc.unary_unary_rpc_method_handler(lambda request, context: b"\x08\x02")
    server = grpc.server(ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(SERVICE, {"Status": handler}),)
    )
    ports = [server.add_insecure_port("127.0.0.1:0") for _ in range(count)]
    server.start()
    print(*ports, flush=True)
    sys.stdin.read()
    server.stop(None)


def wait_gone(monitor: Monitor) -> None:
    """Wait until no backend is registered."""
    deadline = time.monotonic() + 60
    while monitor.backends() and time.monotonic() < deadline:
        time.sleep(0.01)


def live_at_once(monitor: Monitor, ports: Sequence[str]) -> Counter[str]:
    """Register all backends, read each, and end them; count the sources of the readings."""
    processes = [subprocess.Popen(["sleep", "1000"]) for _ in ports]
    try:
        for port, process in zip(ports, processes, strict=True):
            monitor.hook.monitor_backend_spawned(
                model=port, pid=process.pid, address=f"127.0.0.1:{port}"
            )
        return Counter(monitor.read(port).source for port in ports)
    finally:
        for process in processes:
            process.kill()
        wait_gone(monitor)
        for process in processes:
            process.wait()


def in_turn(monitor: Monitor, ports: Sequence[str], count: int) -> Counter[str]:
    """Register `count` times: each process ten times, at other addresses; count the sources."""
    sources: Counter[str] = Counter()
    for number in range(count // 10):
        process = subprocess.Popen(["sleep", "1000"])
        for update in range(10):
            address = f"127.0.0.1:{ports[(number + update) % len(ports)]}"
            monitor.hook.monitor_backend_spawned(model="m", pid=process.pid, address=address)
            if update % 5 == 0:
                sources[monitor.read("m").source] += 1
        process.kill()
        wait_gone(monitor)
        process.wait()
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
    command, number = sys.argv[1], int(sys.argv[2])
    faulthandler.dump_traceback_later(280, exit=True)  # before the test's own timeout
    if command == "serve":
        serve(number)
        return
    ports = sys.stdin.readline().split()
    if command == "live":
        resource.setrlimit(resource.RLIMIT_NOFILE, (number, number))
        work, warm_up = partial(live_at_once, ports=ports), partial(live_at_once, ports=ports[:1])
    else:
        work, warm_up = (
            partial(in_turn, ports=ports, count=number),
            partial(in_turn, ports=ports, count=10),
        )
    measure(work, warm_up)


if __name__ == "__main__":
    main()
