"""A host that starts its programs when it is asked to: in the tests' process, or in its own.

Run as a program, it is a node of a cluster: the settings are environment variables, and each
argument is `MODEL:SWITCHES` of a program. It prints the monitor's URL, and runs until its standard
input ends. Each start of a program is appended as one line, the name of the model, to a file that
the environment variable `STARTS` names.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

from monitor_plugin import KnownModel, Monitor, Settings, StartFailed, hookimpl

from ...support import LIGHT_BACKEND


class StartingHost:
    """Knows programs by the names of their models, and starts and reaps their processes.

    The switches are those of a demo backend; a program without switches, or with `--no-status`
    alone, is a light backend. Two more switches make a program fail: `die` exits with code 7 after
    a line on standard error, and `refuse` is not started at all.

    Args:
        monitor: the monitor.
        programs: the switches of each model's program.
        starts: the file that gets a line for each start.

    Attributes:
        asked: the models of the calls of `monitor_start_model`.
        started: the models of the processes that were started.
        hold: while it is not set, `monitor_start_model` waits before the start.
        hold_list: while it is not set, `monitor_list_models` waits.
    """

    def __init__(self, monitor: Monitor, programs: Mapping[str, str], starts: Path) -> None:
        self._monitor = monitor
        self.programs = dict(programs)
        self._starts = starts
        self._processes: dict[str, subprocess.Popen[str]] = {}
        self._states = dict.fromkeys(programs, "stopped")
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self.asked: list[str] = []
        self.started: list[str] = []
        self.hold = threading.Event()
        self.hold.set()
        self.hold_list = threading.Event()
        self.hold_list.set()
        monitor.plugin_manager.register(self)

    @hookimpl
    def monitor_list_models(self) -> list[KnownModel]:
        """List the programs."""
        self.hold_list.wait(60)
        return [
            KnownModel(model, self._states[model], can_start=switches != "refuse")
            for model, switches in list(self.programs.items())
        ]

    @hookimpl
    def monitor_start_model(self, model: str) -> bool | None:
        """Start the program of a model, unless it runs."""
        self.asked.append(model)
        if model not in self.programs:
            return None
        if self.programs[model] == "refuse":
            raise StartFailed(model, "this program is not to be started")
        self.hold.wait(60)
        with self._lock:
            process = self._processes.get(model)
            if process is None or process.poll() is not None:
                self._start(model)
        return True

    @hookimpl
    def monitor_read_log(self, model: str) -> bytes | None:
        """Return the last words of the programs that die."""
        return b"the secret last words\n" if self.programs.get(model) == "die" else None

    def _start(self, model: str) -> None:
        self.started.append(model)
        with self._starts.open("a") as file:
            file.write(f"{model}\n")
        switches = self.programs[model]
        command = shlex.split(f"{LIGHT_BACKEND} {switches}")
        if switches not in ("", "--no-status"):
            command = [sys.executable, "-m", "monitor_plugin.demo.backend", "--end-with-parent"]
            command += ["--weights-mib", "2", "--kv-cache-mib", "1", *switches.split()]
        if switches == "die":
            command = ["sh", "-c", "echo the secret last words >&2; exit 7"]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self._processes[model] = process
        self._states[model] = "running"
        assert process.stdout is not None
        address = process.stdout.readline().removeprefix("serving on ").strip()
        if address:
            self._monitor.hook.monitor_backend_spawned(
                model=model, pid=process.pid, address=address
            )
        self._threads.append(threading.Thread(target=self._wait, args=(model, process)))
        self._threads[-1].start()

    def _wait(self, model: str, process: subprocess.Popen[str]) -> None:
        exit_code = process.wait()
        assert process.stdout is not None
        process.stdout.close()
        self._states[model] = "exited"
        with contextlib.suppress(Exception):  # the monitor has closed
            self._monitor.hook.monitor_backend_exited(
                model=model, pid=process.pid, exit_code=exit_code
            )

    def close(self) -> None:
        """End the processes."""
        self.hold.set()
        self.hold_list.set()
        for process in self._processes.values():
            process.kill()
        for thread in self._threads:
            thread.join()


def main() -> None:
    """Run until standard input is closed."""
    programs = {}
    for argument in sys.argv[1:]:
        model, _, switches = argument.partition(":")
        programs[model] = switches
    with Monitor(Settings.from_environment(os.environ)) as monitor:
        host = StartingHost(monitor, programs, Path(os.environ["STARTS"]))
        print(monitor.url, flush=True)
        sys.stdin.read()
        host.close()


if __name__ == "__main__":
    main()
