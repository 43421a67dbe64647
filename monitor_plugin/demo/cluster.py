"""A cluster to try: a NATS server and three nodes with two models each, until Ctrl-C.

Each node has a network of its own where that may be made (root, and the program `ip`): then what
they share is a bridge, as machines do a switch. Elsewhere they are processes on ports of their own.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from ..client import open_connection
from ..concurrency.signals import Signals
from ..config.settings import Settings
from ..monitor import Monitor
from .calls import Call, make_calls
from .host import DemoHost
from .ports import free_port

# Node, and its models: one is on two nodes.
NODES: dict[str, Sequence[str]] = {
    "gpu-1": ("llama", "whisper"),
    "gpu-2": ("llama", "mistral"),
    "gpu-3": ("bert", "no-status"),
}
_SECONDS = 30.0


class Place(NamedTuple):
    """Where a node runs: the start of its command, and at which address it listens."""

    command: Sequence[str]
    host: str


def calls() -> list[Call]:
    """What to ask the first node: one view of all, and a stop on others."""
    return [
        Call("/backends?fresh=false", None, False, 200),
        Call("/backend/monitor?model=bert", None, False, 200),
        Call("/backend/monitor?model=llama", None, False, 200),
        Call("/backend/monitor?model=llama&node=gpu-2", None, False, 200),
        Call("/cluster/targets", None, False, 200),
        Call("/backend/shutdown", {"model": "bert"}, True, 200),
        Call("/backend/monitor?model=bert", None, False, 500),
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; returns the exit code."""
    parser = argparse.ArgumentParser(prog="demo-cluster", description=__doc__)
    parser.add_argument("--once", action="store_true", help="make the calls, print them, and exit")
    parser.add_argument("--plain", action="store_true", help="make no networks")
    parser.add_argument("--as-node", metavar="NAME", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.as_node:
        _run_node(options.as_node)
        return 0
    server = shutil.which("nats-server", path=os.environ.get("PATH", "") + ":/usr/sbin")
    if server is None:
        print("there is no nats-server here: apt-get install nats-server", file=sys.stderr)
        return 1
    signals = Signals()  # from here on all that is begun is also ended
    with contextlib.ExitStack() as stack:
        places, host = _plain_places(), "127.0.0.1"
        if not options.plain and os.geteuid() == 0 and shutil.which("ip"):
            with contextlib.suppress(subprocess.CalledProcessError):
                host, places = stack.enter_context(networks(NODES))
        apart = host != "127.0.0.1"
        port = free_port(host)
        command = [server, "-a", host, "-p", str(port)]
        stack.enter_context(_process(command, stderr=subprocess.DEVNULL))
        urls = _start_nodes(stack, places, (host, port), signals)
        if len(urls) < len(places):
            return 0 if signals.pending else 1
        url = next(iter(urls.values()))
        _wait_for_all(url, signals)
        if options.once:
            good = True
            for text, as_expected in make_calls(url, None, calls()):
                print(text, flush=True)
                good = good and as_expected
            return 0 if good else 1
        where = "each in a network of its own" if apart else "on ports of their own"
        print(f"{len(urls)} nodes run, {where}, two models each:")
        for name, at in urls.items():
            print(f"  {name}  {at}  {', '.join(NODES[name])}")
        print(f"\nAsk any of them about all ({next(iter(urls))} here):\n")
        for call in calls():
            print(call.curl(url))
        print("\nCtrl-C ends all of it.", flush=True)
        signals.wait(lambda: None)
    return 0


def _start_nodes(
    stack: contextlib.ExitStack,
    places: Mapping[str, Place],
    nats: tuple[str, int],
    signals: Signals,
) -> dict[str, str]:
    """Start the nodes, and give their URLs; fewer where one failed, or this is to end."""
    urls: dict[str, str] = {}
    for name, place in places.items():
        module = [sys.executable, "-m", "monitor_plugin.demo.cluster", "--as-node", name]
        env = _environment(name, place, *nats)
        process = stack.enter_context(
            _process([*place.command, *module], stdout=subprocess.PIPE, env=env)
        )
        assert process.stdout is not None
        url = process.stdout.readline().decode().strip()
        if not url or signals.pending:
            break
        urls[name] = url
    return urls


def _run_node(name: str) -> None:
    with Monitor(Settings.from_environment(os.environ)) as monitor:
        host = DemoHost(monitor)
        try:
            for model in NODES[name]:
                switches = ["--weights-mib", "16", "--kv-cache-mib", "8"]
                host.spawn(model, switches + (["--no-status"] if model == "no-status" else []))
            print(monitor.url, flush=True)
            sys.stdin.read()
        finally:
            host.stop()


def _environment(name: str, place: Place, host: str, port: int) -> dict[str, str]:
    apart = place.host != "127.0.0.1"
    return {
        **os.environ,
        "MONITOR_NODE": name,
        "MONITOR_CLUSTER": f"nats://{host}:{port}",
        "MONITOR_LISTEN": f"{place.host}:{8080 if apart else 0}",
        # A network of this demo alone, which nobody else reaches.
        "MONITOR_INSECURE": "true" if apart else "false",
    }


def _plain_places() -> dict[str, Place]:
    return {name: Place((), "127.0.0.1") for name in NODES}


@contextlib.contextmanager
def networks(nodes: Iterable[str]) -> Iterator[tuple[str, dict[str, Place]]]:
    """Make a bridge, and a network for each node, and take them away again.

    Yields:
        This machine's address on the bridge, and where each node runs.

    Raises:
        subprocess.CalledProcessError: they may not be made.
    """
    tag = os.getpid() % 100_000
    bridge = f"mon{tag}"
    network = f"10.{100 + tag // 250 % 100}.{tag % 250}"  # of this process alone
    with contextlib.ExitStack() as stack:
        stack.callback(_ip, "link", "del", bridge, check=False)
        _ip("link", "add", bridge, "type", "bridge")
        _ip("address", "add", f"{network}.1/24", "dev", bridge)
        _ip("link", "set", bridge, "up")
        places = {}
        for number, name in enumerate(nodes, 11):
            space, link = f"monitor-demo-{tag}-{name}", f"mon{tag}v{number}"
            stack.callback(_ip, "netns", "del", space, check=False)
            _ip("netns", "add", space)
            _ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", space)
            _ip("link", "set", link, "master", bridge, "up")
            address = f"{network}.{number}"
            _ip("-n", space, "address", "add", f"{address}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                _ip("-n", space, "link", "set", device, "up")
            places[name] = Place(("ip", "netns", "exec", space), address)
        yield f"{network}.1", places


def _ip(*arguments: str, check: bool = True) -> None:
    subprocess.run(
        [shutil.which("ip") or "ip", *arguments],
        check=check,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C is the demo's alone
    )


@contextlib.contextmanager
def _process(
    command: Sequence[str],
    stdout: int | None = None,
    stderr: int | None = None,
    env: dict[str, str] | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process; one that reads its standard input ends with that, others by SIGTERM."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=stdout,
        stderr=stderr,
        env=env,
        start_new_session=True,  # Ctrl-C is the demo's alone, which ends them in their order
    )
    try:
        yield process
    finally:
        assert process.stdin is not None
        process.stdin.close()
        if stdout is None:
            process.terminate()
        try:
            process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout:
            process.stdout.close()


def _wait_for_all(url: str, signals: Signals) -> None:
    """Wait until the first node sees all backends."""
    wanted = sum(len(models) for models in NODES.values())
    until = time.monotonic() + _SECONDS
    while time.monotonic() < until and not signals.pending:
        with contextlib.closing(open_connection(url, 60)) as connection:
            connection.request("GET", calls()[0].path)
            if len(json.loads(connection.getresponse().read())["backends"]) == wanted:
                return
        time.sleep(0.05)


if __name__ == "__main__":
    sys.exit(main())
