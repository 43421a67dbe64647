"""Runs a monitor in its own process, and calls its hooks there as a host does.

As a script, this module is that process. It takes the settings as JSON in its argument, and calls
as lines of JSON on its standard input. It ends when its standard input is closed.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from monitor_plugin import Backend, BackendExit, Monitor, MonitorError, Settings, hookimpl
from monitor_plugin.backends.registry import Record
from monitor_plugin.processes.oom import OomKillCounter
from monitor_plugin.processes.process import Process
from monitor_plugin.processes.process_tree import ProcessTree
from monitor_plugin.processes.sampler import Sampler
from monitor_plugin.rpc.connection import Connection
from monitor_plugin.shutdown.stop import Stop

CHECKOUT = Path(__file__).resolve().parents[1]

# A backend that has ended must leave no object of these classes behind.
BACKEND_CLASSES = (Record, Process, ProcessTree, Connection, Sampler, OomKillCounter, Stop)


class MonitorProcess:
    """A monitor in its own process. Its methods may be called from any thread.

    Args:
        checkout: the folder of the sources that it runs; by default those of this file.
        settings: fields of `Settings`; the monitor listens on a free port.

    Attributes:
        url: the URL of the monitor's HTTP server.
    """

    def __init__(self, checkout: Path = CHECKOUT, /, **settings: Any) -> None:
        self._lock = threading.Lock()
        script = str(checkout / "benchmarks" / "monitor_process.py")
        self._process = subprocess.Popen(
            [sys.executable, script, json.dumps({"listen": "127.0.0.1:0", **settings})],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C ends the benchmark, which then ends this process
            # With several heaps, freed memory stays with the process and looks like a leak.
            env={**os.environ, "MALLOC_ARENA_MAX": "1", "PYTHONPATH": str(checkout)},
        )
        self.url: str = self._read_answer()

    def __enter__(self) -> MonitorProcess:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.communicate()

    @property
    def pid(self) -> int:
        """The PID of the monitor's process."""
        return self._process.pid

    @property
    def port(self) -> int:
        """The port of the HTTP server on 127.0.0.1."""
        return int(self.url.rpartition(":")[2])

    def spawned(self, model: str, pid: int, address: str) -> str | None:
        """Register a backend; return the error's message if the monitor refuses it."""
        return self._call("spawned", model=model, pid=pid, address=address)  # type: ignore[no-any-return]

    def exited(self, model: str, pid: int, exit_code: int | None) -> None:
        """Report the end of a backend."""
        self._call("exited", model=model, pid=pid, exit_code=exit_code)

    def count_resources(self) -> dict[str, int]:
        """Count the process's `backends`, `objects`, `threads`, `descriptors` and `rss` (bytes)."""
        return self._call("count_resources")  # type: ignore[no-any-return]

    def exits(self) -> list[dict[str, Any]]:
        """List each call of `monitor_backend_gone`: model, pid and the fields of the exit."""
        return self._call("exits")  # type: ignore[no-any-return]

    def _call(self, method: str, **arguments: Any) -> Any:
        with self._lock:
            assert self._process.stdin
            self._process.stdin.write(json.dumps([method, arguments]) + "\n")
            self._process.stdin.flush()
            return self._read_answer()

    def _read_answer(self) -> Any:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the monitor's process has ended")
        return json.loads(line)


class CommandServer:
    """Runs the calls inside the monitor's process, and records the exits of backends."""

    def __init__(self, settings: Settings) -> None:
        self._exits: list[dict[str, Any]] = []
        self.monitor = Monitor(settings, [self])

    @hookimpl
    def monitor_backend_gone(self, backend: Backend, exit: BackendExit) -> None:
        """Record the exit of a backend."""
        fields = {name: getattr(exit, name) for name in exit.__struct_fields__}
        self._exits.append({"model": backend.model, "pid": backend.pid, **fields})

    def spawned(self, **arguments: Any) -> str | None:
        """Call the hook as a host does; return the message of a `MonitorError`."""
        try:
            self.monitor.hook.monitor_backend_spawned(**arguments)
        except MonitorError as error:
            return str(error)
        return None

    def exited(self, **arguments: Any) -> None:
        """Call the hook as a host does."""
        self.monitor.hook.monitor_backend_exited(**arguments)

    def exits(self) -> list[dict[str, Any]]:
        """Return the recorded exits."""
        return self._exits

    def count_resources(self) -> dict[str, int]:
        """Count what a leak would increase."""
        gc.collect()
        return {
            "backends": len(self.monitor.backends()),
            "objects": sum(type(each) in BACKEND_CLASSES for each in gc.get_objects()),
            # Threads that call hooks wait for the next call or event, and are no leak.
            "threads": sum(
                not each.name.startswith(("monitor-hook", "monitor-events"))
                for each in threading.enumerate()
            ),
            "descriptors": len(os.listdir("/proc/self/fd")),
            "rss": psutil.Process().memory_info().rss,
        }


def main() -> None:
    """Serve until standard input is closed."""
    server = CommandServer(Settings(**json.loads(sys.argv[1])))
    with server.monitor as monitor:
        print(json.dumps(monitor.url), flush=True)
        for line in sys.stdin:
            method, arguments = json.loads(line)
            print(json.dumps(getattr(server, method)(**arguments)), flush=True)


if __name__ == "__main__":
    main()
