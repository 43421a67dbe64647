"""Checks the monitor's figures of an NVIDIA GPU on a machine that has one, in some minutes.

    python benchmarks/gpu_check.py [--mib 1024] [--device 0]

Starts a monitor, a backend that holds memory of the GPU, and another process that also holds such
memory but is no backend. Prints the figures of the driver, how long the driver takes to answer, and
the answers of the monitor before, during and after the life of the backend. The exit code is 1 if
one of these promises is broken:

- the backend is charged with at least the memory that it has allocated, and the other process is
  listed;
- the used memory is the sum of `ours`, `others` and `unexplained`;
- after the shutdown the backend's memory is free again, and nothing is charged to the backend.

Without such a GPU the script says so, and the exit code is 0. CUDA is used through the driver's
library only. The extra `nvidia` must be installed.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import logging
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

from monitor_process import MonitorProcess

from monitor_plugin.gpu.nvidia import NvidiaProvider

MIB = 1024 * 1024
MODEL = "gpu-check"
READS = 20
# Maximum wait for a figure to change. The monitor reads a driver at most once a second.
SECONDS = 30.0


def hold(mib: int, device: int) -> None:
    """Allocate memory of a GPU by CUDA's driver API, and hold it until the process is killed."""
    cuda = ctypes.CDLL("libcuda.so.1")
    context, address, ordinal = ctypes.c_void_p(), ctypes.c_uint64(), ctypes.c_int()
    size = ctypes.c_size_t(mib * MIB)
    for name, *arguments in (
        ("cuInit", 0),
        ("cuDeviceGet", ctypes.byref(ordinal), device),
        ("cuDevicePrimaryCtxRetain", ctypes.byref(context), ordinal),
        ("cuCtxSetCurrent", context),
        ("cuMemAlloc_v2", ctypes.byref(address), size),
        ("cuMemsetD8_v2", address, ctypes.c_ubyte(1), size),
        ("cuCtxSynchronize",),
    ):
        if code := getattr(cuda, name)(*arguments):
            sys.exit(f"{name} failed with CUDA's error {code}")
    print("holding", flush=True)
    sys.stdin.read()


@contextmanager
def holder(mib: int, device: int) -> Iterator[subprocess.Popen[str]]:
    """Run a process that holds memory of a GPU, and kill it afterwards."""
    process = subprocess.Popen(
        [sys.executable, __file__, "--hold", "--mib", str(mib), "--device", str(device)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        # CUDA then numbers GPUs as NVML does.
        env={"CUDA_DEVICE_ORDER": "PCI_BUS_ID", **os.environ},
    )
    try:
        assert process.stdout
        if process.stdout.readline() != "holding\n":
            sys.exit("no memory of the GPU could be allocated; the line above says why")
        yield process
    finally:
        process.kill()
        process.communicate()


class Answer(NamedTuple):
    """An answer of the monitor."""

    body: Any
    headers: dict[str, str]
    seconds: float


class Check:
    """Sends requests to a monitor, prints its answers, and collects the broken promises."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.broken: list[str] = []

    def ask(self, path: str, body: object = None) -> Answer:
        """Send a GET request, or a POST request if there is a body."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"} if data else {}
        request = urllib.request.Request(self._url + path, data, headers)
        began = time.monotonic()
        with urllib.request.urlopen(request, timeout=60) as answer:
            text = answer.read()
            seconds = time.monotonic() - began
            return Answer(json.loads(text or b"null"), dict(answer.headers), seconds)

    def gpus(self) -> list[dict[str, Any]]:
        """Return the devices that the monitor lists."""
        found: list[dict[str, Any]] = self.ask("/gpus").body["gpus"]
        return found

    def promise(self, what: str, kept: bool) -> None:
        """Print whether a promise is kept."""
        print(f"{'kept' if kept else 'BROKEN':>8}: {what}")
        if not kept:
            self.broken.append(what)

    def wait_for(self, what: str, condition: Callable[[], bool]) -> None:
        """Wait until a condition holds, and print how long that took."""
        began = time.monotonic()
        while not (kept := condition()) and time.monotonic() < began + SECONDS:
            time.sleep(0.1)
        self.promise(f"{what}, after {time.monotonic() - began:.2f} s", kept)

    def show(self, title: str) -> None:
        """Print the devices, and check their sums."""
        print(f"\n{title}")
        for gpu in self.gpus():
            print(json.dumps(gpu))
            parts = [gpu[name] for name in ("ours", "others", "unexplained")]
            if None not in parts:
                self.promise(f"sums of {gpu['component']} agree", sum(parts) == gpu["used"])
            elif not gpu["note"]:
                self.promise(f"{gpu['component']} says why a part is not known", False)


def time_reads() -> int:
    """Print the devices and the time that NVML takes; return the number of devices."""
    provider = NvidiaProvider(is_required=True)
    seconds = []
    for _ in range(READS):
        began = time.monotonic()
        gpus = provider.read()
        seconds.append(time.monotonic() - began)
    provider.close()
    for gpu in gpus:
        print(gpu)
    first, *others = seconds
    print(
        f"\na read of {len(gpus)} devices: first {first * 1000:.1f} ms, "
        f"then {min(others) * 1000:.2f} to {max(others) * 1000:.2f} ms"
    )
    return len(gpus)


def memory_of(gpus: list[dict[str, Any]], part: str, pid: int) -> int:
    """Return the bytes of a PID among the models or processes of all devices; 0 if not known."""
    uses = [use for gpu in gpus for use in gpu[part] if use["pid"] == pid]
    return sum(use["memory"] or 0 for use in uses)


def check(mib: int, device: int) -> list[str]:
    """Run all checks; return the promises that are broken."""
    with ExitStack() as stack:
        monitor = stack.enter_context(MonitorProcess(gpu="nvidia"))
        checks = Check(monitor.url)
        checks.show("before, by the monitor")
        other = stack.enter_context(holder(mib, device))
        backend = stack.enter_context(holder(mib, device))
        monitor.spawned(MODEL, backend.pid, "127.0.0.1:1")
        size = mib * MIB
        print()
        if all(gpu["ours"] is None for gpu in checks.gpus()):  # such as in a container
            print("it is not known who holds the memory; the notes below say why")
        else:
            checks.wait_for(
                f"the backend, PID {backend.pid}, is charged with {mib} MiB or more",
                lambda: memory_of(checks.gpus(), "models", backend.pid) >= size,
            )
            checks.wait_for(
                f"the other process, PID {other.pid}, is listed with {mib} MiB or more",
                lambda: memory_of(checks.gpus(), "processes", other.pid) >= size,
            )
        checks.show("meanwhile")
        seconds = sorted(checks.ask("/gpus").seconds for _ in range(READS))
        print(f"\nGET /gpus: {seconds[0] * 1000:.1f} to {seconds[-1] * 1000:.1f} ms")
        (listed,) = checks.ask("/backends").body["backends"]
        print(f"breakdown of the backend: {listed['memory']}, tree: {listed['process']['tree']}")

        used = sum(gpu["used"] or 0 for gpu in checks.gpus())
        answer = checks.ask("/backend/shutdown", {"model": MODEL})
        freed = answer.headers.get("X-Monitor-Freed")
        print(f"\nthe shutdown took {answer.seconds:.2f} s; X-Monitor-Freed: {freed}")
        checks.wait_for(
            f"the used memory is less by {mib} MiB or more",
            lambda: used - sum(gpu["used"] or 0 for gpu in checks.gpus()) >= size,
        )
        checks.wait_for(
            "the driver does not list the backend any more",
            lambda: all(
                memory_of(checks.gpus(), part, backend.pid) == 0 for part in ("models", "processes")
            ),
        )
        checks.show("after the shutdown")
        return checks.broken


def main() -> int:
    """Check and print; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mib", type=int, default=1024, help="memory that each process holds")
    parser.add_argument("--device", type=int, default=0, help="the GPU, by its PCI bus")
    parser.add_argument("--hold", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.hold:
        hold(options.mib, options.device)
        return 0
    logging.basicConfig(format="%(message)s", stream=sys.stdout)
    if not time_reads():
        print("no GPU of NVIDIA can be read here: nothing is checked")
        return 0
    broken = check(options.mib, options.device)
    print(f"\n{len(broken)} promises are broken" if broken else "\nall promises are kept")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
