"""Measures how a hundred clients that follow `/events` slow readings.

    python benchmarks/listeners.py [--listeners 100] [--seconds 5] [--rounds 3]

The monitor, its backend and the listeners each run in a process of their own. Phases without and
with listeners alternate. Prints the medians of a request to `/backend/monitor` and their ratio. The
exit code is 1 if the ratio is over 1.5. Each listener uses `wait=20`, and pauses between requests
for the answer's `poll_after_seconds`.
"""

from __future__ import annotations

import argparse
import http.client
import json
import statistics
import subprocess
import sys
import threading
import time
from contextlib import closing

from monitor_process import MonitorProcess

ALLOWED_RATIO = 1.5


def follow(host: str) -> None:
    """Follow the events as the page does, until the process ends."""
    last = 0
    with closing(http.client.HTTPConnection(host, timeout=60)) as connection:
        while True:
            connection.request("GET", f"/events?after={last}&wait=20")
            answer = json.loads(connection.getresponse().read())
            last = answer["next"]
            time.sleep(answer["poll_after_seconds"])


def listen(host: str, listeners: int) -> None:
    """Run `listeners` threads that follow the events, until standard input is closed."""
    for _ in range(listeners):
        threading.Thread(target=follow, args=(host,), daemon=True).start()
    print("listening", flush=True)
    sys.stdin.read()


def request_readings(host: str, seconds: float) -> list[float]:
    """Request readings one after the other; return the milliseconds that each took."""
    times = []
    until = time.monotonic() + seconds
    with closing(http.client.HTTPConnection(host, timeout=60)) as connection:
        while time.monotonic() < until:
            began = time.perf_counter()
            connection.request("GET", "/backend/monitor?model=m")
            response = connection.getresponse()
            response.read()
            times.append(1000 * (time.perf_counter() - began))
            assert response.status == 200
    return times


def main() -> int:
    """Measure and print; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--listeners", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--host", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.host:
        listen(options.host, options.listeners)
        return 0
    command = [sys.executable, "-m", "monitor_plugin.demo.backend", "--end-with-parent"]
    times: dict[bool, list[float]] = {False: [], True: []}
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as backend,
        MonitorProcess() as monitor,
    ):
        assert backend.stdout
        address = backend.stdout.readline().removeprefix("serving on ").strip()
        monitor.spawned("m", backend.pid, address)
        host = monitor.url.removeprefix("http://")
        request_readings(host, 1.0)  # warms up
        for _ in range(options.rounds):
            times[False] += request_readings(host, options.seconds)
            with subprocess.Popen(
                [sys.executable, __file__, "--host", host, "--listeners", str(options.listeners)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            ) as listeners:
                assert listeners.stdin
                assert listeners.stdout
                listeners.stdout.readline()
                times[True] += request_readings(host, options.seconds)
                listeners.stdin.close()
        backend.kill()
    without, with_them = (statistics.median(times[each]) for each in (False, True))
    ratio = with_them / without
    for name, values in (
        ("no listeners", times[False]),
        (f"{options.listeners} listeners", times[True]),
    ):
        p99 = statistics.quantiles(values, n=100)[98]
        print(f"{name:14} median {statistics.median(values):6.2f} ms   p99 {p99:6.2f} ms")
    print(f"ratio of the medians: {ratio:.2f} (at most {ALLOWED_RATIO} allowed)")
    return 0 if ratio <= ALLOWED_RATIO else 1


if __name__ == "__main__":
    sys.exit(main())
