"""The one typed way by which the monitor calls hooks; nothing else does."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from .errors import ShutdownFailed
from .events import Delivery, Events
from .isolation import HookOverran, Isolation, Outcome
from .journal import Journal
from .models import Backend, BackendExit, Memory, Reading, State, Status

if TYPE_CHECKING:
    import falcon

    from .monitor import Monitor

_logger = logging.getLogger(__name__)

_MAX_BYTES = 2**64 - 1
_METADATA_KEY = re.compile(r"(?!grpc-)[0-9a-z_.-]+(?<!-bin)", re.ASCII)
_METADATA_VALUE = re.compile(r"[\x20-\x7e]*", re.ASCII)


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
        isolation: calls the implementations.
        events: delivers the hooks that only tell, one at a time.
        journal: where what they tell is written down.
        timeout_seconds: how long one implementation may keep a reading waiting.
    """

    def __init__(
        self, isolation: Isolation, events: Events, journal: Journal, timeout_seconds: float
    ) -> None:
        self._isolation = isolation
        self._events = events
        self._journal = journal
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
        for outcome in self._isolation.call_each(hook, seconds, arguments):
            if outcome.value is not None:
                _log_wrong_type(hook, outcome, "nothing")

    # Events: queued in order, then waited for, within bounds, where that is asked.

    def backend_registered(self, backend: Backend) -> Delivery | None:
        """Queue `monitor_backend_registered`."""
        self._journal.add("registered", backend)
        return self._events.publish("monitor_backend_registered", backend=backend)

    def backend_gone(self, backend: Backend, exit: BackendExit) -> Delivery | None:
        """Queue `monitor_backend_gone`."""
        self._journal.add("ended", backend, exit=exit)
        return self._events.publish("monitor_backend_gone", backend=backend, exit=exit)

    def state_changed(
        self, backend: Backend, previous: State | None, current: State
    ) -> Delivery | None:
        """Queue `monitor_state_changed`."""
        self._journal.add("state_changed", backend, previous=previous, current=current)
        return self._events.publish(
            "monitor_state_changed", backend=backend, previous=previous, current=current
        )

    def shutdown_finished(self, backend: Backend, outcome: str, seconds: float) -> None:
        """Call `monitor_shutdown_finished`, and wait for it."""
        self._journal.add("shutdown_finished", backend, outcome=outcome, seconds=seconds)
        self.wait(
            self._events.publish(
                "monitor_shutdown_finished", backend=backend, outcome=outcome, seconds=seconds
            )
        )

    def wait(self, delivery: Delivery | None) -> None:
        """Wait until an event was delivered, for a bounded time."""
        self._events.wait(delivery)

    # Questions, each implementation bounded by `timeout_seconds`.

    def query_status(self, backend: Backend, timeout_seconds: float) -> Status | None:
        """Call `monitor_query_status`: the first good status, or None."""
        hook = "monitor_query_status"
        timeout_seconds = min(timeout_seconds, self._timeout_seconds)
        arguments = {"backend": backend, "timeout_seconds": timeout_seconds}
        for outcome in self._isolation.call_each(hook, self._timeout_seconds, arguments):
            if outcome.value is not None:
                if _is_status(outcome.value):
                    return Status(int(outcome.value.state), outcome.value.memory)
                _log_wrong_type(hook, outcome, "a Status of integers within 64 bits")
        return None

    def call_metadata(self, backend: Backend) -> dict[str, str]:
        """Call `monitor_call_metadata`: all that is given, the first of a key."""
        hook = "monitor_call_metadata"
        metadata: dict[str, str] = {}
        for outcome in self._isolation.call_each(hook, self._timeout_seconds, {"backend": backend}):
            if outcome.value is None:
                continue
            if _is_metadata(outcome.value):
                metadata = {**outcome.value, **metadata}
            else:
                _log_wrong_type(hook, outcome, "a mapping of gRPC metadata, ASCII to ASCII")
        return metadata

    def have_a_part_in_status(self) -> bool:
        """Whether a hook may take its time when backends are asked for their status."""
        hooks = ("monitor_query_status", "monitor_call_metadata")
        return any(map(self._isolation.implementations, hooks))

    def has_memory_components(self) -> bool:
        """Whether `monitor_memory_components` has implementations, and the tree must be listed."""
        return bool(self._isolation.implementations("monitor_memory_components"))

    def memory_components(self, backend: Backend, pids: Sequence[int]) -> dict[str, int]:
        """Call `monitor_memory_components`: bytes by component, the first of a name."""
        hook = "monitor_memory_components"
        components: dict[str, int] = {}
        arguments = {"backend": backend, "pids": tuple(pids)}
        for outcome in self._isolation.call_each(hook, self._timeout_seconds, arguments):
            if outcome.value is None:
                continue
            if _is_breakdown(outcome.value):
                components = {**outcome.value, **components}
            else:
                _log_wrong_type(hook, outcome, "a mapping of names to bytes")
        return components

    def before_shutdown(self, backend: Backend, force: bool) -> Refusal | None:
        """Call `monitor_before_shutdown`: the first refusal that holds, or None."""
        hook = "monitor_before_shutdown"
        arguments = {"backend": backend, "force": force}
        for outcome in self._isolation.call_each(hook, self._timeout_seconds, arguments):
            if outcome.error is not None:
                if not force:
                    return Refusal(outcome.plugin_name, f"its hook failed: {outcome.error!r}")
            elif isinstance(outcome.value, str):
                return Refusal(outcome.plugin_name, outcome.value)
            elif outcome.value is not None:
                _log_wrong_type(hook, outcome, "a string or None")
        return None

    def stop_backend(self, backend: Backend, timeout_seconds: float) -> StopAnswer | None:
        """Call `monitor_stop_backend`: the first that is done, under way or failed, or None.

        Each may take `timeout_seconds`, and as long as any other hook on top.
        """
        hook = "monitor_stop_backend"
        arguments = {"backend": backend, "timeout_seconds": timeout_seconds}
        seconds = timeout_seconds + self._timeout_seconds
        for outcome in self._isolation.call_each(hook, seconds, arguments):
            if isinstance(outcome.error, HookOverran):
                return StopAnswer(outcome.plugin_name, under_way=True, error=str(outcome.error))
            if isinstance(outcome.error, ShutdownFailed):
                return StopAnswer(outcome.plugin_name, False, outcome.error.reason)
            if isinstance(outcome.value, bool):
                return StopAnswer(outcome.plugin_name, under_way=outcome.value, error=None)
            if outcome.value is not None:
                _log_wrong_type(hook, outcome, "True, False or None")
        return None


def _log_wrong_type(hook: str, outcome: Outcome, wanted: str) -> None:
    # The type alone: the value may be a secret.
    _logger.error(
        "plugin %r: hook %s returned %s, and should return %s; it is left out",
        outcome.plugin_name,
        hook,
        type(outcome.value).__name__,
        wanted,
    )


def _is_bytes(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MAX_BYTES


def _is_text(value: object) -> bool:
    """Whether it is a string that JSON can carry, which takes no lone surrogate."""
    if not isinstance(value, str):
        return False
    return value == value.encode(errors="replace").decode()


def _is_breakdown(value: object) -> bool:
    return isinstance(value, Mapping) and all(
        _is_text(name) and _is_bytes(amount) for name, amount in value.items()
    )


def _is_status(value: object) -> bool:
    if not isinstance(value, Status) or not isinstance(value.state, int):
        return False
    memory = value.memory
    return memory is None or (
        isinstance(memory, Memory) and _is_bytes(memory.total) and _is_breakdown(memory.breakdown)
    )


def _is_metadata(value: object) -> bool:
    return isinstance(value, Mapping) and all(
        isinstance(key, str)
        and isinstance(text, str)
        and _METADATA_KEY.fullmatch(key)
        and _METADATA_VALUE.fullmatch(text)
        for key, text in value.items()
    )
