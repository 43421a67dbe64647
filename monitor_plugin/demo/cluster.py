"""The demo of a cluster: a NATS server and three nodes with two models each, until Ctrl-C.

Run as root, and with the program `ip`, each node has its own network namespace, and a bridge
connects the nodes as a switch connects machines. Otherwise the nodes listen on different ports.
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

# Each node's models.
NODES: dict[str, Sequence[str]] = {
    "gpu-1": ("llama", "whisper"),
    "gpu-2": ("llama", "mistral"),
    "gpu-3": ("bert", "no-status"),
}
_START_SECONDS = 30.0


class Place(NamedTuple):
    """Where a node runs.

    Attributes:
        command_prefix: the words before the node's command, such as `ip netns exec NAME`.
        host: the address on which the node listens.
    """

    command_prefix: Sequence[str]
    host: str


def calls() -> list[Call]:
    """Return calls to the first node: they read models of all nodes, and stop one elsewhere."""
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
    """Run the demo, and return the exit code."""
    parser = argparse.ArgumentParser(prog="demo-cluster", description=__doc__)
    parser.add_argument("--once", action="store_true", help="make the calls, print them, and exit")
    parser.add_argument("--plain", action="store_true", help="make no network namespaces")
    parser.add_argument("--as-node", metavar="NAME", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.as_node:
        _run_node(options.as_node)
        return 0
    server = shutil.which("nats-server", path=os.environ.get("PATH", "") + ":/usr/sbin")
    if server is None:
        print("nats-server is not installed: apt-get install nats-server", file=sys.stderr)
        return 1
    signals = Signals()  # from here on, a signal ends the demo in order
    with contextlib.ExitStack() as stack:
        host = "127.0.0.1"
        places = dict.fromkeys(NODES, Place((), host))
        if not options.plain and os.geteuid() == 0 and shutil.which("ip"):
            with contextlib.suppress(subprocess.CalledProcessError):
                host, places = stack.enter_context(network_namespaces(NODES))
        has_networks = host != "127.0.0.1"
        port = free_port(host)
        command = [server, "-a", host, "-p", str(port)]
        stack.enter_context(_process(command, stderr=subprocess.DEVNULL))
        urls = _start_nodes(stack, places, (host, port), signals)
        if len(urls) < len(places):
            return 0 if signals.pending else 1
        url = next(iter(urls.values()))
        _wait_for_all(url, signals)
        if options.once:
            all_expected = True
            for text, as_expected in make_calls(url, None, calls()):
                print(text, flush=True)
                all_expected = all_expected and as_expected
            return 0 if all_expected else 1
        where = "in network namespaces" if has_networks else "on different ports"
        print(f"{len(urls)} nodes run {where}, with two models each:")
        for name, node_url in urls.items():
            print(f"  {name}  {node_url}  {', '.join(NODES[name])}")
        print(f"\nAny node answers for all; here {next(iter(urls))}:\n")
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
    """Start the nodes, and return their URLs. Stops at the first that fails, and at a signal."""
    urls: dict[str, str] = {}
    for name, place in places.items():
        module = [sys.executable, "-m", "monitor_plugin.demo.cluster", "--as-node", name]
        env = _environment(name, place, *nats)
        process = stack.enter_context(
            _process([*place.command_prefix, *module], stdout=subprocess.PIPE, env=env)
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
    has_network = place.host != "127.0.0.1"
    return {
        **os.environ,
        "MONITOR_NODE": name,
        "MONITOR_CLUSTER": f"nats://{host}:{port}",
        "MONITOR_LISTEN": f"{place.host}:{8080 if has_network else 0}",
        # Only this machine can reach the network of the demo.
        "MONITOR_INSECURE": "true" if has_network else "false",
    }


@contextlib.contextmanager
def network_namespaces(nodes: Iterable[str]) -> Iterator[tuple[str, dict[str, Place]]]:
    """Make one bridge, and a network namespace for each node; remove all of them at the end.

    Yields:
        This machine's address on the bridge, and the place of each node.

    Raises:
        subprocess.CalledProcessError: `ip` failed.
    """
    tag = os.getpid() % 100_000
    bridge = f"mon{tag}"
    network = f"10.{100 + tag // 250 % 100}.{tag % 250}"  # depends on the PID, so that demos differ
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
        start_new_session=True,  # Ctrl-C must reach the demo only
    )


@contextlib.contextmanager
def _process(
    command: Sequence[str],
    stdout: int | None = None,
    stderr: int | None = None,
    env: dict[str, str] | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process, and end it by closing its standard input; without `stdout`, by SIGTERM too."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=stdout,
        stderr=stderr,
        env=env,
        start_new_session=True,  # Ctrl-C must reach the demo only, which ends all in order
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
    """Wait until the first node lists all backends, a signal arrives, or 30 s have passed."""
    wanted = sum(len(models) for models in NODES.values())
    until = time.monotonic() + _START_SECONDS
    while time.monotonic() < until and not signals.pending:
        with contextlib.closing(open_connection(url, 60)) as connection:
            connection.request("GET", calls()[0].path)
            if len(json.loads(connection.getresponse().read())["backends"]) == wanted:
                return
        time.sleep(0.05)


if __name__ == "__main__":
    sys.exit(main())
