"""Measures a list of many backends, compared with the bare fan-out of their `Status` calls.

    python benchmarks/listing.py [--backends 200,1000] [--rounds 15]

Each backend is a light process (`light_backend.py`). Measures three things in turn within one run:
the bare fan-out (`.future()` on persistent channels, from one thread, with all answers parsed),
`Monitor.sweep()`, and `GET /backends` with its answer read. Prints medians, and their ratios to the
bare fan-out.
"""

from __future__ import annotations

import argparse
import http.client
import itertools
import resource
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import grpc
import light_backend

from monitor_plugin import Monitor, Settings
from monitor_plugin.rpc.protocol import STATUS_METHOD, load_messages


@contextmanager
def backends(count: int, *switches: str) -> Iterator[list[tuple[int, str]]]:
    """Run light backends with these switches; yield their PIDs and addresses."""
    with subprocess.Popen(
        [*light_backend.COMMAND, "--count", str(count), *switches],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as running:
        assert running.stdin
        assert running.stdout
        with running.stdin:
            lines = [running.stdout.readline().split() for _ in range(count)]
            yield [(int(pid), address) for pid, address in lines]


def timed(work: Callable[[], object]) -> float:
    """Return how long `work` takes, in milliseconds."""
    began = time.perf_counter()
    work()
    return 1000 * (time.perf_counter() - began)


def measure(count: int, rounds: int) -> dict[str, list[float]]:
    """Measure with `count` backends; return the milliseconds of each round."""
    response = load_messages()["StatusResponse"]
    settings = Settings(listen="127.0.0.1:0", sweep_interval_seconds=0, status_timeout_seconds=10.0)
    with backends(count) as running, Monitor(settings) as monitor, ExitStack() as stack:
        for pid, address in running:
            monitor.hook.monitor_backend_spawned(model=f"m{pid}", pid=pid, address=address)
        methods = [
            stack.enter_context(
                grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)])
            ).unary_unary(STATUS_METHOD, None, None)
            for _, address in running
        ]
        connection = http.client.HTTPConnection("127.0.0.1", int(monitor.url.rpartition(":")[2]))
        stack.callback(connection.close)

        def fan_out() -> None:
            futures = [method.future(b"", timeout=10) for method in methods]
            for future in futures:
                response.FromString(future.result())

        def get() -> None:
            connection.request("GET", "/backends")
            body = connection.getresponse().read()
            assert body.count(b'"source":"grpc"') == count, body[:1000]

        contenders: dict[str, Callable[[], object]] = {
            "bare fan-out": fan_out,
            "Monitor.sweep": monitor.sweep,
            "GET /backends": get,
        }
        times: dict[str, list[float]] = {name: [] for name in contenders}
        for number in range(-2, rounds):  # two rounds open the channels and fill the caches
            for name, work in contenders.items():
                duration = timed(work)
                if number >= 0:
                    times[name].append(duration)
                time.sleep(0.03)  # longer than one list's readings are reused for the next
    return times


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--backends", default="200,1000")
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    lists = []
    for count in map(int, options.backends.split(",")):
        times = measure(count, options.rounds)
        medians = {name: statistics.median(each) for name, each in times.items()}
        bare = medians["bare fan-out"]
        for name, median in medians.items():
            print(
                f"{count:5} backends  {name:14} {median:8.1f} ms  {median / bare:5.2f}", flush=True
            )
        lists.append((count, medians["GET /backends"]))
    for (few, before), (many, after) in itertools.pairwise(lists):
        print(f"GET /backends: {many} take {after / before:.2f} times what {few} take")


if __name__ == "__main__":
    main()
