"""A host that forks without `subprocess`, in a process with gRPC's threads and channels.

    python examples/forking_host.py ['llama=python backend.py --addr {address}'...]

Without arguments it runs two demo backends. MONITOR_LISTEN says where the monitor listens. As in
embedded_host.py, crashed backends are restarted, and those that the monitor shuts down are not
until it starts them.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import tempfile
import threading
import time
import warnings
from collections.abc import Mapping, Sequence

ENVIRONMENT = dict(os.environ)  # for the programs, without the variable below

# Otherwise gRPC's fork handlers abort some children between fork and exec. gRPC reads the variable
# when it is imported, so set it before the import of the monitor.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"

from command_line import commands_by_model, print_curl_commands, with_new_address  # noqa: E402

from monitor_plugin import (  # noqa: E402
    Backend,
    InvalidBackend,
    KnownModel,
    Monitor,
    hookimpl,
)

RESTART_SECONDS = 0.5
POLL_SECONDS = 0.05


def spawn(command: Sequence[str]) -> int:
    """Fork, close the inherited descriptors, and exec; return the PID after that."""
    path = shutil.which(command[0]) or command[0]  # before the fork: the child must do little
    most = max(map(int, os.listdir("/proc/self/fd"))) + 1
    reader, writer = os.pipe()  # exec, or the child's end, closes the writer
    pid = os.fork()
    if pid == 0:
        try:
            os.setsid()
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # exec would keep it ignored
            os.dup2(writer, 3, inheritable=False)
            os.closerange(4, most)
            os.execve(path, list(command), ENVIRONMENT)  # noqa: S606
        finally:
            os._exit(127)
    os.close(writer)
    os.read(reader, 1)  # waits until the child leads its session, which can then be signalled
    os.close(reader)
    return pid


class Host:
    """The commands by model, the models that are to run, and the PIDs of those that run."""

    def __init__(self, commands: Mapping[str, Sequence[str]], folder: str) -> None:
        self._commands = dict(commands)
        self._folder = folder
        self._wanted = set(commands)
        self._pids: dict[str, int] = {}
        self._last_ends: dict[str, str] = {}
        self._due = dict.fromkeys(commands, 0.0)
        self._changed = threading.Condition()  # held to start, signal or reap a process

    def poll(self, monitor: Monitor) -> None:
        """Reap the processes that have ended, and start those that are due."""
        for model, pid in list(self._pids.items()):
            flags = os.WEXITED | os.WNOHANG
            if os.waitid(os.P_PID, pid, flags | os.WNOWAIT) is None:
                continue
            with self._changed:
                os.killpg(pid, signal.SIGKILL)  # the processes that it left behind
                exit_code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                del self._pids[model]
                self._last_ends[model] = f"process {pid} ended with {exit_code}"
                self._due[model] = time.monotonic() + RESTART_SECONDS
                self._changed.notify_all()
            logging.warning("%s: %s", model, self._last_ends[model])
            monitor.hook.monitor_backend_exited(model=model, pid=pid, exit_code=exit_code)
        for model in list(self._commands):
            with self._changed:
                is_due = model in self._wanted and time.monotonic() >= self._due[model]
                if not is_due or model in self._pids:
                    continue
                command, address = with_new_address(self._commands[model], self._folder)
                pid = self._pids[model] = spawn(command)
            try:
                monitor.hook.monitor_backend_spawned(model=model, pid=pid, address=address)
            except InvalidBackend as error:
                logging.warning("%s: %s", model, error)

    @hookimpl
    def monitor_list_models(self) -> Sequence[KnownModel]:
        """List all models, also those that do not run."""
        with self._changed:
            waiting = dict.fromkeys(self._wanted, "waiting")
            states = {**dict.fromkeys(self._commands, "stopped"), **waiting}
            states |= dict.fromkeys(self._pids, "running")
            return [
                KnownModel(model, state, self._last_ends.get(model), can_start=True)
                for model, state in states.items()
            ]

    @hookimpl
    def monitor_start_model(self, model: str, timeout_seconds: float) -> bool | None:
        """Let the main thread start a model now. The monitor waits until it is ready."""
        with self._changed:
            if model not in self._commands:
                return None  # not a model of this host
            self._wanted.add(model)
            self._due[model] = 0.0
        return True

    @hookimpl
    def monitor_stop_backend(self, backend: Backend, timeout_seconds: float) -> bool | None:
        """Let the model stay stopped, and end its process, which the main thread reaps."""
        with self._changed:
            if backend.model not in self._commands:
                return None  # not a backend of this host: the monitor stops it
            self._wanted.discard(backend.model)
            return self._end([backend.model], timeout_seconds / 2)

    def stop(self) -> None:
        """End all processes, which the main thread reaps."""
        with self._changed:
            self._wanted.clear()
            self._end(list(self._pids), 5.0)

    def _end(self, models: Sequence[str], grace_seconds: float) -> bool:
        for number in (signal.SIGTERM, signal.SIGKILL):
            for model in models:
                if model in self._pids:
                    os.killpg(self._pids[model], number)
            if self._changed.wait_for(lambda: not self._pids.keys() & models, grace_seconds):
                return True
        return False


def main() -> None:
    """Run the programs until SIGTERM or Ctrl-C."""
    # Python warns of forks in a process with threads, because a child must not take a lock that a
    # thread may hold. These children exec at once.
    warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
    commands = commands_by_model(__doc__)
    ended: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: ended.append(number))
    with tempfile.TemporaryDirectory() as folder:
        host = Host(commands, folder)
        with Monitor(plugins=[host]) as monitor:
            print_curl_commands(monitor, list(commands))
            try:
                while not ended:
                    host.poll(monitor)
                    time.sleep(POLL_SECONDS)
            finally:
                stop = threading.Thread(target=host.stop)
                stop.start()
                while stop.is_alive():
                    host.poll(monitor)
                    stop.join(POLL_SECONDS)


if __name__ == "__main__":
    main()
