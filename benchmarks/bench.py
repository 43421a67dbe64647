"""Measures every figure that has a goal, in one run.

    python benchmarks/bench.py [--quick | --tiny] [--only rates,lists,...] [--json FILE]

Prints each median with its spread over the rounds, and whether its goal is met. Writes the same as
JSON. A missed goal is no error, because a busy machine misses some. A test uses `--tiny` to check
that every part of the benchmark runs.
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
import memory
import rates
import trees
from goals import Figure, Goal
from load import need_wrk


def lists(counts: list[int], rounds: int) -> list[Figure]:
    """Measure how long `GET /backends` takes, compared with the bare fan-out.

    Args:
        counts: the numbers of backends to measure with.
        rounds: measurements of each number.
    """
    figures: list[Figure] = []
    list_times: list[list[float]] = []
    for count in counts:
        times = listing.measure(count, rounds)
        figures += [Figure(f"{count} backends: {name}", "ms", t) for name, t in times.items()]
        list_times.append(times["GET /backends"])
        ratios = [
            ours / bare for ours, bare in zip(list_times[-1], times["bare fan-out"], strict=True)
        ]
        goal = Goal(at_most=1.5) if count == 200 else None
        figures.append(Figure(f"{count} backends: GET /backends of bare", "x", ratios, goal))
    if counts == [200, 1000]:
        ratios = [many / few for few, many in zip(*list_times, strict=True)]
        name = "GET /backends: 1,000 of 200 backends"
        figures.append(Figure(name, "x", ratios, Goal(at_most=5.5)))
    return figures


def main() -> None:
    """Measure, print each figure, write JSON and count the missed goals."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="about three minutes")
    size.add_argument("--tiny", action="store_true", help="a few seconds; no meaningful figures")
    parser.add_argument("--only", default="rates,lists,costs,churn,trees,memory")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/bench.json"))
    options = parser.parse_args()
    need_wrk()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    size_index = 0 if options.tiny else 1 if options.quick else 2
    parts: dict[str, Callable[[], list[Figure]]] = {
        "rates": lambda: rates.measure(*((1, 1, True), (1, 1), (4, 3))[size_index]),
        "lists": lambda: lists(([3], [200], [200, 1000])[size_index], (2, 5, 15)[size_index]),
        "costs": lambda: costs.measure(*((10, 4, 0.5), (200, 20, 6), (1000, 100, 30))[size_index]),
        "churn": lambda: churn.measure(*((3, 1, 1), (30, 1, 5), (100, 3, 8))[size_index]),
        "trees": lambda: trees.measure(*((8, 1, 1), (200, 2, 5.5), (200, 5, 16.5))[size_index]),
        "memory": lambda: memory.measure(
            *((2, 30, 1, 0.5, 0.1), (4, 256, 1, 11), (8, 1024, 2, 22))[size_index]
        ),
    }
    figures: list[Figure] = []
    for name in options.only.split(","):
        print(f"-- {name}", flush=True)
        for figure in parts[name]():
            print(figure, flush=True)
            figures.append(figure)
    options.json.write_text(json.dumps([each.to_json() for each in figures], indent=2) + "\n")
    missed = [each for each in figures if each.goal and not each.goal.met_by(each.median)]
    print(f"{len(missed)} goals missed; all figures are in {options.json}")


if __name__ == "__main__":
    main()
