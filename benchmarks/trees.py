"""Measures the CPU time that a monitor takes for backends of several processes each.

    python benchmarks/trees.py [--against CHECKOUT] [--backends 200] [--rounds 8]

Each backend is a light process with four idle children. Half of the backends have a status, half do
not implement it. With `--against`, a monitor of each of two checkouts watches the same backends.
Both are asked the same in turn within one run, and the ratios of their CPU times are printed: a
ratio over 1.1 is a missed goal.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import NamedTuple

from goals import Figure, Goal
from listing import backends
from monitor_process import CHECKOUT, MonitorProcess

CHILDREN = 4
ALLOWED_RATIO = 1.1
# Longer than a snapshot of the process table is shared.
_PAUSE_SECONDS = 1.1
_REPEATS = 20  # of requests that take a few milliseconds
_BACKGROUND_SECONDS = 16.5
# Earlier versions share the memory of a tree for 5 s. With sweeps every 5 s, it would depend on
# chance whether two sweeps share the memory.
SWEEP_SECONDS = 5.5


class Contender(NamedTuple):
    """A monitor that runs the sources of one checkout."""

    monitor: MonitorProcess
    connection: HTTPConnection

    def request(self, method: str, path: str, body: str | None = None) -> bytes:
        """Send a request; return the body of the answer, which must be 200."""
        self.connection.request(method, path, body, {"Content-Type": "application/json"})
        response = self.connection.getresponse()
        answer = response.read()
        assert response.status == 200, answer
        return answer

    def cpu_ms(self) -> float:
        """Return the CPU time that the monitor's process has taken so far."""
        # clock_getcpuclockid(3); the times in /proc have a resolution of 10 ms.
        return 1000 * time.clock_gettime(~self.monitor.pid << 3 | 2)


@contextmanager
def contenders(
    checkouts: Sequence[Path], targets: Sequence[tuple[int, str]], sweep_seconds: float
) -> Iterator[list[Contender]]:
    """Run a monitor of each checkout, which watches all targets."""
    with ExitStack() as stack:
        found = []
        for checkout in checkouts:
            settings = {"sweep_interval_seconds": sweep_seconds, "respawn_watch_seconds": 0.0}
            monitor = stack.enter_context(MonitorProcess(checkout, **settings))
            for pid, address in targets:
                assert monitor.spawned(f"m{pid}", pid, address) is None
            connection = HTTPConnection("127.0.0.1", monitor.port, timeout=60)
            stack.callback(connection.close)
            found.append(Contender(monitor, connection))
            found[-1].request("GET", "/backends")  # opens the channels
        yield found


def measure(count: int, rounds: int, seconds: float, against: Path | None = None) -> list[Figure]:
    """Measure the CPU time of each kind of request, and of a monitor that is not asked.

    Args:
        count: the number of backends; one for each round is stopped.
        rounds: number of measurements of each kind.
        seconds: for how long background sweeps are measured.
        against: another checkout, to compare with.
    """
    checkouts = [CHECKOUT, against] if against else [CHECKOUT]
    switches = ("--children", str(CHILDREN))
    results: dict[str, list[list[float]]] = {}

    def add(name: str, number: int, used: Sequence[float]) -> None:
        if number >= 0:
            results.setdefault(f"CPU of {name}", []).append([*used])

    with (
        backends(count // 2, *switches) as with_status,
        backends(count - count // 2, *switches, "--no-status") as without_status,
    ):
        targets = [*with_status, *without_status]
        with contenders(checkouts, targets, SWEEP_SECONDS) as running:
            before = [each.cpu_ms() for each in running]
            time.sleep(seconds)
            used = [each.cpu_ms() - was for each, was in zip(running, before, strict=True)]
            add("a second in the background", 0, [each / seconds for each in used])
        with contenders(checkouts, targets, 0.0) as running:
            for number in range(-1, rounds):  # the first round fills caches
                for name, work, repeats in _work(with_status, without_status):
                    time.sleep(_PAUSE_SECONDS)
                    add(name, number, measure_in_turn(running, work, repeats, number % 2 == 1))
                add("a stop", number, _measure_stops(running, [with_status, without_status]))
    return make_figures(results)


def _work(
    with_status: Sequence[tuple[int, str]], without_status: Sequence[tuple[int, str]]
) -> list[tuple[str, Callable[[Contender], object], int]]:
    """Return the kinds of requests: the name, a function that sends some, and their number."""

    def reads(targets: Sequence[tuple[int, str]]) -> Callable[[Contender], object]:
        paths = [f"/backend/monitor?model=m{pid}" for pid, _ in targets]
        return lambda contender: [contender.request("GET", path) for path in paths]

    def repeat(path: str) -> Callable[[Contender], object]:
        return lambda contender: [contender.request("GET", path) for _ in range(_REPEATS)]

    return [
        ("GET /backends", lambda contender: contender.request("GET", "/backends"), 1),
        ("GET /backends?fresh=false", repeat("/backends?fresh=false"), _REPEATS),
        ("GET /metrics", repeat("/metrics"), _REPEATS),
        ("a reading with status", reads(with_status), len(with_status)),
        ("a reading without status", reads(without_status), len(without_status)),
        ("a reading with status a second after others", reads(with_status[:1]), 1),
        ("a reading without status a second after others", reads(without_status[:1]), 1),
    ]


def measure_in_turn(
    running: Sequence[Contender],
    work: Callable[[Contender], object],
    repeats: int,
    last_first: bool,
    clock: Callable[[Contender], float] = Contender.cpu_ms,
) -> list[float]:
    """Return the time of each contender for one request in milliseconds, by default CPU time."""
    used = {}
    for index in reversed(range(len(running))) if last_first else range(len(running)):
        before = clock(running[index])
        work(running[index])
        used[index] = (clock(running[index]) - before) / repeats
    return [used[index] for index in range(len(running))]


def _measure_stops(
    running: Sequence[Contender], groups: Sequence[list[tuple[int, str]]]
) -> list[float]:
    """Let each contender stop a backend of each group; return its CPU time for one, in ms."""
    used = []
    for contender in running:
        pids = [group.pop()[0] for group in groups]
        before = contender.cpu_ms()
        for pid in pids:
            contender.request("POST", "/backend/shutdown", f'{{"model": "m{pid}"}}')
        used.append((contender.cpu_ms() - before) / len(pids))
        time.sleep(0.1)  # the other monitors notice the ends
    return used


def make_figures(results: dict[str, list[list[float]]]) -> list[Figure]:
    """Make the figures of measurements: those of this checkout, and their ratios to another's.

    Args:
        results: by name, for each round the milliseconds of each contender.
    """
    figures = []
    for name, rows in results.items():
        ours, *others = zip(*rows, strict=True)
        figures.append(Figure(name, "ms", ours))
        for other in others:
            ratios = [one / two for one, two in zip(ours, other, strict=True)]
            figures.append(Figure(f"{name}: before", "ms", other))
            goal = Goal(at_most=ALLOWED_RATIO)
            figures.append(Figure(f"{name}: now of before", "x", ratios, goal))
    return figures


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--against", type=Path, help="the folder of another checkout")
    parser.add_argument("--backends", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=8)
    options = parser.parse_args()
    against = options.against.resolve() if options.against else None
    for figure in measure(options.backends, options.rounds, _BACKGROUND_SECONDS, against):
        print(figure, flush=True)


if __name__ == "__main__":
    main()
