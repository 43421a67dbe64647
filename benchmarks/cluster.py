"""Measures a large cluster: many simulated nodes on one real NATS server.

    python benchmarks/cluster.py [--nodes 100] [--models 100] [--rounds 200]

Each process runs ten simulated nodes. They use the package's own links, subscriptions,
announcements and replies; only their backends do not exist. Two real monitors have a real backend
each. One runs in this process, and gets all HTTP requests. Prints:

- the times of a local and of a remote reading, and their ratio;
- the time of the list of all backends, in one answer and in pages of 1,000;
- the subscriptions and the memory of NATS, and the memory and threads of this process;
- the messages and the CPU time of an idle cluster.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import secrets
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import msgspec
import psutil

from monitor_plugin import Monitor, Settings
from monitor_plugin.api.results import Response, encode
from monitor_plugin.api.schemas import BackendsAnswer, Machine, NodeBackendItem, ProcessItem
from monitor_plugin.backends.registry import Registry
from monitor_plugin.cluster.node import ClusterNode
from monitor_plugin.cluster.requests.local_node import LocalNode
from monitor_plugin.cluster.transport.messages import Reply, Request
from monitor_plugin.concurrency.blocking import BlockingObserver
from monitor_plugin.demo.ports import free_port
from monitor_plugin.domain.models import Memory, TreeUsage
from monitor_plugin.operations.model_operations import ModelOperations

_NODES_PER_PROCESS = 10
_PAGE = 1000
_GIB = 2**30


class _ModelRegistry(Registry):
    """A registry with models but without processes."""

    def __init__(self, names: list[str]) -> None:
        super().__init__()
        self._names = names

    def models(self) -> list[str]:
        return self._names


class _NoOperations(ModelOperations):
    """Starts nothing."""

    def __init__(self) -> None:
        pass

    def starting(self) -> list[str]:
        return []


class _SimulatedNode(LocalNode):
    """Answers with backends that do not exist."""

    def __init__(self, node: str, models: list[str]) -> None:
        self.node = node
        self.run = secrets.token_hex(8)
        now = datetime.now(timezone.utc)
        usage: dict[str, Any] = {"rss": _GIB, "vms": 2 * _GIB, "cpu_percent": 12.5, "threads": 8}
        self._items = [
            NodeBackendItem(
                node=node,
                model=model,
                pid=1000 + number,
                address=f"127.0.0.1:{10_000 + number}",
                state=2,
                state_name="ready",
                last_state=2,
                state_changed_at=now,
                source="grpc",
                rpc_error=None,
                age_seconds=0.01,
                memory=Memory(_GIB, {"weights": _GIB // 2, "kv_cache": _GIB // 4}),
                memory_source="backend",
                process=ProcessItem(**usage, tree=TreeUsage(**usage, processes=1, pss=_GIB)),
                created_at=now,
                uptime_seconds=1000.0,
                shutdown=None,
            )
            for number, model in enumerate(models)
        ]

    def answer(self, request: Request, *, audit: bool = False) -> Reply:
        items: list[Any] = self._items
        if request.limit is not None:
            items = [each for each in items if each.pid > (request.after_pid or 0)][: request.limit]
        answer = Response(200, encode(BackendsAnswer(items, [], Machine(64 * _GIB, 64))))
        return Reply(self.node, self.run, answer=answer)


def simulate(first: int, count: int, models: int, url: str) -> None:
    """Run simulated nodes until the standard input ends."""
    for number in range(first, first + count):
        node = f"node-{number:04}"
        names = [f"{node}/model-{each}" for each in range(models)]
        settings = Settings(
            listen=None,
            cluster=url,
            cluster_url=f"http://10.0.{number // 256}.{number % 256}:8080",
            http_threads=2,
        )
        simulated = _SimulatedNode(node, names)
        registry, operations = _ModelRegistry(names), _NoOperations()
        ClusterNode(settings, registry, operations, simulated, BlockingObserver()).start(None)
    print("started", flush=True)
    sys.stdin.read()
    os._exit(0)


def real_node(url: str) -> None:
    """Run a real monitor with a real backend until the standard input ends."""
    with Monitor(Settings(listen="127.0.0.1:0", cluster=url, node="remote")) as monitor:
        backend, address = _start_backend()
        monitor.hook.monitor_backend_spawned(model="remote model", pid=backend.pid, address=address)
        print("started", flush=True)
        sys.stdin.read()
        backend.kill()
        backend.wait()


def _start_backend() -> tuple[subprocess.Popen[str], str]:
    """Start a demo backend, and return the process and its address."""
    command = [sys.executable, "-m", "monitor_plugin.demo.backend", "--addr", "127.0.0.1:0"]
    command += ["--end-with-parent", "--weights-mib", "2", "--kv-cache-mib", "1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, process.stdout.readline().split()[-1]


def _start_nodes(stack: ExitStack, *arguments: str) -> None:
    """Run this program with arguments until the end, and wait until its nodes have started."""
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__)), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    stack.callback(process.wait)
    stack.callback(process.stdin.close)
    process.stdout.readline()


def _get(host: str, path: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(host, timeout=60)
    connection.request("GET", path)
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, body


def _nats_counters(port: int) -> dict[str, Any]:
    return json.loads(_get(f"127.0.0.1:{port}", "/varz")[1])  # type: ignore[no-any-return]


def _wait_until(condition: Callable[[], bool], seconds: float = 180) -> float:
    """Wait until the condition is true, and return how long that took, in seconds."""
    began = time.perf_counter()
    while not condition():
        if time.perf_counter() - began > seconds:
            raise SystemExit("the nodes did not find each other in time")
        time.sleep(0.05)
    return time.perf_counter() - began


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=100)
    parser.add_argument("--models", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--simulate", nargs=4, help=argparse.SUPPRESS)
    parser.add_argument("--real-node", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.simulate:
        first, count, models, url = options.simulate
        simulate(int(first), int(count), int(models), url)
        return
    if options.real_node:
        real_node(options.real_node)
        return
    program = shutil.which("nats-server", path=os.environ.get("PATH", "") + ":/usr/sbin")
    if program is None:
        raise SystemExit("nats-server is not installed: apt-get install nats-server")
    with ExitStack() as stack:
        port, monitoring_port = free_port(), free_port()
        url = f"nats://127.0.0.1:{port}"
        server = subprocess.Popen(
            [program, "-a", "127.0.0.1", "-p", str(port), "-m", str(monitoring_port)],
            stderr=subprocess.DEVNULL,
        )
        stack.callback(server.wait)
        stack.callback(server.kill)
        _wait_until(lambda: socket.socket().connect_ex(("127.0.0.1", port)) == 0)
        monitor = stack.enter_context(
            Monitor(Settings(listen="127.0.0.1:0", cluster=url, node="local"))
        )
        backend, address = _start_backend()
        stack.callback(backend.wait)
        stack.callback(backend.kill)
        monitor.hook.monitor_backend_spawned(model="local model", pid=backend.pid, address=address)
        _start_nodes(stack, "--real-node", url)
        cluster = monitor._cluster
        assert cluster is not None
        host = monitor.url.removeprefix("http://")
        measure_readings("two nodes", host, options.rounds)
        process = psutil.Process()
        before = process.memory_info().rss
        for first in range(0, options.nodes, _NODES_PER_PROCESS):
            count = min(_NODES_PER_PROCESS, options.nodes - first)
            _start_nodes(stack, "--simulate", str(first), str(count), str(options.models), url)
        wanted = options.nodes * options.models + 1
        directory = cluster.directory
        seconds = _wait_until(lambda: sum(len(each.models) for each in directory.peers()) == wanted)
        print(
            f"{options.nodes} nodes with {options.models} models each are known ({seconds:.1f} s)"
        )
        varz = _nats_counters(monitoring_port)
        print(
            f"NATS: {varz['subscriptions']} subscriptions, {varz['connections']} connections, "
            f"{varz['mem'] / 2**20:.0f} MiB"
        )
        measure_idle(process, server.pid, monitoring_port)
        measure_readings(f"{options.nodes} nodes more", host, options.rounds)
        grown = (process.memory_info().rss - before) / 2**20
        print(f"this process: {grown:.1f} MiB more, {process.num_threads()} threads")
        measure_lists(host, wanted + 1)
        grown = (process.memory_info().rss - before) / 2**20
        print(
            f"afterwards: {grown:.1f} MiB more, {process.num_threads()} threads, "
            f"{cluster.link.subscription_count} subscriptions, "
            f"{len(cluster.link.requests)} pending requests"
        )


def measure_readings(where: str, host: str, rounds: int) -> None:
    """Print the times of a local and of a remote reading."""
    paths = {each: f"/backend/monitor?model={each}%20model" for each in ("local", "remote")}
    _wait_until(lambda: _get(host, paths["remote"])[0] == 200)
    times: dict[str, list[float]] = {each: [] for each in paths}
    for _ in range(rounds):
        for name, path in paths.items():
            began = time.perf_counter()
            _get(host, path)
            times[name].append(time.perf_counter() - began)
    local, remote = (statistics.median(times[each]) * 1000 for each in ("local", "remote"))
    worst = sorted(times["remote"])[int(rounds * 0.99)] * 1000
    print(
        f"{where}: a local reading {local:.2f} ms, a remote one {remote:.2f} ms (99 %: {worst:.1f} "
        f"ms): {remote / local:.2f} times"
    )


def measure_idle(monitor: psutil.Process, server: int, monitoring_port: int) -> None:
    """Print the messages and the CPU time of 10 s in which no backend changes."""
    seconds = 10.0
    nats = psutil.Process(server)
    cpu = [sum(each.cpu_times()[:2]) for each in (monitor, nats)]
    messages = _nats_counters(monitoring_port)["out_msgs"]
    time.sleep(seconds)
    used = [
        (sum(each.cpu_times()[:2]) - before) / seconds * 100
        for each, before in zip((monitor, nats), cpu, strict=True)
    ]
    messages = _nats_counters(monitoring_port)["out_msgs"] - messages
    print(
        f"idle: {messages / seconds:.0f} messages a second in all; CPU {used[0]:.1f} % of a core "
        f"for the monitor, {used[1]:.1f} % for NATS"
    )


def measure_lists(host: str, wanted: int) -> None:
    """Print the times of the list of all backends, in one answer and in pages."""
    times, size = [], 0
    for _ in range(5):
        began = time.perf_counter()
        status, body = _get(host, "/backends")
        times.append(time.perf_counter() - began)
        size = len(body)
        found = len(msgspec.json.decode(body)["backends"])
        if status != 200 or found != wanted:
            nodes = msgspec.json.decode(body)["nodes"]
            missing = {each["node"]: each["error"] for each in nodes if each["error"]}
            raise SystemExit(f"{found} backends are listed, and should be {wanted}: {missing}")
    print(f"{wanted} backends at once: {statistics.median(times):.2f} s, {size / 2**20:.1f} MiB")
    pages: list[float] = []
    found, after = 0, ""
    while True:
        path = f"/backends?limit={_PAGE}&after={after}"
        began = time.perf_counter()
        answer = msgspec.json.decode(_get(host, path)[1])
        pages.append(time.perf_counter() - began)
        found += len(answer["backends"])
        after = answer["next"]
        if after is None:
            break
    if found != wanted:
        raise SystemExit(f"the pages have {found} backends, and should have {wanted}")
    print(
        f"in {len(pages)} pages of {_PAGE}: {statistics.median(pages) * 1000:.0f} ms a page, "
        f"{sum(pages):.2f} s in all"
    )


if __name__ == "__main__":
    main()
