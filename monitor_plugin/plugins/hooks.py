"""Calls the hooks: one typed method per hook. No other module calls them."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import msgspec

from ..domain.errors import MonitorError, ShutdownFailed, StartFailed
from ..domain.gpus import Gpu
from ..domain.known_models import KnownModel
from ..domain.logs import LogTail, last_lines
from ..domain.models import (
    Backend,
    BackendExit,
    Freed,
    MemberEnd,
    ProcessName,
    Reading,
    State,
    Status,
)
from ..domain.postmortems import MAX_OUTPUT_BYTES, MAX_OUTPUT_LINES, PostMortem
from ..domain.units import HostExit, HostUnit
from ..hookspecs import Monitor
from ..telemetry.event_log import EventLog
from .event_queue import EventQueue
from .executor import (
    HookCall,
    HookExecutor,
    HookNotCalled,
    HookOutcome,
    HookOverran,
    HookRun,
    WrongType,
)
from .plugin_queue import GONE, LEFT_BEHIND, POSTMORTEM, STATE_CHANGED, Delivery
from .results import (
    validate_components,
    validate_gpus,
    validate_known_models,
    validate_log,
    validate_metadata,
    validate_reason,
    validate_record,
    validate_status,
    validate_stop_signal,
    validate_under_way,
)

if TYPE_CHECKING:
    import falcon


_T = TypeVar("_T")


class Refusal(NamedTuple):
    """The plugin that refuses a shutdown, and its reason."""

    plugin_name: str
    reason: str


class HostAnswer(NamedTuple):
    """The plugin that stops a backend or starts a model, or failed to.

    Attributes:
        under_way: whether the stop or the start is done or under way.
        error: the reason of the failure, or that the plugin overran; else None.
        last_output: the last output that the plugin gives with the failure, escaped; else None.
    """

    plugin_name: str
    under_way: bool
    error: str | None
    last_output: str | None = None


class HookQuery(NamedTuple):
    """The hook calls of one reading, while they run."""

    status_run: HookRun
    components_run: HookRun | None = None

    def wait(self, until: float) -> bool:
        """Wait for the end of `monitor_query_status`, up to a time by the monotonic clock.

        If it has not ended by then, `monitor_memory_components` is begun on another thread.

        Returns:
            Whether `monitor_query_status` has ended.
        """
        has_answered = self.status_run.wait(until)
        if not has_answered and self.components_run:
            self.components_run.begin()
        return has_answered

    def status(self) -> Status | None:
        """Wait for the calls, and return the first status; None if no hook returned one."""
        outcomes = self.status_run.outcomes()
        return outcomes[-1].value if outcomes else None

    def memory_components(self) -> dict[str, int]:
        """Wait for the calls, and return bytes by component; the first value counts."""
        return _merged(self.components_run.outcomes()) if self.components_run else {}


class StartRequest:
    """A call of `monitor_start_model` that has begun."""

    def __init__(self, run: HookRun, patience_seconds: float) -> None:
        self._run = run
        self._patience_seconds = patience_seconds

    @property
    def is_answered(self) -> bool:
        """Whether all implementations have returned, or one that answers has."""
        return self._run.finished.is_set()

    def answer(self) -> HostAnswer | None:
        """Wait for the call, and return its first answer; None if no host knows the model."""
        outcomes = self._run.outcomes()
        answer = _host_answer(outcomes, StartFailed)
        if answer is None and outcomes:  # they failed, and one of them might be the host
            name, _, error = outcomes[-1]
            if isinstance(error, MonitorError):  # such as a registration that was refused
                return HostAnswer(name, False, str(error))
            what = str(error) if isinstance(error, WrongType) else f"raised {type(error).__name__}"
            return HostAnswer(name, False, f"monitor_start_model {what}; the log says more")
        return answer

    def wait(self) -> None:
        """Wait for the answer, at most for the time limit of other hooks."""
        self._run.wait(time.monotonic() + self._patience_seconds)

    def abandon(self) -> None:
        """End the call now. An implementation is not called again until it has returned."""
        self._run.abandon()


class Hooks:
    """Calls the hooks. Invalid results are logged and ignored.

    Args:
        executor: calls the implementations.
        events: calls the hooks that report events.
        event_log: records these events.
        timeout_seconds: the time limit of each implementation.
    """

    def __init__(
        self,
        executor: HookExecutor,
        events: EventQueue,
        event_log: EventLog,
        timeout_seconds: float,
    ) -> None:
        self._executor = executor
        self._events = events
        self._event_log = event_log
        self._timeout_seconds = timeout_seconds

    # `monitor_started` and `monitor_add_routes` set plugins up. They run on the calling thread,
    # without a time limit.

    def started(self, monitor: Monitor) -> None:
        """Call `monitor_started`."""
        self._notify("monitor_started", None, monitor=monitor)

    def add_routes(self, app: falcon.App[Any, Any]) -> None:
        """Call `monitor_add_routes`."""
        self._notify("monitor_add_routes", None, app=app)

    def closing(self) -> None:
        """Call `monitor_closing`."""
        self._notify("monitor_closing", self._timeout_seconds)

    def readings_swept(self, readings: Sequence[Reading]) -> None:
        """Call `monitor_readings_swept`."""
        self._notify("monitor_readings_swept", self._timeout_seconds, readings=tuple(readings))

    def _notify(self, hook: str, seconds: float | None, **arguments: Any) -> None:
        self._executor.call(HookCall(hook, seconds, arguments))

    # Hooks that report events. The events are queued; `wait` waits for their deliveries.

    def backend_registered(self, backend: Backend) -> Delivery:
        """Queue `monitor_backend_registered`."""
        self._event_log.add("registered", backend)
        return self._events.publish("monitor_backend_registered", backend=backend)

    def backend_gone(self, backend: Backend, exit: BackendExit, end_id: int) -> None:
        """Queue `monitor_backend_gone`."""
        self._event_log.add("ended", backend, exit=exit, end_id=end_id)
        self._events.publish(GONE, backend=backend, exit=exit)

    def backend_left_behind(self, backend: Backend, pids: Sequence[int]) -> None:
        """Queue `monitor_backend_left_behind`."""
        pids = tuple(pids)
        self._event_log.add("left_behind", backend, pids=pids)
        self._events.publish(LEFT_BEHIND, backend=backend, pids=pids)

    def backend_postmortem(self, backend: Backend, postmortem: PostMortem) -> None:
        """Queue `monitor_backend_postmortem`. The event log does not get it: it holds output."""
        self._events.publish(POSTMORTEM, backend=backend, postmortem=postmortem)

    def watchdog_acted(self, backend: Backend, watchdog: str, action: str, reason: str) -> None:
        """Queue `monitor_watchdog_acted`."""
        facts = {"watchdog": watchdog, "action": action, "reason": reason}
        self._event_log.add("watchdog", backend, **facts)
        self._events.publish("monitor_watchdog_acted", backend=backend, **facts)

    def state_changed(self, backend: Backend, previous: State | None, current: State) -> None:
        """Queue `monitor_state_changed`."""
        self._event_log.add("state_changed", backend, previous=previous, current=current)
        self._events.publish(STATE_CHANGED, backend=backend, previous=previous, current=current)

    def address_owner_changed(self, backend: Backend, owner: ProcessName | None) -> None:
        """Record that another process serves the address, or none any more; no hook reports it."""
        facts = None if owner is None else msgspec.to_builtins(owner)
        self._event_log.add("address_owner", backend, address=backend.address, address_owner=facts)
        self._events.log("address_owner", backend=backend, address_owner=owner)

    def member_ended(self, backend: Backend, end: MemberEnd) -> None:
        """Record that a member of a backend has ended; no hook reports it."""
        self._event_log.add("member_ended", backend, end=end)
        self._events.log("member_ended", backend=backend, end=end)

    def shutdown_finished(
        self, backend: Backend, outcome: str, seconds: float, freed: Freed | None
    ) -> Delivery:
        """Queue `monitor_shutdown_finished`."""
        facts = {"outcome": outcome, "seconds": seconds, "freed": freed}
        self._event_log.add("shutdown_finished", backend, **facts)
        return self._events.publish("monitor_shutdown_finished", backend=backend, **facts)

    def oom_kill(self, backend: Backend, kills: int, oom_certain: bool) -> None:
        """Record that the kernel killed processes of the control group; no hook reports this."""
        facts = {"kills": kills, "oom_certain": oom_certain}
        self._event_log.add("oom_kill", backend, **facts)
        self._events.log("oom_kill", backend=backend, **facts)

    def wait(self, deliveries: Sequence[Delivery]) -> None:
        """Wait for the deliveries of events, up to `timeout_seconds` in all."""
        self._events.wait(deliveries)

    # Hooks that return values.

    def begin_query(
        self,
        backend: Backend,
        timeout_seconds: float,
        pids: Callable[[], Sequence[int]] | None = None,
    ) -> HookQuery:
        """Begin to call `monitor_query_status`, then `monitor_memory_components`.

        Both end after `timeout_seconds`: the implementation that has not returned by then has
        overrun, and later ones are not called.

        Args:
            backend: the backend to read.
            timeout_seconds: the time that the reading has left.
            pids: lists the backend's process tree; called only if a hook needs the PIDs. None to
                call `monitor_query_status` alone.
        """
        seconds, ends_at = self._timeout_seconds, time.monotonic() + timeout_seconds
        arguments = {"backend": backend, "timeout_seconds": min(timeout_seconds, seconds)}
        hook = "monitor_query_status"
        calls = [HookCall(hook, seconds, arguments, validate_status, _has_value, ends_at)]
        if pids is not None:
            calls += self._components_call(backend, pids, ends_at)
        return HookQuery(*self._executor.begin(*calls))

    def memory_components(
        self, backend: Backend, pids: Callable[[], Sequence[int]], deadline: float
    ) -> dict[str, int]:
        """Call `monitor_memory_components`; return bytes by component, the first value counts.

        Args:
            backend: the backend to read.
            pids: lists the backend's process tree; called only if a hook needs the PIDs.
            deadline: when the call ends, by the monotonic clock; after it no hook is called.
        """
        if time.monotonic() >= deadline:
            return {}
        calls = self._components_call(backend, pids, deadline)
        return _merged(self._executor.call(calls[0])) if calls else {}

    def _components_call(
        self, backend: Backend, pids: Callable[[], Sequence[int]], ends_at: float
    ) -> list[HookCall]:
        hook = "monitor_memory_components"
        if not self._executor.implementations(hook):
            return []
        arguments = {"backend": backend, "pids": tuple(pids())}
        seconds = self._timeout_seconds
        return [HookCall(hook, seconds, arguments, validate_components, ends_at=ends_at)]

    def may_list_gpus(self) -> bool:
        """Whether a plugin implements the hook that lists GPUs."""
        return bool(self._executor.implementations("monitor_list_gpus"))

    def list_gpus(self) -> Mapping[str, Sequence[Gpu] | None]:
        """Call `monitor_list_gpus`; return the GPUs by plugin, None for a plugin that failed."""
        call = HookCall("monitor_list_gpus", self._timeout_seconds, {}, validate_gpus)
        found: dict[str, Sequence[Gpu] | None] = {}
        for name, gpus, error in self._executor.call(call):
            found[name] = None if error else [*(found.get(name) or ()), *gpus]
        return found

    def call_metadata(self, backend: Backend) -> dict[str, str]:
        """Call `monitor_call_metadata`; return the merged metadata, the first value counts."""
        hook, arguments = "monitor_call_metadata", {"backend": backend}
        call = HookCall(hook, self._timeout_seconds, arguments, validate_metadata)
        return _merged(self._executor.call(call))

    def may_delay_status(self) -> bool:
        """Whether a plugin implements a hook that a reading waits for before its `Status` call."""
        return bool(self._executor.implementations("monitor_query_status"))

    def before_shutdown(self, backend: Backend, force: bool) -> Refusal | None:
        """Call `monitor_before_shutdown`; return the first refusal, or None."""

        def refuses(outcome: HookOutcome) -> bool:
            # An implementation that raises or overruns might have refused. A result of the wrong
            # type does not refuse.
            failed = outcome.error is not None and not isinstance(outcome.error, WrongType)
            return _has_value(outcome) or (failed and not force)

        hook, arguments = "monitor_before_shutdown", {"backend": backend, "force": force}
        call = HookCall(hook, self._timeout_seconds, arguments, validate_reason, refuses)
        for name, reason, error in self._executor.call(call):
            if reason is not None:
                return Refusal(name, reason)
            if not force and not isinstance(error, WrongType):
                return Refusal(name, f"its hook failed: {_shown(error)}")
        return None

    def may_stop_backend(self) -> bool:
        """Whether a plugin implements the hook that stops a backend through its host."""
        return bool(self._executor.implementations("monitor_stop_backend"))

    def stop_backend(self, backend: Backend, timeout_seconds: float) -> HostAnswer | None:
        """Call `monitor_stop_backend`; return the first answer, or None.

        The time limit is `timeout_seconds` plus that of the other hooks.
        """
        arguments = {"backend": backend, "timeout_seconds": timeout_seconds}
        call = self._host_call("monitor_stop_backend", arguments, ShutdownFailed)
        return _host_answer(self._executor.call(call), ShutdownFailed)

    def may_start_model(self) -> bool:
        """Whether a plugin implements the hook that starts a model through its host."""
        return bool(self._executor.implementations("monitor_start_model"))

    def begin_start_model(self, model: str, timeout_seconds: float) -> StartRequest:
        """Begin to call `monitor_start_model`.

        The time limit is `timeout_seconds` plus that of the other hooks.
        """
        arguments = {"model": model, "timeout_seconds": timeout_seconds}
        call = self._host_call("monitor_start_model", arguments, StartFailed)
        run = self._executor.begin(call._replace(key=model))[0]
        return StartRequest(run, self._timeout_seconds)

    def _host_call(
        self, hook: str, arguments: dict[str, Any], failure: type[Exception]
    ) -> HookCall:
        """Make the call of a hook that a host implements, with the time limit as an argument.

        Args:
            hook: the hook.
            arguments: its arguments, one of them `timeout_seconds`.
            failure: the error that a host raises if it failed.
        """
        seconds = arguments["timeout_seconds"] + self._timeout_seconds

        def answers(outcome: HookOutcome) -> bool:
            ends = (HookOverran, HookNotCalled, failure)
            return _has_value(outcome) or isinstance(outcome.error, ends)

        return HookCall(hook, seconds, arguments, validate_under_way, answers)

    def may_list_models(self) -> bool:
        """Whether a plugin implements the hook that lists the models of a host."""
        return bool(self._executor.implementations("monitor_list_models"))

    def list_models(self) -> Mapping[str, Sequence[KnownModel] | None]:
        """Call `monitor_list_models`; return the models by plugin, None for one that failed."""
        call = HookCall("monitor_list_models", self._timeout_seconds, {}, validate_known_models)
        found: dict[str, Sequence[KnownModel] | None] = {}
        for name, models, error in self._executor.call(call):
            found[name] = None if error else [*(found.get(name) or ()), *(models or ())]
        return found

    def may_read_log(self) -> bool:
        """Whether a plugin implements the hook that reads the logs of a host."""
        return bool(self._executor.implementations("monitor_read_log"))

    def read_log(
        self, model: str, pid: int | None, stream: str, max_bytes: int
    ) -> bytes | LogTail | None:
        """Call `monitor_read_log`; return the first result, at most `max_bytes`, or None."""
        arguments = {"model": model, "pid": pid, "stream": stream, "max_bytes": max_bytes}
        seconds = self._timeout_seconds
        call = HookCall("monitor_read_log", seconds, arguments, validate_log, _has_value)
        for _, log, _ in self._executor.call(call):
            if isinstance(log, LogTail):
                return LogTail(log.data[-max_bytes:], log.end)
            if log is not None:
                return bytes(log[-max_bytes:])
        return None

    def may_describe_unit(self) -> bool:
        """Whether a plugin implements the hook that describes the units of a host."""
        return bool(self._executor.implementations("monitor_describe_unit"))

    def describe_unit(self, backend: Backend) -> HostUnit | None:
        """Call `monitor_describe_unit`; return the first result, or None."""
        return self._first_of(HostUnit, "monitor_describe_unit", {"backend": backend})

    def may_explain_exit(self) -> bool:
        """Whether a plugin implements the hook that tells what a host knows of an exit."""
        return bool(self._executor.implementations("monitor_explain_exit"))

    def explain_exit(self, backend: Backend) -> HostExit | None:
        """Call `monitor_explain_exit`; return the first result, or None."""
        return self._first_of(HostExit, "monitor_explain_exit", {"backend": backend})

    def _first_of(self, kind: type[_T], hook: str, arguments: dict[str, Any]) -> _T | None:
        """Call a hook; return its first result that is such a record, or None."""
        validate = partial(validate_record, kind)
        call = HookCall(hook, self._timeout_seconds, arguments, validate, _has_value)
        for _, value, _ in self._executor.call(call):
            if isinstance(value, kind):
                return value
        return None

    def stop_signal(self, backend: Backend) -> int:
        """Call `monitor_stop_signal`; return the first signal, or SIGTERM."""
        hook, arguments = "monitor_stop_signal", {"backend": backend}
        seconds = self._timeout_seconds
        outcomes = self._executor.call(
            HookCall(hook, seconds, arguments, validate_stop_signal, _has_value)
        )
        values = [each.value for each in outcomes if each.value is not None]
        return values[0] if values else signal.SIGTERM


def _shown(error: BaseException | None) -> str:
    if isinstance(error, (HookOverran, HookNotCalled)):
        return str(error)
    try:
        return repr(error)
    except Exception:  # `__repr__` is third-party code
        return type(error).__name__


def _last_output(error: BaseException | None) -> str | None:
    """Return the last output that an error of a plugin has, escaped and cut as a post-mortem's."""
    output = getattr(error, "last_output", None)
    if not isinstance(output, str):
        return None
    return last_lines(output.encode(errors="replace"), MAX_OUTPUT_LINES, MAX_OUTPUT_BYTES)


def _host_answer(outcomes: Sequence[HookOutcome], failure: type[Exception]) -> HostAnswer | None:
    """Return the first answer of a host to `Hooks._host_call`; None if there is none."""
    for name, under_way, error in outcomes:
        if isinstance(error, HookOverran):
            return HostAnswer(name, True, str(error))
        if isinstance(error, HookNotCalled):  # the plugin might be the one
            return HostAnswer(name, False, str(error))
        if isinstance(error, failure):
            reason = getattr(error, "reason", str(error))
            return HostAnswer(name, False, reason, _last_output(error))
        if under_way is not None:
            return HostAnswer(name, under_way, None)
    return None


def _has_value(outcome: HookOutcome) -> bool:
    return outcome.value is not None


def _merged(outcomes: Sequence[HookOutcome]) -> dict[str, Any]:
    """Merge mappings; the first value of a key counts."""
    merged: dict[str, Any] = {}
    for outcome in reversed(outcomes):
        merged.update(outcome.value or {})
    return merged
