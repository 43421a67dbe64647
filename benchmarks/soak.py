"""All faults at once, for long, with steady clients: wrong answers, leaks and latencies.

    python benchmarks/soak.py [--seconds 600] [--seed N] [--json FILE]

A monitor in a process of its own, and a host that spawns, restarts, kills, stops (SIGSTOP), slows
and fakes backends, real ones and light processes, says wrong and late things of them, and shuts
them down over HTTP, while clients ask for every model and others leave half-way. Each answer is
compared with what may be true at that time (`soak_truth.py`). Ends with 1 where a promise broke:

- no answer is wrong, each end is told exactly once with its cause, and what is said to be stopped
  is gone, its whole tree;
- nothing is left once all backends have ended: no backend, object, thread or descriptor, and the
  memory has grown by less than RSS_MIB since a fifth of the time was over;
- no reading takes longer than the deadline plus half a second, no recovery half a second, and no
  shutdown the sum of its timeouts; ends are noticed within a tenth of a second (median).

Where the machine is noisy: what this process itself was kept waiting meanwhile is taken off an
answer's time, one in a thousand may be late all the same, and as many answers for healthy backends
may be samples because the deadline was missed.
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

from apart import MonitorApart
from soak_actors import Actors
from soak_faults import SETTINGS, Host
from soak_truth import Truth

LIGHT_BACKENDS = 8
TOLERATED_SHARE = 0.001
NOTICED_SECONDS = 0.1
RSS_MIB = 24
_END_SECONDS = 60.0


async def soak(monitor: MonitorApart, seconds: float, seed: int) -> dict[str, Any]:
    """Run all of it, and give what was found."""
    truth = Truth()
    host = Host(monitor, truth, random.Random(seed))  # noqa: S311 - no secret
    before = monitor.left()
    lags = asyncio.create_task(truth.feel_lags())
    warm: list[dict[str, int]] = []
    try:
        server = await host.start(
            sys.executable, str(Path(__file__).with_name("light_server.py")), str(LIGHT_BACKENDS)
        )
        ports = [int(port) for port in (await host.line(server)).split()]
        actors = Actors(host, time.monotonic() + seconds, ports)

        async def look() -> None:
            await asyncio.sleep(seconds / 5)
            warm.append(await host.tell(monitor.left))

        await together([look(), *actors.all()], seconds + _END_SECONDS)
        after = await settled(host, before)
        noticed = judge_ends(host, monitor.gone())
    finally:
        lags.cancel()
        await host.close()
    return {
        "seed": seed,
        "wrong": truth.wrong,
        "late": truth.late,
        "missed_deadlines": truth.hurried,
        "shutdowns_left_before_begun": host.left_early,
        "shutdowns_turned_away": host.turned_away,
        "ends": len(host.ends),
        "held": {"before": before, "warm": warm[0], "after": after},
        "latencies": {
            kind: figures(each)
            for kind, each in sorted({**truth.seconds, "noticed": noticed}.items())
        },
    }


async def together(work: Sequence[Coroutine[None, None, None]], seconds: float) -> None:
    """Do all of it at once, in that time, or until one fails."""
    tasks = [asyncio.create_task(each) for each in work]
    try:
        done, late = await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_EXCEPTION)
        for task in done:
            task.result()
        if late:
            raise RuntimeError(f"not done within {seconds:g} s: {late}")
    finally:
        while left := [task for task in tasks if not task.done()]:
            for task in left:  # again and again: `wait_for` of older Pythons may swallow one
                task.cancel()
            await asyncio.wait(left, timeout=0.2)


async def settled(host: Host, before: dict[str, int]) -> dict[str, int]:
    """Count what is left, once what ends in its own time has ended: once it stays the same."""
    deadline = time.monotonic() + 20
    clean_looks = descriptors = 0
    while True:
        after = await host.tell(host.monitor.left)
        clean = not leaks(before, after) and after["descriptors"] == descriptors
        clean_looks, descriptors = clean_looks + 1 if clean else 0, after["descriptors"]
        if clean_looks == 10 or time.monotonic() > deadline:
            return after
        await asyncio.sleep(0.2)


def leaks(before: dict[str, int], after: dict[str, int]) -> list[str]:
    """Say what is left that should not be."""
    # gRPC may open some descriptors at its first use, and keep them; the watcher's thread knows the
    # last process that it told of.
    allowed = {"backends": 0, "objects": 1, "threads": 0, "descriptors": 10}
    return [
        f"{after[what] - before[what]} {what}"
        for what, more in allowed.items()
        if after[what] > before[what] + more
    ]


def leaked(held: dict[str, dict[str, int]]) -> list[str]:
    """Say what leaked, memory too."""
    said = leaks(held["before"], held["after"])
    grown_mib = (held["after"]["rss"] - held["warm"]["rss"]) / 1024**2
    if grown_mib > RSS_MIB:
        said.append(f"{grown_mib:.0f} MiB of memory")
    return said


def judge_ends(host: Host, gone: Sequence[dict[str, Any]]) -> list[float]:
    """Compare the ends that were told of with those that were; the seconds to notice kills."""
    told = Counter((each["model"], each["pid"]) for each in gone)
    made = Counter((model, pid) for model, pid, *_ in host.ends)
    if told != made:
        host.truth.wrong.append(f"ends told {dict(told - made)} too often, {dict(made - told)} not")
    last = {(each["model"], each["pid"]): each for each in gone}
    noticed = []
    for model, pid, causes, killed_at in host.ends:
        end = last.get((model, pid))
        if end and end["cause"] not in causes:
            host.truth.wrong.append(f"{model}: {end}, where right was {causes}")
        if end and killed_at is not None and made[model, pid] == 1:
            noticed.append(end["ended_at"] - killed_at)
    return noticed


def figures(seconds: Sequence[float]) -> dict[str, float]:
    """Summarise, in milliseconds."""
    return {
        "count": len(seconds),
        "median_ms": 1000 * statistics.median(seconds) if seconds else 0.0,
        "p99_ms": 1000 * sorted(seconds)[int(0.99 * len(seconds))] if seconds else 0.0,
        "max_ms": 1000 * max(seconds, default=0.0),
    }


def broken(found: dict[str, Any]) -> list[str]:
    """Say which promises are."""
    readings = sum(
        each["count"] for kind, each in found["latencies"].items() if kind.startswith("monitor")
    )
    tolerated = int(TOLERATED_SHARE * readings)
    said = list(found["wrong"]) + [f"left: {each}" for each in leaked(found["held"])]
    if len(found["late"]) > tolerated:
        said += [f"late, {len(found['late'])} in all, as: {each}" for each in found["late"][:5]]
    if found["missed_deadlines"] > tolerated:
        said.append(f"{found['missed_deadlines']} answers for healthy backends missed the deadline")
    if found["latencies"]["noticed"]["median_ms"] > 1000 * NOTICED_SECONDS:
        said.append("ends are noticed too late")
    return said


async def run(monitor: MonitorApart, seconds: float, seed: int) -> dict[str, Any] | None:
    """Soak; None where a signal ended it."""
    task = asyncio.create_task(soak(monitor, seconds, seed))
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        return await task
    return None


def main() -> int:
    """Soak, print, and judge."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=600, help="how long (default: 600)")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of what is random")
    parser.add_argument("--json", type=Path, help="write what was found there too")
    options = parser.parse_args()
    with MonitorApart(**SETTINGS) as monitor:
        found = asyncio.run(run(monitor, options.seconds, options.seed))
    if found is None:
        print("interrupted")
        return 130
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")
    print(f"seed {found['seed']}; {found['ends']} backends ended; held: {found['held']}")
    print(f"late: {len(found['late'])}; deadlines missed: {found['missed_deadlines']}")
    for kind, each in found["latencies"].items():
        print(f"{kind:>26}: " + "  ".join(f"{name} {value:.0f}" for name, value in each.items()))
    for promise in broken(found):
        print(f"BROKEN: {promise}")
    print(f"wrong answers: {len(found['wrong'])}; leaks: {len(leaked(found['held']))}")
    return 1 if broken(found) else 0


if __name__ == "__main__":
    sys.exit(main())
