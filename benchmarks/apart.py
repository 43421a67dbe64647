"""A monitor in a process of its own, for the benchmarks: told by lines what a host would call.

Run as a script it is that process: settings as JSON in its argument, calls as JSON on its standard
input, a line each; it ends when that is closed.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import threading
from collections import Counter
from types import TracebackType
from typing import Any

import psutil

from monitor_plugin import Backend, BackendExit, Monitor, MonitorError, Settings, hookimpl

# Objects that stand for a backend and must go with it, by the names of their classes.
HELD = ("Record", "Process", "ProcessTree", "Connection", "Sampler", "OomKillCounter", "Stop")


class MonitorApart:
    """A monitor in a process of its own. Safe to call from any thread, one call at a time.

    Args:
        settings: fields of `Settings`; it listens on a free port.

    Attributes:
        url: where it serves.
    """

    def __init__(self, **settings: Any) -> None:
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, __file__, json.dumps({"listen": "127.0.0.1:0", **settings})],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is for the benchmark, which ends it
            # Or memory that was freed lies in many heaps, and looks like a leak.
            env={**os.environ, "MALLOC_ARENA_MAX": "1"},
        )
        self.url: str = self._answer()

    def __enter__(self) -> MonitorApart:
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
        """Its process."""
        return self._process.pid

    @property
    def port(self) -> int:
        """The port on 127.0.0.1 at which it serves."""
        return int(self.url.rpartition(":")[2])

    def spawned(self, model: str, pid: int, address: str) -> str | None:
        """Tell of a backend; what was wrong with it, else None."""
        return self._call("spawned", model=model, pid=pid, address=address)  # type: ignore[no-any-return]

    def exited(self, model: str, pid: int, exit_code: int | None) -> None:
        """Tell of an end."""
        self._call("exited", model=model, pid=pid, exit_code=exit_code)

    def left(self) -> dict[str, int]:
        """Count what it holds: `backends`, `objects`, `threads`, `descriptors`, `rss` (bytes)."""
        return self._call("left")  # type: ignore[no-any-return]

    def gone(self) -> list[dict[str, Any]]:
        """List each call of `monitor_backend_gone`: model, pid and the fields of the exit."""
        return self._call("gone")  # type: ignore[no-any-return]

    def _call(self, what: str, **arguments: Any) -> Any:
        with self._lock:
            assert self._process.stdin
            self._process.stdin.write(json.dumps([what, arguments]) + "\n")
            self._process.stdin.flush()
            return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the monitor's process has ended")
        return json.loads(line)


class Served:
    """The calls, inside the monitor's process; a plugin that notes ends."""

    def __init__(self, settings: Settings) -> None:
        self._gone: list[dict[str, Any]] = []
        self.monitor = Monitor(settings, [self])

    @hookimpl
    def monitor_backend_gone(self, backend: Backend, exit: BackendExit) -> None:
        """Note it."""
        fields = {name: getattr(exit, name) for name in exit.__struct_fields__}
        self._gone.append({"model": backend.model, "pid": backend.pid, **fields})

    def spawned(self, **arguments: Any) -> str | None:
        """As a host."""
        try:
            self.monitor.hook.monitor_backend_spawned(**arguments)
        except MonitorError as error:
            return str(error)
        return None

    def exited(self, **arguments: Any) -> None:
        """As a host."""
        self.monitor.hook.monitor_backend_exited(**arguments)

    def gone(self) -> list[dict[str, Any]]:
        """List what was noted."""
        return self._gone

    def left(self) -> dict[str, int]:
        """Count."""
        gc.collect()
        held = Counter(
            type(each).__name__
            for each in gc.get_objects()
            if str(type(each).__module__).startswith("monitor_plugin.")
        )
        return {
            "backends": len(self.monitor.backends()),
            "objects": sum(held[name] for name in HELD),
            # Those for hooks are kept for the next call, so many at most.
            "threads": sum(each.name != "monitor-hook" for each in threading.enumerate()),
            "descriptors": len(os.listdir("/proc/self/fd")),
            "rss": psutil.Process().memory_info().rss,
        }


def main() -> None:
    """Serve until standard input is closed."""
    served = Served(Settings(**json.loads(sys.argv[1])))
    with served.monitor as monitor:
        print(json.dumps(monitor.url), flush=True)
        for line in sys.stdin:
            what, arguments = json.loads(line)
            print(json.dumps(getattr(served, what)(**arguments)), flush=True)


if __name__ == "__main__":
    main()
