"""A process manager with an embedded monitor: it starts, restarts and stops backends.

    python examples/embedded_host.py ['llama=python backend.py --addr {address}'...]

Without arguments it runs two demo backends. MONITOR_LISTEN says where the monitor listens.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from command_line import commands_by_model, print_curl_commands, with_new_address

from monitor_plugin import Backend, InvalidBackend, KnownModel, Monitor, hookimpl

DELAYS_SECONDS = (0, 0.5, 1, 2, 4, 8, 16, 30)  # before each start; the last one repeats
STABLE_SECONDS = 60  # a process that ran for so long is restarted after the first delay


class Program(threading.Thread):
    """Keeps the process of one model running, on its own thread, until `stop` is called."""

    def __init__(self, model: str, command: Sequence[str], folder: str, monitor: Monitor) -> None:
        super().__init__(name=f"program {model}", daemon=True)
        self._model, self._command, self._folder = model, command, folder
        self._hook = monitor.hook
        self._stopping = threading.Event()
        self._lock = threading.Lock()  # held to start, signal or reap a process
        self._process: subprocess.Popen[bytes] | None = None
        self.last_end: str | None = None

    @property
    def state(self) -> str:
        """The state of the model, as in `KnownModel`."""
        if self._process:
            return "running"
        return "stopped" if self._stopping.is_set() else "waiting"

    def run(self) -> None:
        """Start the process again after each end, with growing delays."""
        failures = 0
        while not self._stopping.wait(DELAYS_SECONDS[min(failures, len(DELAYS_SECONDS) - 1)]):
            began = time.monotonic()
            try:
                self._run_once()
            except (OSError, InvalidBackend) as error:
                logging.warning("%s: %s", self._model, error)
            failures = 1 if time.monotonic() - began >= STABLE_SECONDS else failures + 1

    def _run_once(self) -> None:
        command, address = with_new_address(self._command, self._folder)
        with self._lock:
            if self._stopping.is_set():  # stop() came first, and found no process
                return
            process = self._process = subprocess.Popen(command, start_new_session=True)
        about = {"model": self._model, "pid": process.pid}
        try:
            self._hook.monitor_backend_spawned(**about, address=address)
        finally:
            # No other process or group can have the PID before the process is reaped.
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
            with self._lock:
                os.killpg(process.pid, signal.SIGKILL)  # the processes that it left behind
                exit_code = process.wait()
                self._process = None
            self.last_end = f"process {process.pid} ended with {exit_code}"
            self._hook.monitor_backend_exited(**about, exit_code=exit_code)
            logging.warning("%s: %s", self._model, self.last_end)

    def stop(self, grace_seconds: float = 5.0) -> None:
        """End the process, by SIGKILL after the grace period, and start no other."""
        self._stopping.set()
        for number in (signal.SIGTERM, signal.SIGKILL):
            with self._lock:
                if self._process:
                    os.killpg(self._process.pid, number)
            self.join(grace_seconds)


class Host:
    """The commands by model, and the programs that run them."""

    def __init__(self, commands: Mapping[str, Sequence[str]], folder: str) -> None:
        self._commands, self._folder = commands, folder
        self.programs: dict[str, Program] = {}

    def start(self, model: str, monitor: Monitor) -> None:
        """Start the program of a model: a new one, as a thread cannot be started again."""
        program = Program(model, self._commands[model], self._folder, monitor)
        self.programs[model] = program
        program.start()

    @hookimpl
    def monitor_started(self, monitor: Monitor) -> None:
        """Keep the monitor for later starts."""
        self._monitor = monitor

    @hookimpl
    def monitor_list_models(self) -> Sequence[KnownModel]:
        """List all models, also those that do not run."""
        programs = list(self.programs.items())
        return [KnownModel(model, each.state, each.last_end, True) for model, each in programs]

    @hookimpl
    def monitor_start_model(self, model: str, timeout_seconds: float) -> bool | None:
        """Start a model that was stopped, or that waits for its next start."""
        program = self.programs.get(model)
        if program is None:
            return None  # not a model of this host
        if program.state != "running":
            program.stop()  # ends its wait
            self.start(model, self._monitor)
        return True  # the monitor waits until it is ready

    @hookimpl
    def monitor_stop_backend(self, backend: Backend, timeout_seconds: float) -> bool | None:
        """Stop the model, also if its process has crashed meanwhile, so that none is restarted."""
        program = self.programs.get(backend.model)
        if program is None:
            return None  # not a backend of this host: the monitor stops it
        program.stop(timeout_seconds / 2)
        return not program.is_alive()

    def stop(self) -> None:
        """Stop all programs at the same time."""
        with ThreadPoolExecutor(len(self.programs) or 1) as pool:
            list(pool.map(Program.stop, self.programs.values()))


def main() -> None:
    """Run the programs until SIGTERM or Ctrl-C."""
    commands = commands_by_model(__doc__)
    ended: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: ended.append(number))
    with tempfile.TemporaryDirectory() as folder:
        host = Host(commands, folder)
        with Monitor(plugins=[host]) as monitor:
            try:
                for model in commands:
                    host.start(model, monitor)
                print_curl_commands(monitor, list(commands))
                while not ended:  # a single wait would miss a signal that came just before it
                    time.sleep(0.2)
            finally:
                host.stop()


if __name__ == "__main__":
    main()
