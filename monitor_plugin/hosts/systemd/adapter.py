"""The adapter to systemd: a plugin of the monitor.

It follows systemd's signals about services, and asks systemd about those that have changed. It has
systemd stop backends (`StopUnit`), which then does not start them again, and start models
(`StartUnit`).
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ...domain.errors import ShutdownFailed, StartFailed
from ...domain.known_models import KnownModel
from ...domain.models import Backend
from ...domain.units import HostExit, HostUnit
from ...hookspecs import hookimpl
from ...monitor import Monitor
from ...shutdown.stop import format_pids
from ..discovery import BackendRule, Discovery
from ..poller import Poller
from ..process_trees import ProcessTrees
from ..registry_sync import RegistrySync
from .client import CALL_SECONDS, SERVICE, SystemdClient, SystemdError
from .exits import UnitExits, exit_code_of
from .logs import UnitLogs
from .units import Unit, UnitTable, describe_unit, known_models

_logger = logging.getLogger(__name__)

# How long one wait for the end of a job takes at most: its signal may get lost, such as in a
# restart of systemd or of the bus. Then the state of the unit is read.
_JOB_SECONDS = 1.0
# How much of the timeout of a hook journalctl may take.
_LOG_SHARE = 0.9
# The time that a call has also at the end of a stop.
_MIN_CALL_SECONDS = 0.2
# The pause between two attempts to ask a systemd that cannot be reached.
_RETRY_SECONDS = 0.1
# The number of processes of which the run of the unit is known.
_MAX_INVOCATIONS = 2000
_POLKIT_HELP = (
    "the monitor's user needs a rule of polkit for org.freedesktop.systemd1.manage-units; "
    "examples/systemd has one"
)


class Adapter:
    """Registers systemd's backends with a monitor, and has systemd start and stop them.

    Args:
        systemd: calls systemd.
        rules: the services that are backends, besides those that declare it themselves.
        hook_timeout_seconds: the setting of the monitor, which limits how long the stop hook may
            exceed the timeout of a stop.
    """

    def __init__(
        self,
        systemd: SystemdClient,
        rules: Sequence[BackendRule] = (),
        hook_timeout_seconds: float = 1.0,
    ) -> None:
        self._systemd = systemd
        self._units = UnitTable(systemd, lambda unit: self._model_of(unit) is not None)
        # A service such as sshd or a user's manager runs what others start: their command lines
        # do not make the service a backend.
        self._discovery = Discovery(rules, searches_members=False)
        self._overrun_seconds = hook_timeout_seconds / 2
        self._monitor: Monitor
        self._registry_sync: RegistrySync | None = None
        self._models: Sequence[tuple[str, Unit]] = ()  # as the last poll found them
        self._invocations: dict[int, str] = {}  # by the PIDs of the main processes
        self._exits = UnitExits()
        self._new_exits: deque[tuple[int, HostExit]] = deque(maxlen=_MAX_INVOCATIONS)
        self._logs = UnitLogs(_LOG_SHARE * hook_timeout_seconds)
        self._closing = threading.Event()
        self._poller = Poller("monitor-systemd", self._poll)

    def connect(self) -> None:
        """Connect to systemd.

        Raises:
            SystemdError: systemd cannot be reached. Further attempts are made until the monitor
                closes.
        """
        self._systemd.start(self._record_change)

    def _record_change(self, name: str | None, properties: Mapping[str, Any]) -> None:
        if found := self._exits.record(properties):
            self._new_exits.append(found)
        self._units.record_change(name)
        self._poller.poll_soon()

    @hookimpl
    def monitor_started(self, monitor: Monitor) -> None:
        """Start to register the backends that run."""
        self._monitor = monitor
        self._registry_sync = RegistrySync(monitor)
        self._poller.start()

    @hookimpl
    def monitor_backend_gone(self) -> None:
        """Look soon what runs: another process of the service may go on."""
        self._poller.poll_soon()

    @hookimpl
    def monitor_closing(self) -> None:
        """Stop registering, and stop waiting for services that systemd is stopping."""
        self._closing.set()
        self._systemd.close()
        self._poller.close()

    def _poll(self) -> None:
        try:
            self._units.refresh()
        except SystemdError:
            if self._closing.is_set():  # the client is closed, too
                return
            raise
        units = self._units.units()
        found = self._discovery.find([each.program() for each in units])
        models = []
        for unit in units:
            model = self._model_of(unit)
            if model is not None:
                models.append((model, unit))
        self._models = models
        self._record_invocations(units)
        if self._registry_sync and not self._closing.is_set():
            self._report_exits(self._registry_sync)
            self._registry_sync.sync(found)

    def _report_exits(self, sync: RegistrySync) -> None:
        """Report the exit codes of main processes, which the monitor may not be able to read."""
        while self._new_exits:
            pid, exit = self._new_exits.popleft()
            name = sync.program_of(pid)
            model = next((model for model, unit in self._models if unit.name == name), None)
            if model is not None:
                self._monitor.hook.monitor_backend_exited(
                    model=model, pid=pid, exit_code=exit_code_of(exit)
                )

    def _record_invocations(self, units: Iterable[Unit]) -> None:
        """Record which run of its unit each process belongs to; the unit may run again soon."""
        for unit in units:
            if unit.main_pid:
                self._invocations.pop(unit.main_pid, None)
                self._invocations[unit.main_pid] = unit.invocation_id
        while len(self._invocations) > _MAX_INVOCATIONS:
            del self._invocations[next(iter(self._invocations))]

    def _model_of(self, unit: Unit) -> str | None:
        return self._discovery.model_of(
            unit.name, unit.display_name, unit.command, unit.environment
        )

    @hookimpl
    def monitor_list_models(self) -> Sequence[KnownModel]:
        """List the models of the services that systemd has, as the last poll found them."""
        return known_models(self._models)

    @hookimpl
    def monitor_describe_unit(self, backend: Backend) -> HostUnit | None:
        """Describe the backend's service, with systemd's own figures."""
        name = self._registry_sync.program_of(backend.pid) if self._registry_sync else None
        if name is None:
            return None
        try:
            return describe_unit(name, self._systemd.properties(name, SERVICE))
        except SystemdError as error:  # the poller logs that systemd cannot be reached
            _logger.debug("service %r: %s", name, error)
            return None

    @hookimpl
    def monitor_explain_exit(self, backend: Backend) -> HostExit | None:
        """Return systemd's result of the run to which the backend belonged."""
        sync = self._registry_sync
        return self._exits.of(sync.own_process_of(backend.pid)) if sync else None

    @hookimpl
    def monitor_read_log(
        self, model: str, pid: int | None, stream: str, max_bytes: int
    ) -> bytes | None:
        """Read the end of what the run of a service has written: see `UnitLogs`.

        Without a PID, read that of the model's service that systemd has started last. A service
        whose output is a file has no log here: the monitor reads that file.
        """
        sync = self._registry_sync
        if pid is None:
            same = [unit for each, unit in self._models if each == model]
            unit = max(same, key=lambda each: each.started_at, default=None)
            invocation = unit.invocation_id if unit else ""
        else:
            name = sync.program_of(pid) if sync else None
            unit = next((each for _, each in self._models if each.name == name), None)
            invocation = self._invocations.get(sync.own_process_of(pid), "") if sync else ""
        if unit is None or stream not in unit.journal_streams:
            return None
        found = invocation or self._logs.find_invocation(
            unit.name, pid, is_user_unit=self._systemd.is_user
        )
        return self._logs.read(found, max_bytes) if found else None

    @hookimpl
    def monitor_start_model(self, model: str, timeout_seconds: float) -> bool | None:
        """Have systemd start all services of a model that do not run.

        systemd itself starts a service in `auto-restart` again, and a service that it is stopping
        when that has stopped. A service that has hit its start limit is refused, as `systemctl
        start` refuses it.

        Returns:
            True: a service runs, or systemd is starting it. None: no service has that model.

        Raises:
            StartFailed: systemd cannot start any service of the model.
        """
        deadline = time.monotonic() + timeout_seconds
        names = self._names_of(model)
        if not names:  # the service may be new
            self._poller.wait_for_poll(timeout_seconds)
            names = self._names_of(model)
        if not names:
            return None
        starts = [self._begin_start(name, deadline) for name in names]
        failures = [
            each for each in (self._await_start(*start, deadline) for start in starts) if each
        ]
        if len(failures) == len(names):
            raise StartFailed(model, "; ".join(failures))
        for failure in failures:
            _logger.warning("model %r runs without one of its services: %s", model, failure)
        # So that `monitor_list_models` has the new states.
        self._poller.wait_for_poll(deadline - time.monotonic())
        return True

    def _names_of(self, model: str) -> list[str]:
        return [unit.name for each, unit in self._models if each == model]

    def _begin_start(self, name: str, deadline: float) -> tuple[str, int, str | SystemdError]:
        """Have systemd start a service.

        Returns:
            Its name, when its last process was started before, and the path of the job.
        """
        try:
            unit = self._units.read(name, _call_seconds(deadline))
            started_at = unit.started_at if unit else 0
            return (
                name,
                started_at,
                self._systemd.start_job("StartUnit", name, _call_seconds(deadline)),
            )
        except SystemdError as error:
            return name, 0, error

    def _await_start(
        self, name: str, started_before: int, job: str | SystemdError, deadline: float
    ) -> str | None:
        """Wait until the process of a service is started; return why systemd does not start it."""
        try:
            if isinstance(job, SystemdError):
                raise job
            while True:
                result = self._systemd.wait_for_job(job, min(_JOB_SECONDS, _left(deadline)))
                unit = self._units.read(name)
                if unit is None:
                    return f"systemd does not know service {name!r} any more"
                if result not in (None, "done"):
                    why = f"systemd's job to start it ended with the result {result!r}"
                    # Where the limit is hit after failures, `Result` still has the last of them.
                    if result == "failed" and unit.started_at == started_before:
                        why += " and no process was started"
                        why += f" (if that is its limit of starts: systemctl reset-failed {name})"
                    return _describe_failure(unit, why)
                if result and unit.has_ended:
                    why = "systemd has started it, and it has ended"
                    if not unit.condition_result:
                        why = "a condition of its unit is not met"
                    return _describe_failure(unit, why)
                # While it becomes ready, which may take it long, the monitor waits for that.
                if result or unit.main_pid or time.monotonic() >= deadline:
                    return None
        except SystemdError as error:
            return f"service {name!r}: {_explain(error)}"

    @hookimpl
    def monitor_stop_backend(self, backend: Backend, timeout_seconds: float) -> bool | None:
        """Have systemd stop the backend's service, also if it has another process by now.

        Returns:
            None: the monitor stops what is left, such as what `KillMode=process` has spared.
            systemd has then stopped the service, or the backend is not one of its services.

        Raises:
            ShutdownFailed: systemd did not stop the service, or not in time.
        """
        sync = self._registry_sync
        name = sync.program_of(backend.pid) if sync else None
        if sync is None or name is None:
            return None
        deadline = time.monotonic() + timeout_seconds
        with ProcessTrees() as others:
            try:
                unit = self._units.get(name)
                if unit and unit.main_pid not in (0, sync.own_process_of(backend.pid)):
                    others.add(unit.main_pid)
                self._stop(backend, name, deadline + self._overrun_seconds, others)
                others.end(deadline - time.monotonic(), self._closing)
            except SystemdError as error:
                raise ShutdownFailed(
                    backend.model, f"service {name!r}: {_explain(error)}"
                ) from None
            except OSError as error:
                why = f"processes of service {name!r} cannot be looked at: {error}"
                raise ShutdownFailed(backend.model, why) from None
            if pids := others.alive():
                why = f"service {name!r} is stopped, and processes that it started still run"
                raise ShutdownFailed(backend.model, f"{why}: {format_pids(pids)}", pids)
        return None

    def _stop(self, backend: Backend, name: str, deadline: float, others: ProcessTrees) -> None:
        """Stop a service in any state, and wait until it has ended.

        Raises:
            SystemdError: systemd cannot be asked, or refuses.
            ShutdownFailed: the service has not ended.
        """
        seconds = deadline - time.monotonic()
        job: str | None = None
        while True:
            try:
                if job is None:
                    job = self._systemd.start_job("StopUnit", name, _call_seconds(deadline))
                result = self._systemd.wait_for_job(job, min(_JOB_SECONDS, _left(deadline)))
                others.rescan()
                unit = self._units.read(name, _call_seconds(deadline))
            except SystemdError as error:
                if error.is_unknown_unit:  # it is not loaded, so it does not run
                    return
                # systemd or the bus may start anew just now, and then goes on with the job.
                if error.is_answer or _left(deadline) == 0 or self._closing.wait(_RETRY_SECONDS):
                    raise
                continue
            if unit is None or unit.has_ended:
                return
            if result is not None:
                why = f"systemd's job to stop service {name!r} ended with the result {result!r}"
                raise ShutdownFailed(backend.model, f"{why}; the service is {unit.state}")
            if _left(deadline) == 0:
                raise ShutdownFailed(backend.model, _describe_timeout(unit, seconds))


def _call_seconds(deadline: float) -> float:
    """Return the time limit of a call; a systemd that runs answers in milliseconds."""
    return min(CALL_SECONDS, max(_MIN_CALL_SECONDS, _left(deadline)))


def _left(deadline: float) -> float:
    """Return the seconds until a deadline; 0 after it."""
    return max(0.0, deadline - time.monotonic())


def _describe_failure(unit: Unit, why: str) -> str:
    text = f"service {unit.name!r}: {why}; it is {unit.state}"
    if unit.result != "success":
        text += f", {unit.failure}"
    return text


def _describe_timeout(unit: Unit, seconds: float) -> str:
    limit = "has no limit" if unit.stop_seconds is None else f"has {unit.stop_seconds:g} s"
    return (
        f"systemd has been stopping service {unit.name!r} for {seconds:.1f} s, and it is "
        f"{unit.state}; it {limit} to end itself (TimeoutStopSec=), and the setting "
        "stop_timeout_seconds should not be shorter; systemd goes on stopping it"
    )


def _explain(error: SystemdError) -> str:
    return f"{error}; {_POLKIT_HELP}" if error.is_refusal else str(error)
