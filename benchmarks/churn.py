"""What backends that restart all the time cost those that ask for others."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from apart import MonitorApart
from contenders import backend
from goals import Figure, Goal
from load import by_wrk

STABLE = 4
CLIENTS = 4


def measure(restarting: int, rounds: int, seconds: float) -> list[Figure]:
    """Measure in turn with nothing restarting, and with so many restarting every second.

    And with as many that the monitor is not told of: what processes that come and go cost anyway.
    """
    calm, untold, churned = [], [], []
    with ExitStack() as stack:
        monitor = stack.enter_context(MonitorApart())
        for number in range(STABLE):
            target = stack.enter_context(backend())
            monitor.spawned(f"m{number}", target.pid, target.address)
        for _ in range(rounds):
            calm.append(by_wrk(monitor.port, CLIENTS, seconds, STABLE, "m").p99_ms)
            with churn(None, restarting):
                untold.append(by_wrk(monitor.port, CLIENTS, seconds, STABLE, "m").p99_ms)
            with churn(monitor, restarting):
                churned.append(by_wrk(monitor.port, CLIENTS, seconds, STABLE, "m").p99_ms)
    ratios = [one / two for one, two in zip(churned, calm, strict=True)]
    return [
        Figure("p99, nothing restarts", "ms", calm),
        Figure(f"p99, {restarting} restart that it does not watch", "ms", untold),
        Figure(f"p99, {restarting} backends restart every second", "ms", churned),
        Figure(f"p99 with {restarting} restarts a second of without", "x", ratios, Goal(at_most=2)),
    ]


@contextmanager
def churn(monitor: MonitorApart | None, count: int) -> Iterator[None]:
    """Restart so many backends a second, one by one; they are light, and none of them answers."""
    stop = threading.Event()
    running: list[subprocess.Popen[bytes]] = []

    def restart() -> None:
        turn, due = 0, time.monotonic()
        while not stop.is_set():
            slot = turn % count
            if turn >= count:
                running[slot].kill()
                code = running[slot].wait()
                if monitor:
                    monitor.exited(f"c{slot}", running[slot].pid, code)
                running[slot] = subprocess.Popen(["/bin/sleep", "1000"])
            else:
                running.append(subprocess.Popen(["/bin/sleep", "1000"]))
            if monitor:  # no server is there: a port that is never given to one
                monitor.spawned(f"c{slot}", running[slot].pid, f"127.0.0.1:{20000 + slot}")
            turn, due = turn + 1, due + 1 / count
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
