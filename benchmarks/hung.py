"""Measures how hung backends slow the readings of healthy ones.

    python benchmarks/hung.py [--seconds 20] [--json FILE]

Starts ten backends, a monitor in its own process, and 64 clients that request the ten models in
turn. Measures a calm phase first, then a phase with eight backends hung (SIGSTOP). Prints how long
the requests for the two healthy backends took in both phases, and the longest request of all. The
exit code is 1 if one of these promises is broken:

- the median and the 99th percentile for healthy backends are at most 3 times the calm phase's;
- no request takes longer than the deadline plus half a second;
- every answer is right: status 200, and from gRPC for healthy backends.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from monitor_process import MonitorProcess

BACKENDS = 10
HUNG = 8
CLIENTS = 64
DEADLINE_SECONDS = 1.0
ALLOWED_RATIO = 3.0
ALLOWED_SECONDS = DEADLINE_SECONDS + 0.5


class Request(NamedTuple):
    """An answered request; `sent_at` is monotonic, and `seconds` its duration."""

    model: int
    status: int
    source: str
    sent_at: float
    seconds: float


@contextmanager
def running(*command: str) -> Iterator[subprocess.Popen[str]]:
    """Run a process, and kill it afterwards."""
    process = subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


async def request_in_turn(client: int, port: int, until: float, done: list[Request]) -> None:
    """Request one model after the other on one connection, and append the requests to `done`."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    model = client
    while (sent_at := time.monotonic()) < until:
        model = (model + 1) % BACKENDS
        path = f"/backend/monitor?model=m{model}"
        writer.write(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
        head = (await reader.readuntil(b"\r\n\r\n")).decode().splitlines()
        fields = dict(line.lower().split(": ", 1) for line in head[1:] if line)
        await reader.readexactly(int(fields["content-length"]))
        source = fields.get("x-monitor-source", "")
        seconds = time.monotonic() - sent_at
        done.append(Request(model, int(head[0].split()[1]), source, sent_at, seconds))
    writer.close()


async def run_clients(port: int, seconds: float) -> list[Request]:
    """Run all clients for `seconds`; return their requests."""
    done: list[Request] = []
    until = time.monotonic() + seconds
    await asyncio.gather(*(request_in_turn(each, port, until, done) for each in range(CLIENTS)))
    return done


def figures(requests: Sequence[Request]) -> dict[str, float]:
    """Summarize the requests for healthy backends (milliseconds), and all requests (seconds)."""
    healthy = [each.seconds * 1000 for each in requests if each.model >= HUNG]
    return {
        "requests": len(requests),
        "healthy_median_ms": statistics.median(healthy),
        "healthy_p99_ms": statistics.quantiles(healthy, n=100)[98],
        "longest_s": max(each.seconds for each in requests),
        "wrong": sum(
            each.status != 200 or (each.model >= HUNG and each.source != "grpc")
            for each in requests
        ),
    }


def measure(seconds: float) -> dict[str, dict[str, float]]:
    """Measure the calm phase, and the phase with hung backends."""
    with ExitStack() as stack:
        backend = ("-m", "monitor_plugin.demo.backend", "--end-with-parent", "--weights-mib", "1")
        backends = [stack.enter_context(running(*backend)) for _ in range(BACKENDS)]
        monitor = stack.enter_context(MonitorProcess(status_timeout_seconds=DEADLINE_SECONDS))
        for number, process in enumerate(backends):
            assert process.stdout
            address = process.stdout.readline().removeprefix("serving on ").strip()
            monitor.spawned(f"m{number}", process.pid, address)
        port = monitor.port
        asyncio.run(run_clients(port, 1))  # warms up
        calm = figures(asyncio.run(run_clients(port, seconds)))
        for process in backends[:HUNG]:
            os.kill(process.pid, signal.SIGSTOP)
        return {"calm": calm, "hung": figures(asyncio.run(run_clients(port, seconds)))}


def main() -> int:
    """Measure and print; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=20, help="of each phase")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    options = parser.parse_args()
    phases = measure(options.seconds)
    for name in phases["calm"]:
        print(f"{name:>18}: calm {phases['calm'][name]:9.2f}   hung {phases['hung'][name]:9.2f}")
    if options.json:
        options.json.write_text(json.dumps(phases, indent=2) + "\n")
    promises = {
        f"healthy {what} at most {ALLOWED_RATIO:g} times the calm one": phases["hung"][key]
        <= ALLOWED_RATIO * phases["calm"][key]
        for what, key in (("median", "healthy_median_ms"), ("p99", "healthy_p99_ms"))
    }
    promises[f"no request over {ALLOWED_SECONDS:g} s"] = all(
        phase["longest_s"] <= ALLOWED_SECONDS for phase in phases.values()
    )
    promises["every answer right"] = not any(phase["wrong"] for phase in phases.values())
    for promise, met in promises.items():
        print(f"{promise}: {'met' if met else 'BROKEN'}")
    return 0 if all(promises.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
