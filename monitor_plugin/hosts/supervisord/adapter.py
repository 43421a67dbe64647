"""The adapter to supervisord: a plugin of the monitor.

It asks supervisord what runs (`getAllProcessInfo`), and with which command lines
(`getAllConfigInfo`), after each event and at intervals. It has supervisord stop backends
(`stopProcess`), which then does not start them again, and start models (`startProcess`).
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from supervisor.states import RUNNING_STATES, ProcessStates, getProcessStateDescription
from supervisor.xmlrpc import Faults

from ...domain.errors import ShutdownFailed, StartFailed
from ...domain.known_models import KnownModel
from ...domain.logs import LogTail
from ...domain.models import Backend
from ...hookspecs import hookimpl
from ...monitor import Monitor
from ...processes.process_table import read_ancestry
from ...shutdown.stop import format_pids
from ..discovery import BackendRule, Discovery, Program
from ..poller import Poller
from ..process_trees import ProcessTrees
from ..registry_sync import RegistrySync
from .client import SupervisordClient, SupervisordError
from .configuration import Configuration
from .logs import ProgramLogs
from .programs import ModelProgram, known_models, model_program

_logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.1
# supervisord restarts exited programs at its next tick; there is one each second.
_RESTART_SECONDS = 1.5
# supervisord sends SIGKILL just after stopwaitsecs, which is often the same as the stop's timeout.
_KILL_SECONDS = 0.5


class Adapter:
    """Registers supervisord's backends with a monitor, and has supervisord start and stop them.

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
        self._configuration = Configuration(supervisord)
        self._logs = ProgramLogs(supervisord)
        self._programs: Sequence[ModelProgram] = ()  # as the last poll found them
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
        self._configuration.update(infos)
        programs = [_program(info, self._configuration.of(info).command) for info in infos]
        found = self._discovery.find(programs)
        self._programs = list(self._model_programs(programs, infos))
        self._logs.follow(self._programs)
        if self._registry_sync and not self._closing.is_set():
            self._registry_sync.sync(found)

    def _model_programs(
        self, programs: Iterable[Program], infos: Iterable[Mapping[str, Any]]
    ) -> Iterator[ModelProgram]:
        """List the programs that are models."""
        for program, info in zip(programs, infos, strict=True):
            model = self._discovery.model_of(program.name, program.display_name, program.command)
            if model is not None:
                redirects = self._configuration.of(info).redirects
                yield model_program(model, program.name, program.display_name, info, redirects)

    @hookimpl
    def monitor_list_models(self) -> Sequence[KnownModel]:
        """List the models of the programs that supervisord has, as the last poll found them."""
        return known_models(self._programs)

    @hookimpl
    def monitor_start_model(self, model: str, timeout_seconds: float) -> bool | None:
        """Have supervisord start all programs of a model that do not run.

        A program that supervisord is stopping is started when it has stopped. supervisord itself
        starts a program in BACKOFF again.

        Returns:
            True: a program runs, or supervisord is starting it. None: no program has that model.

        Raises:
            StartFailed: supervisord cannot start any program of the model.
        """
        deadline = time.monotonic() + timeout_seconds
        names = self._names_of(model)
        if not names:  # the program may be new, such as after `supervisorctl update`
            self._poller.wait_for_poll(timeout_seconds)
            names = self._names_of(model)
        if not names:
            return None
        failures = [each for each in (self._start(name, deadline) for name in names) if each]
        if len(failures) == len(names):
            raise StartFailed(model, "; ".join(failures))
        for failure in failures:
            _logger.warning("model %r runs without one of its programs: %s", model, failure)
        # So that `monitor_list_models` has the new states.
        self._poller.wait_for_poll(deadline - time.monotonic())
        return True

    def _names_of(self, model: str) -> list[str]:
        return [each.name for each in self._programs if each.model == model]

    def _start(self, name: str, deadline: float) -> str | None:
        """Start a program unless it runs; return why supervisord does not start it."""
        try:
            state, _ = self._state(name)
            while state == ProcessStates.STOPPING:  # `startProcess` would do nothing
                if time.monotonic() >= deadline:
                    return f"supervisord is still stopping program {name!r}"
                if self._closing.wait(_POLL_SECONDS):
                    return "the monitor was closed"
                state, _ = self._state(name)
            if state not in RUNNING_STATES:
                # False: do not wait, as that may exceed the timeout of a call.
                self._supervisord.call("startProcess", name, False)
        except SupervisordError as error:
            # SPAWN_ERROR: its process has ended already. Its state says what supervisord does next.
            if error.fault not in (Faults.ALREADY_STARTED, Faults.SPAWN_ERROR):
                return f"program {name!r}: {error}"
        return None

    @hookimpl
    def monitor_read_log(
        self, model: str, pid: int | None, stream: str, max_bytes: int
    ) -> LogTail | bytes | None:
        """Read the end of a program's log: see `ProgramLogs.read`.

        Without a PID, read the log of the model's program that supervisord has started last.
        """
        if pid is None:
            same = [each for each in self._programs if each.model == model]
            last = max(same, key=lambda each: each.started_at, default=None)
            return self._logs.read(last, None, stream, max_bytes) if last else None
        sync = self._registry_sync
        name = sync.program_of(pid) if sync else None
        program = next((each for each in self._programs if each.name == name), None)
        if sync is None or program is None:
            return None
        return self._logs.read(program, sync.own_process_of(pid), stream, max_bytes)

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
        sync = self._registry_sync
        if sync and sync.is_adopted(pid):  # its ancestors may belong to another program
            return sync.program_of(pid)
        infos = self._supervisord.call("getAllProcessInfo")
        names = {info["pid"]: _full_name(info) for info in infos}
        for ancestor, _ in read_ancestry(pid):
            if ancestor in names:
                return names[ancestor]
        return sync.program_of(pid) if sync else None

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
            if _full_name(info) == name and info["stopwaitsecs"] > seconds:
                raise ShutdownFailed(
                    backend.model,
                    f"program {name!r} has stopwaitsecs={info['stopwaitsecs']} to end itself, and "
                    f"did not within the {seconds:g} s of stop_timeout_seconds, which should not "
                    "be shorter; supervisord goes on stopping it",
                )


def _full_name(info: Mapping[str, Any]) -> str:
    return f"{info['group']}:{info['name']}"


def _program(info: Mapping[str, Any], command: Sequence[str]) -> Program:
    name = _full_name(info)
    display_name = info["name"] if info["group"] == info["name"] else name
    pid = info["pid"] if info["state"] in RUNNING_STATES else 0
    return Program(name, display_name, pid, command)
