"""The adapter to supervisord: a plugin of the monitor.

It asks supervisord what runs (`getAllProcessInfo`), and with which command lines
(`getAllConfigInfo`), after each event and at intervals. It has supervisord stop backends
(`stopProcess`), which then does not start them again.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

from supervisor.states import RUNNING_STATES, ProcessStates, getProcessStateDescription
from supervisor.xmlrpc import Faults

from ...domain.errors import ShutdownFailed
from ...domain.models import Backend
from ...hookspecs import hookimpl
from ...monitor import Monitor
from ...processes.process_table import read_ancestry
from ...shutdown.stop import format_pids
from ..discovery import BackendRule, Discovery, Program, split_command
from ..poller import Poller
from ..process_trees import ProcessTrees
from ..registry_sync import RegistrySync
from .client import SupervisordClient, SupervisordError

_POLL_SECONDS = 0.1
# supervisord restarts exited programs at its next tick; there is one each second.
_RESTART_SECONDS = 1.5
# supervisord sends SIGKILL just after stopwaitsecs, which is often the same as the stop's timeout.
_KILL_SECONDS = 0.5


class Adapter:
    """Registers supervisord's backends with a monitor, and has supervisord stop them.

    Args:
        supervisord: calls the supervisord that runs the programs.
        rules: the programs that are backends, besides those that declare it themselves.
        hook_timeout_seconds: the setting of the monitor, which limits how long the stop hook may
            exceed the timeout of a stop.
    """

    def __init__(
        self,
        supervisord: SupervisordClient,
        rules: Sequence[BackendRule] = (),
        hook_timeout_seconds: float = 1.0,
    ) -> None:
        self._supervisord = supervisord
        self._discovery = Discovery(rules)
        self._kill_seconds = min(_KILL_SECONDS, hook_timeout_seconds / 2)
        self._commands: dict[tuple[str, str, int], str] = {}  # by group, name and PID
        self._registry_sync: RegistrySync | None = None
        self._closing = threading.Event()
        self._poller = Poller("monitor-supervisord", self._poll)

    def poll_soon(self) -> None:
        """Ask supervisord soon what runs, after an event."""
        self._poller.poll_soon()

    @hookimpl
    def monitor_started(self, monitor: Monitor) -> None:
        """Start to register the backends that run."""
        self._registry_sync = RegistrySync(monitor)
        self._poller.start()

    @hookimpl
    def monitor_backend_gone(self) -> None:
        """Ask soon what runs: the program may go on, and then supervisord reports no event."""
        self._poller.poll_soon()

    @hookimpl
    def monitor_closing(self) -> None:
        """Stop registering, and stop waiting for programs that supervisord is stopping."""
        self._closing.set()
        self._poller.close()

    def _poll(self) -> None:
        infos = self._supervisord.call("getAllProcessInfo")
        running = [info for info in infos if info["state"] in RUNNING_STATES and info["pid"]]
        commands = self._configured_commands(running)
        programs = [
            _program(info, command) for info, command in zip(running, commands, strict=True)
        ]
        found = self._discovery.find(programs)
        if self._registry_sync and not self._closing.is_set():
            self._registry_sync.sync(found)

    def _configured_commands(self, running: Sequence[Mapping[str, Any]]) -> list[str]:
        """Return the configured command line of each process; empty if it is not known.

        supervisord is asked when there is a new process, as its answer takes half a millisecond of
        its time for each program. After a `reread` it would give the command lines of the next
        processes.
        """
        processes = [(info["group"], info["name"], info["pid"]) for info in running]
        if not self._commands.keys() >= set(processes):
            configuration = self._supervisord.call("getAllConfigInfo")
            commands = {(info["group"], info["name"]): info["command"] for info in configuration}
            self._commands = {
                each: self._commands.get(each) or commands.get(each[:2], "") for each in processes
            }
        return [self._commands[each] for each in processes]

    @hookimpl
    def monitor_stop_backend(self, backend: Backend, timeout_seconds: float) -> bool | None:
        """Have supervisord stop the backend's program, also if it has another process by now.

        Returns:
            None: the monitor stops what is left, such as the child of a shell. supervisord has then
            stopped the program or is about to kill it, or the backend is not one of its programs.

        Raises:
            ShutdownFailed: supervisord cannot stop the program, or not in time.
        """
        try:
            name = self._program_of(backend.pid)
            if name is not None:
                self._stop(backend, name, timeout_seconds)
            return None
        except SupervisordError as error:
            raise ShutdownFailed(backend.model, str(error)) from None

    def _program_of(self, pid: int) -> str | None:
        """Return the program to which a process belongs or belonged; None if there is none."""
        infos = self._supervisord.call("getAllProcessInfo")
        names = {info["pid"]: _program(info).name for info in infos}
        for ancestor, _ in read_ancestry(pid):
            if ancestor in names:
                return names[ancestor]
        return self._registry_sync.program_of(pid) if self._registry_sync else None

    def _stop(self, backend: Backend, name: str, seconds: float) -> None:
        """Stop a program, and all processes of the program that are no members of the backend."""
        deadline = time.monotonic() + seconds
        with ProcessTrees() as others:
            try:
                self._stop_program(backend, name, seconds, others)
                others.end(deadline - time.monotonic(), self._closing)
            except OSError as error:
                why = f"processes of program {name!r} cannot be looked at: {error}"
                raise ShutdownFailed(backend.model, why) from None
            if pids := others.alive():
                why = f"program {name!r} is stopped, and processes that it started still run"
                raise ShutdownFailed(backend.model, f"{why}: {format_pids(pids)}", pids)

    def _stop_program(
        self, backend: Backend, name: str, seconds: float, others: ProcessTrees
    ) -> None:
        """Stop a program in any state, and wait until supervisord will not start it again.

        Its processes that the monitor does not stop with the backend are added to `others`.
        """
        deadline = time.monotonic() + seconds + self._kill_seconds
        sync = self._registry_sync
        own_pid = sync.own_process_of(backend.pid) if sync else backend.pid
        exited_at = None
        while True:
            state, pid = self._state(name)
            if pid not in (0, own_pid):
                others.add(pid)
            others.rescan()
            if state in RUNNING_STATES:
                self._begin_stop(name)
            elif state in (None, ProcessStates.STOPPED, ProcessStates.FATAL):
                return None
            elif state == ProcessStates.EXITED:
                exited_at = exited_at or time.monotonic()
                if time.monotonic() >= exited_at + _RESTART_SECONDS:
                    return None
            elif state != ProcessStates.STOPPING:
                description = getProcessStateDescription(state)
                raise ShutdownFailed(backend.model, f"program {name!r} is in state {description}")
            if time.monotonic() >= deadline:
                return self._check_stopwaitsecs(backend, name, seconds)
            if self._closing.wait(_POLL_SECONDS):
                why = f"the monitor was closed while supervisord was stopping program {name!r}"
                raise ShutdownFailed(backend.model, why)

    def _state(self, name: str) -> tuple[int | None, int]:
        """Return a program's state and PID; None and 0 if the program has been removed."""
        try:
            info = self._supervisord.call("getProcessInfo", name)
            return int(info["state"]), int(info["pid"])
        except SupervisordError as error:
            if error.fault == Faults.BAD_NAME:
                return None, 0
            raise

    def _begin_stop(self, name: str) -> None:
        try:
            # False: do not wait, as that may exceed the timeout of a call.
            self._supervisord.call("stopProcess", name, False)
        except SupervisordError as error:
            # It has just ended or been removed, which its state says at the next poll.
            if error.fault not in (Faults.NOT_RUNNING, Faults.BAD_NAME):
                raise

    def _check_stopwaitsecs(self, backend: Backend, name: str, seconds: float) -> None:
        """Raise an error if supervisord kills the program later than `seconds` after the stop."""
        for info in self._supervisord.call("getAllConfigInfo"):
            if _program({**info, "pid": 0}).name == name and info["stopwaitsecs"] > seconds:
                raise ShutdownFailed(
                    backend.model,
                    f"program {name!r} has stopwaitsecs={info['stopwaitsecs']} to end itself, and "
                    f"did not within the {seconds:g} s of stop_timeout_seconds, which should not "
                    "be shorter; supervisord goes on stopping it",
                )


def _program(info: Mapping[str, Any], command: str = "") -> Program:
    name = f"{info['group']}:{info['name']}"
    display_name = info["name"] if info["group"] == info["name"] else name
    return Program(name, display_name, info["pid"], split_command(command))
