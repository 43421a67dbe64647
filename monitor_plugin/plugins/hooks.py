"""The one typed way by which the monitor calls hooks; nothing else does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ..domain.errors import ShutdownFailed
from ..domain.models import Backend, BackendExit, Reading, State, Status
from ..hookspecs import Monitor
from ..telemetry.event_log import EventLog
from .event_queue import Delivery, EventQueue
from .executor import HookCall, HookExecutor
from .hook_run import HookOutcome, HookOverran, WrongType
from .results import (
    given_components,
    given_metadata,
    given_reason,
    given_status,
    given_under_way,
)

if TYPE_CHECKING:
    import falcon


class Refusal(NamedTuple):
    """Which plugin says that a backend may not be stopped, and why."""

    plugin_name: str
    reason: str


class StopAnswer(NamedTuple):
    """Which plugin stops a backend, or failed to; `error` says why, or that it is not back."""

    plugin_name: str
    under_way: bool
    error: str | None


class Hooks:
    """Calls the hooks. What implementations return is checked; what is wrong is logged, left out.

    Args:
        executor: calls the implementations.
        events: delivers the hooks that only tell, one at a time.
        event_log: where what they tell is written down.
        timeout_seconds: how long one implementation may keep a reading waiting.
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

    # The first two on the calling thread, and unbounded, as they set things up.

    def started(self, monitor: Monitor) -> None:
        """Call `monitor_started`."""
        self._tell("monitor_started", None, monitor=monitor)

    def add_routes(self, app: falcon.App[Any, Any]) -> None:
        """Call `monitor_add_routes`."""
        self._tell("monitor_add_routes", None, app=app)

    def closing(self) -> None:
        """Call `monitor_closing`."""
        self._tell("monitor_closing", self._timeout_seconds)

    def readings_swept(self, readings: Sequence[Reading]) -> None:
        """Call `monitor_readings_swept`."""
        self._tell("monitor_readings_swept", self._timeout_seconds, readings=tuple(readings))

    def _tell(self, hook: str, seconds: float | None, **arguments: Any) -> None:
        self._executor.call(hook, seconds, arguments)

    # Events: queued in order, then waited for, within bounds, where that is asked.

    def backend_registered(self, backend: Backend) -> Delivery | None:
        """Queue `monitor_backend_registered`."""
        self._event_log.add("registered", backend)
        return self._events.publish("monitor_backend_registered", backend=backend)

    def backend_gone(self, backend: Backend, exit: BackendExit) -> Delivery | None:
        """Queue `monitor_backend_gone`."""
        self._event_log.add("ended", backend, exit=exit)
        return self._events.publish("monitor_backend_gone", backend=backend, exit=exit)

    def state_changed(
        self, backend: Backend, previous: State | None, current: State
    ) -> Delivery | None:
        """Queue `monitor_state_changed`."""
        self._event_log.add("state_changed", backend, previous=previous, current=current)
        return self._events.publish(
            "monitor_state_changed", backend=backend, previous=previous, current=current
        )

    def shutdown_finished(self, backend: Backend, outcome: str, seconds: float) -> None:
        """Call `monitor_shutdown_finished`, and wait for it."""
        self._event_log.add("shutdown_finished", backend, outcome=outcome, seconds=seconds)
        self.wait(
            self._events.publish(
                "monitor_shutdown_finished", backend=backend, outcome=outcome, seconds=seconds
            )
        )

    def wait(self, delivery: Delivery | None) -> None:
        """Wait until an event was delivered, for a bounded time."""
        self._events.wait(delivery)

    # Questions, each implementation bounded by `timeout_seconds`.

    def query_status(self, backend: Backend, timeout_seconds: float) -> Callable[[], Status | None]:
        """Begin to call `monitor_query_status`; gives what waits for the first good status."""
        (outcomes,) = self._executor.begin(self._asked_for_status(backend, timeout_seconds))
        return lambda: _first(outcomes())

    def memory_components(
        self, backend: Backend, pids: Callable[[], Sequence[int]]
    ) -> dict[str, int]:
        """Call `monitor_memory_components`: bytes by component, the first of a name.

        Args:
            backend: whose memory it is.
            pids: lists its process tree, where that is needed.
        """
        (outcomes,) = self._executor.begin(*self._asked_for_components(backend, pids)) or (list,)
        return _merged(outcomes())

    def query_both(
        self, backend: Backend, timeout_seconds: float, pids: Callable[[], Sequence[int]]
    ) -> tuple[Callable[[], Status | None], Callable[[], dict[str, int]]]:
        """Begin to call both, one after the other, which costs less than each by itself."""
        status, *components = self._executor.begin(
            self._asked_for_status(backend, timeout_seconds),
            *self._asked_for_components(backend, pids),
        )
        return lambda: _first(status()), lambda: _merged(components[0]() if components else [])

    def _asked_for_status(self, backend: Backend, timeout_seconds: float) -> HookCall:
        timeout_seconds = min(timeout_seconds, self._timeout_seconds)
        arguments = {"backend": backend, "timeout_seconds": timeout_seconds}
        return HookCall(
            "monitor_query_status", self._timeout_seconds, arguments, given_status, _has_value
        )

    def _asked_for_components(
        self, backend: Backend, pids: Callable[[], Sequence[int]]
    ) -> tuple[HookCall, ...]:
        hook = "monitor_memory_components"
        if not self._executor.implementations(hook):
            return ()
        arguments = {"backend": backend, "pids": tuple(pids())}
        return (HookCall(hook, self._timeout_seconds, arguments, given_components),)

    def call_metadata(self, backend: Backend) -> dict[str, str]:
        """Call `monitor_call_metadata`: all that is given, the first of a key."""
        hook = "monitor_call_metadata"
        arguments = {"backend": backend}
        return _merged(self._executor.call(hook, self._timeout_seconds, arguments, given_metadata))

    def have_a_part_in_status(self) -> bool:
        """Whether a hook may take its time when backends are asked for their status."""
        hooks = ("monitor_query_status", "monitor_call_metadata")
        return any(map(self._executor.implementations, hooks))

    def before_shutdown(self, backend: Backend, force: bool) -> Refusal | None:
        """Call `monitor_before_shutdown`: the first refusal that holds, or None."""
        arguments = {"backend": backend, "force": force}

        def refuses(outcome: HookOutcome) -> bool:
            # Whoever returns nonsense has not refused; one that raises or is late may mean to.
            failed = outcome.error is not None and not isinstance(outcome.error, WrongType)
            return _has_value(outcome) or (failed and not force)

        for name, reason, error in self._executor.call(
            "monitor_before_shutdown", self._timeout_seconds, arguments, given_reason, refuses
        ):
            if reason is not None:
                return Refusal(name, reason)
            if not force and not isinstance(error, WrongType):
                return Refusal(name, f"its hook failed: {_shown(error)}")
        return None

    def stop_backend(self, backend: Backend, timeout_seconds: float) -> StopAnswer | None:
        """Call `monitor_stop_backend`: the first that is done, under way or failed, or None.

        Each may take `timeout_seconds`, and as long as any other hook on top.
        """
        arguments = {"backend": backend, "timeout_seconds": timeout_seconds}
        seconds = timeout_seconds + self._timeout_seconds

        def answers(outcome: HookOutcome) -> bool:
            return _has_value(outcome) or isinstance(outcome.error, (HookOverran, ShutdownFailed))

        for name, under_way, error in self._executor.call(
            "monitor_stop_backend", seconds, arguments, given_under_way, answers
        ):
            if isinstance(error, HookOverran):
                return StopAnswer(name, under_way=True, error=str(error))
            if isinstance(error, ShutdownFailed):
                return StopAnswer(name, False, getattr(error, "reason", str(error)))
            if under_way is not None:
                return StopAnswer(name, under_way=under_way, error=None)
        return None


def _shown(error: BaseException | None) -> str:
    if isinstance(error, HookOverran):
        return str(error)
    try:
        return repr(error)
    except Exception:  # its class is anybody's code, and so are those of its arguments
        return type(error).__name__


def _has_value(outcome: HookOutcome) -> bool:
    return outcome.value is not None


def _first(outcomes: Sequence[HookOutcome]) -> Any:
    """What ended the call, if anything did."""
    return outcomes[-1].value if outcomes else None


def _merged(outcomes: Sequence[HookOutcome]) -> dict[str, Any]:
    """All that was given, the first of a key."""
    merged: dict[str, Any] = {}
    for outcome in reversed(outcomes):
        merged.update(outcome.value or {})
    return merged
