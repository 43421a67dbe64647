"""Load for the benchmarks: wrk over HTTP, and calls one after the other in this process."""

from __future__ import annotations

import re
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

_SCRIPT = Path(__file__).with_name("ask.lua")
_MILLISECONDS = {"us": 0.001, "ms": 1.0, "s": 1000.0}


class Load(NamedTuple):
    """What a load gave: answers a second, and how long half, and 99 % of them took at most."""

    rate: float
    p50_ms: float
    p99_ms: float


def need_wrk() -> None:
    """Make sure that wrk is there.

    Raises:
        SystemExit: it is not; the message says how to install it.
    """
    if shutil.which("wrk") is None:
        raise SystemExit("there is no wrk: .ci/setup installs it (Debian's package wrk)")


def by_wrk(port: int, clients: int, seconds: float, count: int, prefix: str) -> Load:
    """Ask for `count` models in turn, over kept connections; `ask.lua` says what the two are.

    Raises:
        RuntimeError: some answers were no 2xx, or none came.
    """
    # wrk takes whole seconds.
    command = ["wrk", "-t1", f"-c{clients}", f"-d{max(1, round(seconds))}s", "--latency"]
    command += ["-s", str(_SCRIPT), f"http://127.0.0.1:{port}", "--", str(count), prefix]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    rate = re.search(r"Requests/sec:\s+([\d.]+)", said)
    quantiles = dict(re.findall(r"(50|99)%\s+([\d.]+(?:us|ms|s))", said))
    if not rate or not float(rate[1]) or len(quantiles) < 2 or "Non-2xx" in said:
        raise RuntimeError(f"wrk did not get what it asked for:\n{said}")
    return Load(float(rate[1]), _milliseconds(quantiles["50"]), _milliseconds(quantiles["99"]))


def _milliseconds(text: str) -> float:
    number = text.rstrip("mus")
    return float(number) * _MILLISECONDS[text.removeprefix(number)]


def by_calls(make_call: Callable[[], Callable[[], object]], clients: int, seconds: float) -> Load:
    """Make calls, one after the other on each of `clients` threads.

    Args:
        make_call: gives each thread its own.
        clients: how many threads.
        seconds: for how long.
    """
    with ThreadPoolExecutor(clients) as pool:
        took = list(pool.map(lambda _: _call_for(make_call(), seconds), range(clients)))
    every = [each for taken in took for each in taken]
    quantiles = statistics.quantiles(every, n=100)
    return Load(len(every) / seconds, 1000 * quantiles[49], 1000 * quantiles[98])


def _call_for(call: Callable[[], object], seconds: float) -> list[float]:
    call()  # connects
    took: list[float] = []
    until = time.perf_counter() + seconds
    while (began := time.perf_counter()) < until:
        call()
        took.append(time.perf_counter() - began)
    return took
