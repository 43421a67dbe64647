"""Measures the cost of backends that have much memory and do not report it.

    python benchmarks/memory.py [--against CHECKOUT] [--backends 8] [--mib 1024] [--many 100]
                                [--rounds 5]

The kernel counts the pages of a process when its memory is read, which takes some 17 ms per GiB.
Measures the first list and the first scrape after a pause, which share no figures with earlier
requests, and a monitor that sweeps without requests. With `--against`, monitors of two checkouts
watch the same backends, as in `trees.py`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

from goals import Figure
from listing import backends
from monitor_process import CHECKOUT
from trees import SWEEP_SECONDS, Contender, contenders, make_figures, measure_in_turn

# Earlier versions share the memory of a tree for 5 s.
_PAUSE_SECONDS = 5.5
_BACKGROUND_SECONDS = 66.0


def measure(
    count: int,
    mib: int,
    rounds: int,
    seconds: float,
    pause_seconds: float = _PAUSE_SECONDS,
    against: Path | None = None,
) -> list[Figure]:
    """Measure with backends that hold memory, and whose `Status` calls fail.

    Args:
        count: the number of backends.
        mib: the memory of each backend in MiB.
        rounds: number of measurements of each kind.
        seconds: for how long background sweeps are measured.
        pause_seconds: the pause before each list and each scrape.
        against: another checkout to compare with.
    """
    checkouts = [CHECKOUT, against] if against else [CHECKOUT]
    clocks: dict[str, Callable[[Contender], float]] = {
        "duration": lambda _: 1000 * time.perf_counter(),
        "CPU": Contender.cpu_ms,
    }
    results: dict[str, list[list[float]]] = {}
    with backends(count, "--no-status", "--holds", str(mib)) as targets:
        with contenders(checkouts, targets, SWEEP_SECONDS) as running:
            time.sleep(SWEEP_SECONDS)  # each tree is read for the first time
            before = [each.cpu_ms() for each in running]
            time.sleep(seconds)
            used = [each.cpu_ms() - was for each, was in zip(running, before, strict=True)]
            results["CPU of a second in the background"] = [[each / seconds for each in used]]
        with contenders(checkouts, targets, 0.0) as running:
            for number in range(rounds):
                for path in ("/metrics", "/backends"):
                    for name, clock in clocks.items():
                        time.sleep(pause_seconds)
                        took = measure_in_turn(running, _get(path), 1, number % 2 == 1, clock)
                        results.setdefault(f"{name} of a cold GET {path}", []).append(took)
    prefix = f"{count} backends of {mib} MiB"
    return make_figures({f"{prefix}: {name}": rows for name, rows in results.items()})


def _get(path: str) -> Callable[[Contender], object]:
    return lambda contender: contender.request("GET", path)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--against", type=Path, help="the folder of another checkout")
    parser.add_argument("--backends", type=int, default=8)
    parser.add_argument("--mib", type=int, default=1024, help="the memory of each backend")
    parser.add_argument("--many", type=int, default=100, help="the number of small backends")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    against = options.against.resolve() if options.against else None
    for count, mib in ((options.backends, options.mib), (options.many, 0)):
        for figure in measure(count, mib, options.rounds, _BACKGROUND_SECONDS, against=against):
            print(figure, flush=True)


if __name__ == "__main__":
    main()
