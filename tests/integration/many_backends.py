"""Registers many backends in a process of its own, and prints the resources that are left, as JSON.

python many_backends.py serve COUNT       a backend's server, at COUNT ports, which it prints
python many_backends.py live LIMIT        reads the ports; that many backends live at once
python many_backends.py turn COUNT        reads the ports; that many registrations in turn
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
    """Answer `Status` with READY at many ports."""
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
    """Register all backends, read each, end all; count the sources of the readings."""
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
    """Register backends in turn: COUNT/10 processes, each of which is updated nine times."""
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


def left(monitor: Monitor) -> dict[str, int]:
    """Count the resources in use."""
    gc.collect()
    return {
        "backends": len(monitor.backends()),
        "descriptors": len(os.listdir("/proc/self/fd")),
        "threads": threading.active_count(),
        "rss": psutil.Process().memory_info().rss,
    }


def settled(monitor: Monitor) -> dict[str, int]:
    """Count the resources in use, when they have not changed for a second."""
    looks = [left(monitor)]
    while len(looks) < 10:
        time.sleep(0.1)
        now = left(monitor)
        same = all(now[each] == looks[-1][each] for each in ("descriptors", "threads"))
        looks = [*looks, now] if same else [now]
    return looks[-1]


def measure(work: Callable[[Monitor], Counter[str]], warm_up: Callable[[Monitor], object]) -> None:
    """Run `work` ROUNDS times; print the resources before, after each, and after closing.

    The warm-up is for gRPC, which opens some descriptors at its first use.
    """
    held, sources = [], []
    with Monitor(Settings(listen="127.0.0.1:0", status_timeout_seconds=30.0)) as monitor:
        warm_up(monitor)
        held.append(settled(monitor))
        for _ in range(ROUNDS):
            sources.append(work(monitor))
            deadline = time.monotonic() + 30  # gRPC releases a closed channel some time later
            while time.monotonic() < deadline:
                now = left(monitor)
                if all(now[each] <= held[0][each] for each in ("descriptors", "threads")):
                    break
                time.sleep(0.05)
            held.append(now)
    held.append(left(monitor))
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    print(json.dumps({"held": held, "sources": sources, "limit": limit}))


def main() -> None:
    """Run the command of the command line."""
    what, number = sys.argv[1], int(sys.argv[2])
    faulthandler.dump_traceback_later(280, exit=True)  # before the test gives up
    if what == "serve":
        serve(number)
        return
    ports = sys.stdin.readline().split()
    if what == "live":
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
