"""Load for the benchmarks: HTTP requests by wrk, and repeated calls in this process."""

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
    """Answers a second, and the median and the 99th percentile of their duration."""

    rate: float
    p50_ms: float
    p99_ms: float


def need_wrk() -> None:
    """Check that wrk is installed.

    Raises:
        SystemExit: wrk is missing; the message says how to install it.
    """
    if shutil.which("wrk") is None:
        raise SystemExit("there is no wrk: .ci/setup installs it (Debian's package wrk)")


def by_wrk(port: int, clients: int, seconds: float, count: int, prefix: str) -> Load:
    """Request readings of `count` models in turn, over persistent connections.

    Args:
        port: of the server on 127.0.0.1.
        clients: number of connections.
        seconds: duration; wrk takes whole seconds.
        count: number of models; 0 calls supervisord's XML-RPC for the program PREFIX instead.
        prefix: the models are PREFIX0, PREFIX1 and so on.

    Raises:
        RuntimeError: an answer had no 2xx status, or none came.
    """
    command = ["wrk", "-t1", f"-c{clients}", f"-d{max(1, round(seconds))}s", "--latency"]
    command += ["-s", str(_SCRIPT), f"http://127.0.0.1:{port}", "--", str(count), prefix]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    rate = re.search(r"Requests/sec:\s+([\d.]+)", output)
    quantiles = dict(re.findall(r"(50|99)%\s+([\d.]+(?:us|ms|s))", output))
    if not rate or not float(rate[1]) or len(quantiles) < 2 or "Non-2xx" in output:
        raise RuntimeError(f"wrk got errors or no answers:\n{output}")
    return Load(float(rate[1]), _milliseconds(quantiles["50"]), _milliseconds(quantiles["99"]))


def _milliseconds(text: str) -> float:
    number = text.rstrip("mus")
    return float(number) * _MILLISECONDS[text.removeprefix(number)]


def by_calls(make_call: Callable[[], Callable[[], object]], clients: int, seconds: float) -> Load:
    """Make calls on each of `clients` threads, one after the other.

    Args:
        make_call: returns the function that a thread calls.
        clients: number of threads.
        seconds: duration.
    """
    with ThreadPoolExecutor(clients) as pool:
        by_thread = pool.map(lambda _: _call_for(make_call(), seconds), range(clients))
        durations = [each for durations in by_thread for each in durations]
    quantiles = statistics.quantiles(durations, n=100)
    return Load(len(durations) / seconds, 1000 * quantiles[49], 1000 * quantiles[98])


def _call_for(call: Callable[[], object], seconds: float) -> list[float]:
    call()  # opens the connection, and is not measured
    durations: list[float] = []
    until = time.perf_counter() + seconds
    while (began := time.perf_counter()) < until:
        call()
        durations.append(time.perf_counter() - began)
    return durations
