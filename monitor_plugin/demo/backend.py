"""A real gRPC backend that allocates the memory that it reports, with flags to misbehave.

    python -m monitor_plugin.demo.backend --addr 127.0.0.1:0 --weights-mib 64

It prints `serving on ADDRESS` when it serves, and exits with code 0 on SIGTERM. SIGUSR1 makes it
busy, or no longer busy.
"""

from __future__ import annotations

import argparse
import mmap
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent import futures
from functools import partial
from typing import Any

import grpc

from ..domain.models import State
from ..rpc.protocol import SERVICE, load_messages

_MIB = 1024 * 1024


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="monitor_plugin.demo.backend", description=__doc__)
    add = parser.add_argument
    add("--addr", default="127.0.0.1:0", help="where to serve gRPC (default: a free port)")
    add("--weights-mib", type=int, default=16, help="MiB to hold and to report as weights")
    add("--kv-cache-mib", type=int, default=8, help="MiB to hold and to report as kv_cache")
    add("--state", type=int, default=int(State.READY), help="the state to report")
    add("--busy-seconds", type=float, default=0, help="report BUSY for so long first")
    add("--no-status", action="store_true", help="do not implement Status")
    add("--no-memory", action="store_true", help="report no memory")
    add("--hang-status", action="store_true", help="never answer Status")
    add("--status-seconds", type=float, default=0, help="take so long to answer Status")
    add("--token", help="require the metadata `authorization: Bearer TOKEN`")
    add("--ignore-sigterm", action="store_true", help="go on after SIGTERM")
    add("--fork-workers", type=int, default=0, help="fork so many processes")
    add("--crash-after", type=float, help="exit with code 3 after so many seconds")
    add("--end-with-parent", action="store_true", help="end when the parent has ended")
    return parser.parse_args(arguments)


def allocate(mebibytes: int) -> mmap.mmap | None:
    """Allocate memory and write to each page, so that all pages are resident; None for 0 MiB."""
    if not mebibytes:
        return None
    memory = mmap.mmap(-1, mebibytes * _MIB)
    for page in range(0, len(memory), mmap.PAGESIZE):
        memory[page] = 1
    return memory


class Service:
    """Implements the calls of LocalAI's protocol that the monitor makes."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._messages = load_messages()
        self._busy_until = time.monotonic() + options.busy_seconds
        self._busy = False
        self._memory = {
            "weights": allocate(options.weights_mib),
            "kv_cache": allocate(options.kv_cache_mib),
        }

    def toggle_busy(self) -> None:
        """Start or stop to report BUSY."""
        self._busy = not self._busy

    def handlers(self) -> grpc.GenericRpcHandler[Any, Any]:
        """Return the handlers of the calls, for a gRPC server."""
        methods: dict[str, Callable[[], Any]]
        methods = {"Health": self.health, "Free": self.free, "Status": self.status}
        if self._options.no_status:
            del methods["Status"]
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                name: grpc.unary_unary_rpc_method_handler(
                    partial(self._call, method), response_serializer=lambda m: m.SerializeToString()
                )
                for name, method in methods.items()
            },
        )

    def _call(
        self, method: Callable[[], Any], request: bytes, context: grpc.ServicerContext
    ) -> Any:
        token = self._options.token
        metadata = dict(context.invocation_metadata())
        if token and metadata.get("authorization") != f"Bearer {token}":
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "a token is required")
        return method()

    def health(self) -> Any:
        """Reply that it serves."""
        return self._messages["Reply"](message=b"OK")

    def free(self) -> Any:
        """Free the weights and the cache."""
        self._memory = dict.fromkeys(self._memory)
        return self._messages["Result"](message="freed", success=True)

    def status(self) -> Any:
        """Report the state, and the allocated memory."""
        if self._options.hang_status:
            threading.Event().wait()
        time.sleep(self._options.status_seconds)
        busy = self._busy or time.monotonic() < self._busy_until
        response = self._messages["StatusResponse"](
            state=int(State.BUSY) if busy else self._options.state
        )
        if not self._options.no_memory:
            for name, memory in self._memory.items():
                if memory is not None:
                    response.memory.breakdown[name] = len(memory)
            response.memory.total = sum(response.memory.breakdown.values())
        return response


def fork_workers(options: argparse.Namespace) -> None:
    """Fork idle processes. With --end-with-parent they also end after this process."""
    parent = os.getpid()
    for _ in range(options.fork_workers):
        if os.fork() == 0:
            signal.pthread_sigmask(signal.SIG_SETMASK, ())
            while not options.end_with_parent or os.getppid() == parent:
                time.sleep(0.5)
            os._exit(1)


def end_with(parent: int) -> None:
    """Wait until the parent has ended, then exit with code 1."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until SIGTERM."""
    options = parse_arguments(sys.argv[1:] if arguments is None else arguments)
    parent = os.getppid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the host, which stops its backends
    signal.signal(signal.SIGTERM, signal.SIG_IGN if options.ignore_sigterm else signal.SIG_DFL)
    awaited = {signal.SIGUSR1} if options.ignore_sigterm else {signal.SIGUSR1, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, awaited)  # in all threads, for sigwait() below
    fork_workers(options)  # before gRPC starts, which does not support fork
    service = Service(options)
    server = grpc.server(futures.ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers((service.handlers(),))
    port = server.add_insecure_port(options.addr)
    server.start()
    host, _, wanted = options.addr.rpartition(":")
    address = f"{host}:{port}" if wanted == "0" else options.addr
    print(f"serving on {address}", flush=True)
    if options.end_with_parent:
        threading.Thread(target=end_with, args=(parent,), daemon=True).start()
    crash = threading.Timer(options.crash_after or 0, os._exit, (3,))
    crash.daemon = True
    if options.crash_after is not None:
        crash.start()
    while signal.sigwait(awaited) != signal.SIGTERM:
        service.toggle_busy()
    crash.cancel()
    server.stop(grace=0.2).wait()
    os._exit(0)  # ends also the thread of a Status that hangs


if __name__ == "__main__":
    main()
