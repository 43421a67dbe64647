"""Checks that a hung backend does not delay the event loop of an asyncio host.

    python benchmarks/asyncio_stall.py [--rounds 7]

Runs the programs of `examples/asyncio_host.py` in an event loop that measures its own delays: a
task sleeps for 5 ms again and again, and records by how much it wakes up late. In each round, a
client reads a backend, and the host starts another backend and stops it through the monitor. A
round without faults is followed by one with a hung backend (SIGSTOP) and a hook that blocks.

Prints the longest delay of each round. The exit code is 1 if the least of these with a hung backend
exceeds the least without one by 50 ms or more. The least is compared because code that blocks the
loop does so in every round, while other processes delay it in some rounds only.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import shlex
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

import asyncio_host

from monitor_plugin import Backend, Monitor, Settings, hookimpl

TICK_SECONDS = 0.005
ALLOWED_SECONDS = 0.05
BACKEND = [sys.executable, *shlex.split("-m monitor_plugin.demo.backend --addr {address}")]


class Blocking:
    """A plugin whose hook blocks for an adjustable time."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.backends: list[Backend] = []

    @hookimpl
    def monitor_backend_registered(self, backend: Backend) -> None:
        """Record the backend, and block."""
        self.backends.append(backend)
        time.sleep(self.seconds)


@contextlib.asynccontextmanager
async def longest_stall(stalls: list[float]) -> AsyncIterator[None]:
    """Append the longest delay of the loop, in seconds, to a list."""
    longest = 0.0

    async def tick() -> None:
        nonlocal longest
        while True:
            began = time.monotonic()
            await asyncio.sleep(TICK_SECONDS)
            longest = max(longest, time.monotonic() - began - TICK_SECONDS)

    task = asyncio.create_task(tick())
    await asyncio.sleep(0)
    yield
    await asyncio.sleep(2 * TICK_SECONDS)
    task.cancel()
    stalls.append(longest)


async def measure(rounds: int, folder: str) -> dict[str, list[float]]:
    """Return the longest delays in seconds: without a hung backend, with one, and while it stops.

    The third list has a single round, in which the host does less. It is not comparable.
    """
    host, blocking = asyncio_host.Host({}, folder), Blocking()
    settings = Settings(listen=None, stop_timeout_seconds=2, respawn_watch_seconds=0)
    monitor = await asyncio.to_thread(Monitor, settings, [host, blocking])
    await asyncio.to_thread(monitor.start)

    async def started(model: str) -> Backend:
        host.programs[model] = asyncio_host.Program(model, BACKEND, folder, monitor)
        while not any(each.model == model for each in blocking.backends):
            await asyncio.sleep(TICK_SECONDS)
        return blocking.backends[-1]

    async def work(number: int) -> None:
        await started(f"model {number}")
        for _ in range(3):
            await asyncio.to_thread(monitor.read, "hung")
        await asyncio.to_thread(monitor.shutdown, f"model {number}")

    without: list[float] = []
    hung: list[float] = []
    stopped: list[float] = []
    try:
        pid = (await started("hung")).pid
        while (await asyncio.to_thread(monitor.read, "hung")).status is None:
            await asyncio.sleep(0.1)
        for number in range(rounds):
            async with longest_stall(without):
                await work(2 * number)
            os.kill(pid, signal.SIGSTOP)
            blocking.seconds = 0.5
            async with longest_stall(hung):
                await work(2 * number + 1)
            blocking.seconds = 0
            os.kill(pid, signal.SIGCONT)
        os.kill(pid, signal.SIGSTOP)
        async with longest_stall(stopped):
            await asyncio.to_thread(monitor.shutdown, "hung", force=True)
    finally:
        await asyncio.gather(*(program.stop() for program in host.programs.values()))
        await asyncio.to_thread(monitor.close)
    return {"without": without, "hung": hung, "stopped": stopped}


def main() -> None:
    """Measure, print, and exit with 1 if the loop was blocked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        measured = asyncio.run(measure(rounds, folder))
    for name, stalls in measured.items():
        print(f"longest stalls, {name:8}", *(f"{1000 * stall:6.1f}" for stall in stalls), "ms")
    for name, of in (("median", statistics.median), ("least", min)):
        more = of(measured["hung"]) - of(measured["without"])
        print(f"with a hung backend the {name} is {1000 * more:.1f} ms more")
    sys.exit(more >= ALLOWED_SECONDS)


if __name__ == "__main__":
    main()
