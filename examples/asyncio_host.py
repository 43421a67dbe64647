"""The process manager of embedded_host.py on asyncio. The monitor never blocks the event loop.

    python examples/asyncio_host.py ['llama=python backend.py --addr {address}'...]

Without arguments it runs two demo backends. MONITOR_LISTEN says where the monitor listens.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence

from command_line import commands_by_model, print_curl_commands, with_new_address

from monitor_plugin import Backend, InvalidBackend, KnownModel, Monitor, hookimpl

DELAYS_SECONDS = (0.5, 1, 2, 4, 8, 16, 30)  # before each restart; the last one repeats
STABLE_SECONDS = 60  # a process that ran for so long is restarted after the first delay


class Program:
    """Keeps the process of one model running, in its own task, until `stop` is called."""

    def __init__(self, model: str, command: Sequence[str], folder: str, monitor: Monitor) -> None:
        self._model, self._command, self._folder = model, command, folder
        self._hook = monitor.hook
        self._stopping = asyncio.Event()
        self._process: asyncio.subprocess.Process | None = None
        self.last_end: str | None = None
        self._task = asyncio.create_task(self._run())

    @property
    def state(self) -> str:
        """The state of the model, as in `KnownModel`."""
        if self._process and self._process.returncode is None:
            return "running"
        return "stopped" if self._stopping.is_set() else "waiting"

    async def _run(self) -> None:
        loop, failures = asyncio.get_running_loop(), 0
        while not self._stopping.is_set():
            began = loop.time()
            try:
                await self._run_once()
            except (OSError, InvalidBackend) as error:
                logging.warning("%s: %s", self._model, error)
            failures = 1 if loop.time() - began >= STABLE_SECONDS else failures + 1
            delay = DELAYS_SECONDS[min(failures, len(DELAYS_SECONDS)) - 1]
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), delay)

    async def _run_once(self) -> None:
        command, address = with_new_address(self._command, self._folder)
        process = await asyncio.create_subprocess_exec(*command, start_new_session=True)
        self._process = process
        about = {"model": self._model, "pid": process.pid}
        try:
            if self._stopping.is_set():  # stop() came first, and found no process
                process.terminate()
            # On a thread, because the call waits for hooks, up to a second for each.
            await asyncio.to_thread(self._hook.monitor_backend_spawned, **about, address=address)
        finally:
            exit_code = await process.wait()
            with contextlib.suppress(ProcessLookupError):
                # Kills processes that it left behind. Without any, there is no such group.
                os.killpg(process.pid, signal.SIGKILL)
            self.last_end = f"process {process.pid} ended with {exit_code}"
            await asyncio.to_thread(self._hook.monitor_backend_exited, **about, exit_code=exit_code)
            logging.warning("%s: %s", self._model, self.last_end)

    async def stop(self, grace_seconds: float = 5.0) -> bool:
        """End the process, by SIGKILL after the grace period, and start no other."""
        self._stopping.set()
        for number in (signal.SIGTERM, signal.SIGKILL):
            if self._process and self._process.returncode is None:  # it is not reaped yet
                os.killpg(self._process.pid, number)
            await asyncio.wait({self._task}, timeout=grace_seconds)
        return self._task.done()


class Host:
    """The commands by model, and the programs that run them. Make it in the event loop."""

    def __init__(self, commands: Mapping[str, Sequence[str]], folder: str) -> None:
        self._commands, self._folder = commands, folder
        self._loop = asyncio.get_running_loop()
        if sys.version_info < (3, 12):  # later versions use pidfds by default: only the loop reaps
            asyncio.set_child_watcher(watcher := asyncio.PidfdChildWatcher())
            watcher.attach_loop(self._loop)
        self.programs: dict[str, Program] = {}

    async def start(self, model: str, monitor: Monitor) -> None:
        """Start a model that was stopped, or that waits for its next start."""
        program = self.programs.get(model)
        if program is None or program.state != "running":
            if program:
                await program.stop()  # ends its wait
            self.programs[model] = Program(model, self._commands[model], self._folder, monitor)

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
        """Start a model. The monitor then waits until it is ready."""
        if model not in self._commands:
            return None  # not a model of this host
        start = self.start(model, self._monitor)
        asyncio.run_coroutine_threadsafe(start, self._loop).result()
        return True

    @hookimpl
    def monitor_stop_backend(self, backend: Backend, timeout_seconds: float) -> bool | None:
        """Stop the model, also if its process has crashed meanwhile, so that none is restarted."""
        program = self.programs.get(backend.model)
        if program is None:
            return None  # not a backend of this host: the monitor stops it
        # The event loop stops the program, while this thread of a hook waits.
        stop = program.stop(timeout_seconds / 2)
        return asyncio.run_coroutine_threadsafe(stop, self._loop).result()


async def run(commands: Mapping[str, Sequence[str]], folder: str) -> None:
    """Run the programs until SIGTERM or Ctrl-C."""
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    host = Host(commands, folder)
    monitor = await asyncio.to_thread(Monitor, None, [host])
    await asyncio.to_thread(monitor.start)
    try:
        for model in commands:
            await host.start(model, monitor)
        print_curl_commands(monitor, list(commands))
        await ended.wait()
    finally:
        await asyncio.gather(*(program.stop() for program in host.programs.values()))
        await asyncio.to_thread(monitor.close)  # on a thread, as hooks may wait for the loop


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        asyncio.run(run(commands_by_model(__doc__), temporary))
