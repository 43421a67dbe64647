"""Everything that has a goal, measured side by side in one run.

    python benchmarks/bench.py [--quick | --tiny] [--only rates,lists,costs,churn] [--json FILE]

Prints medians, with their spread over the rounds, and whether each goal is met; writes JSON. A goal
that is missed is no error: on a busy machine some are. `--tiny` is for a test that all of it runs.
"""

from __future__ import annotations

import argparse
import json
import resource
from collections.abc import Callable
from pathlib import Path

import churn
import costs
import listing
import rates
from goals import Figure, Goal
from load import need_wrk


def lists(counts: list[int], rounds: int) -> list[Figure]:
    """Measure what lists cost, against the bare fan-out."""
    figures: list[Figure] = []
    listed: list[list[float]] = []
    for count in counts:
        times = listing.measure(count, rounds)
        bare, listed_now = times["bare fan-out"], times["GET /backends"]
        figures += [Figure(f"{count} backends: {name}", "ms", t) for name, t in times.items()]
        ratios = [ours / theirs for ours, theirs in zip(listed_now, bare, strict=True)]
        goal = Goal(at_most=1.5) if count == 200 else None
        figures.append(Figure(f"{count} backends: GET /backends of bare", "x", ratios, goal))
        listed.append(listed_now)
    if counts == [200, 1000]:
        ratios = [many / few for few, many in zip(*listed, strict=True)]
        name = "GET /backends: 1,000 of 200 backends"
        figures.append(Figure(name, "x", ratios, Goal(at_most=5.5)))
    return figures


def main() -> None:
    """Measure, print, write and judge."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="about two minutes")
    size.add_argument("--tiny", action="store_true", help="seconds; its figures mean nothing")
    parser.add_argument("--only", default="rates,lists,costs,churn")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/bench.json"))
    options = parser.parse_args()
    need_wrk()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    full = 0 if options.tiny else 1 if options.quick else 2
    parts: dict[str, Callable[[], list[Figure]]] = {
        "rates": lambda: rates.measure(*((1, 2, True), (1, 1), (4, 3))[full]),
        "lists": lambda: lists(([3], [200], [200, 1000])[full], (2, 5, 15)[full]),
        "costs": lambda: costs.measure(*((10, 4, 0.5), (200, 20, 6), (1000, 100, 30))[full]),
        "churn": lambda: churn.measure(*((3, 1, 1), (30, 1, 5), (100, 3, 8))[full]),
    }
    figures: list[Figure] = []
    for name in options.only.split(","):
        print(f"-- {name}", flush=True)
        for figure in parts[name]():
            print(figure, flush=True)
            figures.append(figure)
    options.json.write_text(json.dumps([each.plain() for each in figures], indent=2) + "\n")
    missed = [each for each in figures if each.goal and not each.goal.met_by(each.median)]
    print(f"{len(missed)} goals missed; all figures are in {options.json}")


if __name__ == "__main__":
    main()
