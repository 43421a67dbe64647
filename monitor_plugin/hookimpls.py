"""Typed markers: one per hook, so that type checkers find wrong signatures.

For example::

    from monitor_plugin import hookimpls

    @hookimpls.monitor_backend_gone
    def monitor_backend_gone(backend: Backend, exit: BackendExit) -> None: ...

Each marker does the same as `monitor_plugin.hookimpl`, for functions of a module and methods of a
class; their names are free. `mypy` needs no plugin, because each marker has the type of its spec. A
type checker demands all arguments of the hook; the monitor accepts fewer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, TypeVar, cast, overload

from . import hookspecs

if TYPE_CHECKING:
    from .monitor import Monitor

P = ParamSpec("P")
R = TypeVar("R")


class HookImpl(Generic[P, R]):
    """Marks implementations of the hook with the spec `spec`."""

    def __init__(self, spec: Callable[P, R]) -> None:
        self._mark = hookspecs.hookimpl(specname=spec.__name__)

    @overload
    def __call__(self, function: Callable[P, R]) -> Callable[P, R]: ...

    @overload
    def __call__(
        self, function: Callable[Concatenate[Any, P], R]
    ) -> Callable[Concatenate[Any, P], R]: ...

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Mark a function or a method."""
        return self._mark(function)


# In the spec the argument is a Protocol; implementations get the class `Monitor`.
monitor_started = HookImpl(cast("Callable[[Monitor], None]", hookspecs.monitor_started))
monitor_closing = HookImpl(hookspecs.monitor_closing)
monitor_backend_registered = HookImpl(hookspecs.monitor_backend_registered)
monitor_query_status = HookImpl(hookspecs.monitor_query_status)
monitor_call_metadata = HookImpl(hookspecs.monitor_call_metadata)
monitor_memory_components = HookImpl(hookspecs.monitor_memory_components)
monitor_list_gpus = HookImpl(hookspecs.monitor_list_gpus)
monitor_list_models = HookImpl(hookspecs.monitor_list_models)
monitor_start_model = HookImpl(hookspecs.monitor_start_model)
monitor_read_log = HookImpl(hookspecs.monitor_read_log)
monitor_describe_unit = HookImpl(hookspecs.monitor_describe_unit)
monitor_explain_exit = HookImpl(hookspecs.monitor_explain_exit)
monitor_before_shutdown = HookImpl(hookspecs.monitor_before_shutdown)
monitor_stop_backend = HookImpl(hookspecs.monitor_stop_backend)
monitor_stop_signal = HookImpl(hookspecs.monitor_stop_signal)
monitor_shutdown_finished = HookImpl(hookspecs.monitor_shutdown_finished)
monitor_state_changed = HookImpl(hookspecs.monitor_state_changed)
monitor_readings_swept = HookImpl(hookspecs.monitor_readings_swept)
monitor_backend_gone = HookImpl(hookspecs.monitor_backend_gone)
monitor_backend_left_behind = HookImpl(hookspecs.monitor_backend_left_behind)
monitor_backend_postmortem = HookImpl(hookspecs.monitor_backend_postmortem)
monitor_watchdog_acted = HookImpl(hookspecs.monitor_watchdog_acted)
monitor_add_routes = HookImpl(hookspecs.monitor_add_routes)
