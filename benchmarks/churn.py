"""Measures how restarts of some backends slow the readings of others."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from contenders import backend
from goals import Figure, Goal
from load import by_wrk
from monitor_process import MonitorProcess

STABLE = 4
CLIENTS = 4


def measure(restarting: int, rounds: int, seconds: float) -> list[Figure]:
    """Measure the 99th percentile without restarts, and with `restarting` restarts every second.

    Also measures with as many processes that the monitor does not know, because processes that
    start and end cost time in any case.
    """
    calm, unknown, churned = [], [], []
    with ExitStack() as stack:
        monitor = stack.enter_context(MonitorProcess())
        for number in range(STABLE):
            target = stack.enter_context(backend())
            monitor.spawned(f"m{number}", target.pid, target.address)
        for _ in range(rounds):
            calm.append(by_wrk(monitor.port, CLIENTS, seconds, STABLE, "m").p99_ms)
            with churn(None, restarting):
                unknown.append(by_wrk(monitor.port, CLIENTS, seconds, STABLE, "m").p99_ms)
            with churn(monitor, restarting):
                churned.append(by_wrk(monitor.port, CLIENTS, seconds, STABLE, "m").p99_ms)
    ratios = [one / two for one, two in zip(churned, calm, strict=True)]
    return [
        Figure("p99, nothing restarts", "ms", calm),
        Figure(f"p99, {restarting} restart that it does not watch", "ms", unknown),
        Figure(f"p99, {restarting} backends restart every second", "ms", churned),
        Figure(f"p99 with {restarting} restarts a second of without", "x", ratios, Goal(at_most=2)),
    ]


@contextmanager
def churn(monitor: MonitorProcess | None, count: int) -> Iterator[None]:
    """Restart `count` light processes each second, one after the other; none of them serves gRPC.

    Args:
        monitor: registers each process as a backend, unless None.
        count: number of processes, and of restarts each second.
    """
    stop = threading.Event()
    running: list[subprocess.Popen[bytes]] = []

    def restart() -> None:
        number, due = 0, time.monotonic()
        while not stop.is_set():
            slot = number % count
            if number >= count:
                running[slot].kill()
                code = running[slot].wait()
                if monitor:
                    monitor.exited(f"c{slot}", running[slot].pid, code)
                running[slot] = subprocess.Popen(["/bin/sleep", "1000"])
            else:
                running.append(subprocess.Popen(["/bin/sleep", "1000"]))
            if monitor:  # nothing listens at these ports, and the system assigns none of them
                monitor.spawned(f"c{slot}", running[slot].pid, f"127.0.0.1:{20000 + slot}")
            number, due = number + 1, due + 1 / count
            stop.wait(max(0.0, due - time.monotonic()))

    thread = threading.Thread(target=restart)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        for process in running:
            process.kill()
            process.wait()
