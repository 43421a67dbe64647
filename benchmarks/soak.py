"""Injects all faults at the same time for long, and finds wrong answers, leaks and delays.

    python benchmarks/soak.py [--seconds 600] [--seed N] [--json FILE]

The monitor runs in its own process. A host spawns, restarts, kills, suspends (SIGSTOP) and shuts
down backends: demo backends, and light ones, some of which answer wrongly or not at all. The host
also reports wrong and late facts. Meanwhile, clients request readings of every model, and others
disconnect before their answer. Each answer is compared with those that are right at that time
(`soak_expectations.py`). The exit code is 1 if a promise is broken:

- no answer is wrong, each exit is reported exactly once with its cause, and no process of a stopped
  backend's tree still runs;
- nothing is left after all backends have ended: no backend, object, thread or descriptor, and the
  memory has grown by less than RSS_MIB after the first fifth of the time;
- no reading takes longer than the deadline plus half a second, no recovery longer than half a
  second, and no shutdown longer than the sum of its timeouts; the median time until an exit is
  noticed is at most a tenth of a second.

On a busy machine answers are late for other reasons. So the delays of this process's event loop are
subtracted from an answer's time, one answer in a thousand may still be late, and one reading of a
healthy backend in a thousand may be a sample because the deadline was missed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import signal
import statistics
import sys
import time
from collections import Counter
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any

from monitor_process import MonitorProcess
from soak_actors import Actors
from soak_expectations import Expectations
from soak_faults import SETTINGS, Host

TOLERATED_SHARE = 0.001
NOTICED_SECONDS = 0.1
RSS_MIB = 24
_END_SECONDS = 60.0


async def soak(monitor: MonitorProcess, seconds: float, seed: int) -> dict[str, Any]:
    """Run the host, the actors and the clients; return the findings as an object for JSON."""
    expectations = Expectations()
    host = Host(monitor, expectations, random.Random(seed))  # noqa: S311 - no secret
    before = monitor.count_resources()
    lags = asyncio.create_task(expectations.measure_lags())
    warm: list[dict[str, int]] = []
    try:
        actors = Actors(host, time.monotonic() + seconds)

        async def count_when_warm() -> None:
            await asyncio.sleep(seconds / 5)
            warm.append(await host.call(monitor.count_resources))

        await run_together([count_when_warm(), *actors.all()], seconds + _END_SECONDS)
        after = await count_settled(host, before)
        noticed = check_exits(host, monitor.exits())
    finally:
        lags.cancel()
        await host.close()
    return {
        "seed": seed,
        "wrong": expectations.wrong,
        "late": expectations.late,
        "missed_deadlines": expectations.missed_deadlines,
        "abandoned_shutdowns": host.abandoned_shutdowns,
        "rejected_shutdowns": host.rejected_shutdowns,
        "exits": len(host.exits),
        "resources": {"before": before, "warm": warm[0], "after": after},
        "latencies": {
            kind: figures(each)
            for kind, each in sorted({**expectations.seconds, "noticed": noticed}.items())
        },
    }


async def run_together(work: Sequence[Coroutine[None, None, None]], seconds: float) -> None:
    """Run all coroutines concurrently, until one fails.

    Raises:
        RuntimeError: a coroutine was not done after `seconds`.
    """
    tasks = [asyncio.create_task(each) for each in work]
    try:
        done, late = await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_EXCEPTION)
        for task in done:
            task.result()
        if late:
            raise RuntimeError(f"not done within {seconds:g} s: {late}")
    finally:
        while left := [task for task in tasks if not task.done()]:
            for (
                task
            ) in left:  # repeatedly, because older Pythons' `wait_for` may lose a cancellation
                task.cancel()
            await asyncio.wait(left, timeout=0.2)


async def count_settled(host: Host, before: dict[str, int]) -> dict[str, int]:
    """Count the resources after ten counts without a leak and with as many descriptors, or 20 s."""
    deadline = time.monotonic() + 20
    clean_counts = descriptors = 0
    while True:
        after = await host.call(host.monitor.count_resources)
        clean = not leaks(before, after) and after["descriptors"] == descriptors
        clean_counts, descriptors = clean_counts + 1 if clean else 0, after["descriptors"]
        if clean_counts == 10 or time.monotonic() > deadline:
            return after
        await asyncio.sleep(0.2)


def leaks(before: dict[str, int], after: dict[str, int]) -> list[str]:
    """List the kinds of resources of which too many are left, other than memory."""
    # gRPC may open some descriptors at its first use and keep them. The watcher's thread still
    # references the last process that it reported.
    allowed = {"backends": 0, "objects": 1, "threads": 0, "descriptors": 10}
    return [
        f"{after[kind] - before[kind]} {kind}"
        for kind, more in allowed.items()
        if after[kind] > before[kind] + more
    ]


def all_leaks(resources: dict[str, dict[str, int]]) -> list[str]:
    """List what leaked, including memory."""
    found = leaks(resources["before"], resources["after"])
    grown_mib = (resources["after"]["rss"] - resources["warm"]["rss"]) / 1024**2
    if grown_mib > RSS_MIB:
        found.append(f"{grown_mib:.0f} MiB of memory")
    return found


def check_exits(host: Host, reported: Sequence[dict[str, Any]]) -> list[float]:
    """Compare the reported exits with the real ones; return the seconds to notice each kill."""
    wrong = host.expectations.wrong
    reports = Counter((each["model"], each["pid"]) for each in reported)
    real = Counter((model, pid) for model, pid, *_ in host.exits)
    if reports != real:
        wrong.append(f"exits reported too often: {dict(reports - real)}")
        wrong.append(f"exits not reported: {dict(real - reports)}")
    last = {(each["model"], each["pid"]): each for each in reported}
    noticed = []
    for model, pid, causes, killed_at in host.exits:
        exit = last.get((model, pid))
        if exit and exit["cause"] not in causes:
            wrong.append(f"{model}: {exit}, expected one of the causes {causes}")
        if exit and killed_at is not None and real[model, pid] == 1:
            noticed.append(exit["ended_at"] - killed_at)
    return noticed


def figures(seconds: Sequence[float]) -> dict[str, float]:
    """Summarize durations, in milliseconds."""
    return {
        "count": len(seconds),
        "median_ms": 1000 * statistics.median(seconds) if seconds else 0.0,
        "p99_ms": 1000 * sorted(seconds)[int(0.99 * len(seconds))] if seconds else 0.0,
        "max_ms": 1000 * max(seconds, default=0.0),
    }


def broken_promises(found: dict[str, Any]) -> list[str]:
    """List the promises that the findings break."""
    readings = sum(
        each["count"] for kind, each in found["latencies"].items() if kind.startswith("monitor")
    )
    tolerated = int(TOLERATED_SHARE * readings)
    broken = list(found["wrong"]) + [f"leak: {each}" for each in all_leaks(found["resources"])]
    late = found["late"]
    if len(late) > tolerated:
        broken += [f"{len(late)} late answers, for example {each}" for each in late[:5]]
    if found["missed_deadlines"] > tolerated:
        broken.append(f"{found['missed_deadlines']} calls of healthy backends missed the deadline")
    if found["latencies"]["noticed"]["median_ms"] > 1000 * NOTICED_SECONDS:
        broken.append("exits are noticed too late")
    return broken


async def run(monitor: MonitorProcess, seconds: float, seed: int) -> dict[str, Any] | None:
    """Soak; return the findings, or None if a signal interrupted it."""
    task = asyncio.create_task(soak(monitor, seconds, seed))
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        return await task
    return None


def main() -> int:
    """Soak and print; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=600, help="how long (default: 600)")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of the random choices")
    parser.add_argument("--json", type=Path, help="write the findings there too")
    options = parser.parse_args()
    with MonitorProcess(**SETTINGS) as monitor:
        found = asyncio.run(run(monitor, options.seconds, options.seed))
    if found is None:
        print("interrupted")
        return 130
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")
    print(f"seed {found['seed']}; {found['exits']} backends ended; resources: {found['resources']}")
    print(f"late answers: {len(found['late'])}; missed deadlines: {found['missed_deadlines']}")
    for kind, each in found["latencies"].items():
        print(f"{kind:>26}: " + "  ".join(f"{name} {value:.0f}" for name, value in each.items()))
    broken = broken_promises(found)
    for promise in broken:
        print(f"BROKEN: {promise}")
    print(f"wrong answers: {len(found['wrong'])}; leaks: {len(all_leaks(found['resources']))}")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
