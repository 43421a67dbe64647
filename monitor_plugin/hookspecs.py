"""The specs of all hooks.

Each docstring says when and on which thread the hook is called, what it gets and may return, and
what happens on an error. "A hook's thread" is a thread that only runs hooks. It calls all
implementations one by one, the last registered first. An implementation that takes longer than
`hook_timeout_seconds` overruns: it keeps that thread, and is not called again until it has
returned; another thread calls the next implementations. Implementations may call the monitor. They
may take fewer arguments than the spec has, in any order, by the same names. Wrappers and coroutine
functions are refused.

The hooks that report events (`monitor_backend_registered`, `monitor_state_changed`,
`monitor_backend_gone`, `monitor_backend_left_behind`, `monitor_backend_postmortem`,
`monitor_shutdown_finished`, `monitor_watchdog_acted`) are called for each plugin on its own, one
event at a time, so that a slow plugin does not delay the other plugins. The events of a backend
keep their order. A plugin that is behind gets the other events before changes of state, and of the
changes of a backend's state only the newest state.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import pluggy

from .domain.gpus import Gpu
from .domain.known_models import KnownModel
from .domain.logs import LogTail
from .domain.models import (
    Backend,
    BackendExit,
    Freed,
    LoadedPlugin,
    Observation,
    Reading,
    State,
    Status,
)
from .domain.postmortems import PostMortem
from .domain.units import HostExit, HostUnit

if TYPE_CHECKING:
    import falcon
    import grpc

PROJECT_NAME = "monitor_plugin"

# The module of a hook file has this prefix and the file's stem as its name.
HOOK_FILE_PREFIX = "monitor_plugin_hooks."

#: Marks the specification of a hook of Pluggy's project `monitor_plugin`.
hookspec = pluggy.HookspecMarker(PROJECT_NAME)
#: Marks a function or a method as an implementation of the hook of the same name.
#: `hookimpl(tryfirst=True)` calls it before the others, `hookimpl(trylast=True)` after them, and
#: `hookimpl(specname="NAME")` names another hook.
hookimpl = pluggy.HookimplMarker(PROJECT_NAME)

HOST_CALLS = ("monitor_backend_spawned", "monitor_backend_exited")


class Monitor(Protocol):
    """The part of `monitor_plugin.Monitor` that hooks and the packages below it use."""

    @property
    def url(self) -> str:
        """The URL of the HTTP server."""

    def backends(self) -> list[Backend]:
        """List the registered backends."""

    def plugins(self) -> list[LoadedPlugin]:
        """List the loaded plugins."""

    def read(self, model: str, pid: int | None = None) -> Reading:
        """Read a model or one of its backends."""

    def sweep(self, model: str | None = None, fresh: bool = True) -> list[Observation]:
        """Read all backends at the same time."""

    def gpus(self) -> list[Gpu]:
        """List the GPUs, read at most a second ago."""

    def shutdown(
        self, model: str, force: bool = False, pid: int | None = None, *, spare_busy: bool = False
    ) -> None:
        """Stop a model's backends, or one of them."""

    def known_models(self) -> list[KnownModel]:
        """List the models that the host can run."""

    def start_model(self, model: str, timeout_seconds: float | None = None) -> None:
        """Start a model, and wait until it is ready."""

    def restart_model(
        self,
        model: str,
        force: bool = False,
        pid: int | None = None,
        *,
        spare_busy: bool = False,
        timeout_seconds: float | None = None,
    ) -> None:
        """Stop a model's backends, or one of them, and start the model again."""

    def report_watchdog(self, backend: Backend, watchdog: str, action: str, reason: str) -> None:
        """Report that a watchdog has found something wrong with a backend, and what it does."""

    def adopt_process(self, backend: Backend, pid: int) -> None:
        """Replace the registered process of a backend by another one, such as a container's.

        Raises:
            InvalidBackend: the process cannot be adopted, or a shutdown of the backend is in
                progress; nothing was changed.
        """

    def host_pid(self, pid: int) -> int:
        """Return the PID by which the host knows the backend with a PID."""

    def stopping(self) -> list[Backend]:
        """List the backends for which a shutdown is under way."""

    def stops_one(self, backend: Backend) -> bool:
        """Whether a shutdown of this backend alone is under way."""

    def open_channel(self, backend: Backend) -> grpc.Channel:
        """Open a gRPC channel to a backend."""

    def call_metadata(self, backend: Backend) -> Mapping[str, str]:
        """Return the gRPC metadata of the monitor's calls to a backend."""

    def log_refusal(self, backend: Backend, method: str) -> None:
        """Log that a backend answered a call with UNAUTHENTICATED, unless that was logged."""

    def reload_tokens(self) -> None:
        """Read the token file again."""


@hookspec
def monitor_backend_spawned(model: str, pid: int, address: str) -> None:
    """A backend was started. Called by the host; implemented by the monitor alone.

    When: after the process was started; the backend need not serve yet. Thread: the host's.
    Arguments: `model`, free text of at most 255 bytes of UTF-8; `pid`, the process, whose children
    belong to the backend; `address`, the gRPC target: host:port, [::1]:port, ipv4:1.2.3.4:port,
    ipv6:[::1]:port, unix:/path, unix-abstract:name, dns:///host:port, or grpcs://host:port for TLS;
    or the URL of a server that speaks HTTP: http://host:port or https://host:port.
    :port, *:port, 0.0.0.0:port and [::]:port are the same address as localhost:port: the monitor
    dials ::1, and then 127.0.0.1. Another PID of the same model adds a replica; the same PID again
    updates its record. With the address of a registered process of the same model, a PID of the
    same backend replaces that process: for example the server that a registered launcher started.
    This is no exit, and both stay members of the backend. A PID in whose place another process was
    adopted (`Monitor.adopt_process`) stands for that process. Returns nothing.
    Raises `InvalidBackend` to the host, and changes nothing, for: an invalid name or address; a PID
    that does not run; PID 0, 1, the monitor's own or that of its ancestor; an address that another
    live backend has; a PID that would replace the registered process during a shutdown of the
    backend; an address on another machine without TLS (`grpcs://`, `https://`, or for gRPC the
    setting `grpc_ca_file`), unless the setting `insecure` allows it.
    """


@hookspec
def monitor_backend_exited(model: str, pid: int, exit_code: int | None) -> None:
    """A backend ended. Called by the host; implemented by the monitor alone.

    When: as soon as the host knows. The monitor also notices the end by itself; this call completes
    its record. Thread: the host's. Arguments: `model` and `pid` as registered; `exit_code` as in
    `subprocess`: a negative number is a signal, None means unknown. A call for a backend that is
    not registered, or whose process still runs, changes nothing.
    Returns nothing. Raises `InvalidBackend` to the host if an argument has a wrong type.
    """


@hookspec
def monitor_started(monitor: Monitor) -> None:
    """The monitor has started: a hook may store it, and start its own threads.

    When: at the end of `Monitor.start()`. Thread: the one that calls it; there is no time limit.
    Arguments: `monitor`, the `monitor_plugin.Monitor`. Returns nothing. An error is logged; the
    other implementations run.
    """


@hookspec
def monitor_closing() -> None:
    """The monitor is about to close: a hook ends what it began in `monitor_started`.

    When: at the start of `Monitor.close()`, while everything still works. Not called if the monitor
    was never started. Thread: a hook's.
    Returns nothing. An error is logged; the other implementations run.
    """


@hookspec
def monitor_backend_registered(backend: Backend) -> None:
    """A backend was registered, or its record was changed, or has another process.

    When: before `monitor_backend_spawned` returns to the host, if the hook returns within
    `hook_timeout_seconds`. Thread: a hook's, one event of the plugin at a time. Arguments:
    `backend`, the new record. Returns nothing. An error is logged; the other implementations run.
    """


@hookspec
def monitor_query_status(backend: Backend, timeout_seconds: float) -> Status | None:
    """Request the status of a backend by another protocol than LocalAI's.

    When: at each reading, before the gRPC call; or during it, if gRPC gave the last status, or if
    the hooks take more than half of `status_timeout_seconds`, which all of them and the gRPC call
    share. Thread: a hook's; concurrent calls are possible. Arguments: `backend`;
    `timeout_seconds`, the time limit of the request. Returns a `Status` (memory in bytes; the
    figures of its requests, each None if unknown), or None to leave the request to the next
    implementation and to gRPC; the first status counts. An implementation that raises, overruns or
    returns another type is logged, and the next one is called.
    """


@hookspec
def monitor_call_metadata(backend: Backend) -> Mapping[str, str]:
    """Provide gRPC metadata for the calls to a backend, such as a token.

    When: before each `Status` and `Free` call. Thread: a hook's; concurrent calls are possible.
    Arguments: `backend`. Returns keys and values that gRPC accepts (ASCII, keys in lower case). The
    results of all implementations are merged; the first value of a key counts. Results replace the
    `authorization` of the setting `grpc_token_file`. An implementation that raises, overruns or
    returns another type is logged without its values, and ignored.
    """


@hookspec
def monitor_memory_components(backend: Backend, pids: Sequence[int]) -> Mapping[str, int]:
    """Report memory of a backend that the hook can read, such as memory on a GPU.

    When: at each reading that has a status, or during its status call if the last reading had a
    status; at each sweep. It gets what is left of the reading's time. Thread: a hook's; concurrent
    calls are possible. Arguments: `backend`; `pids`, the PIDs of its members, at most a second
    old. Returns bytes by component, which are merged into `memory.breakdown` (by convention `vram`
    or `vram:DEVICE` on a GPU). A component that the backend or an earlier implementation has
    reported does not change, nor does `memory.total`. An implementation that raises, overruns or
    returns another type is logged, and ignored.
    """


@hookspec
def monitor_list_gpus() -> Sequence[Gpu]:
    """List GPUs, or other devices with memory of their own, that the monitor cannot read itself.

    When: about every 5 s, and when a list, a reading or a scrape needs figures, and the last ones
    are more than a second old. Thread: a hook's, one call at a time. Returns each device as a `Gpu`
    (sizes in bytes), with the processes that use it. The monitor attributes these processes to
    backends, and adds the device's `component` to `memory.breakdown`. If several devices have the
    same component, the first one counts; a hook's device replaces the monitor's own. If an
    implementation raises, overruns or returns another type, this is logged, and its last devices
    stay listed, with their age. After 30 s without a newer list, readings and metrics leave them
    out.
    """


@hookspec
def monitor_list_models() -> Sequence[KnownModel]:
    """List the models that a host can run, also those of which no backend runs.

    When: for a list of backends, a scrape or a start, at most once a second. Thread: a hook's, one
    call at a time. Returns each model once, as a `KnownModel`. If several implementations list the
    same model, the first one counts. A model that runs as several processes is listed once, with
    the state that an operator should see first. If an implementation raises, overruns or returns
    another type, this is logged, and its last models stay listed.
    """


@hookspec
def monitor_start_model(model: str, timeout_seconds: float) -> bool | None:
    """Start a model through its host.

    When: at a restart; at a start if no backend of the model is registered, or if
    `monitor_list_models` says that the model is stopped, as while its host is stopping it. Thread:
    a hook's, one per model; concurrent calls for other models are possible. Arguments: `model`;
    `timeout_seconds`, the time that is left for the start. Returns True if the host has started the
    model, is starting it, or runs it already (the monitor then waits until a backend is registered
    and ready); False if it could not be started; None if the host does not know the model. The
    first True or False counts. An implementation that raises `StartFailed` failed, with that
    reason and that last output. If it raises another error or returns another type, the error is
    logged, and the next implementation is called. An implementation that has not returned when the
    start fails has overrun. It must not start, stop or restart the same model through the monitor.
    """


@hookspec
def monitor_read_log(
    model: str, pid: int | None, stream: str, max_bytes: int
) -> bytes | LogTail | None:
    """Read the end of what a model's process has written to its standard output or error.

    When: for a request of a log, after each end of a backend, and after a start that failed.
    Thread: a hook's; concurrent calls are possible. Arguments: `model`; `pid`, the registered
    process, which may have ended; None for the model's last process, which need not have been
    registered; `stream`, `stdout` or `stderr`; `max_bytes`, how many bytes to return at most.
    Returns the last bytes of the stream; a `LogTail` where the position of its end in the stream is
    known; or None if the host does not keep this log. The first result counts. If all return None,
    the monitor reads the file that the process writes to, if it writes to a file. An implementation
    that raises, overruns or returns another type is logged, without the text of its error, and the
    next one is called.
    """


@hookspec
def monitor_describe_unit(backend: Backend) -> HostUnit | None:
    """Describe the unit in which a host runs a backend, with the host's own figures.

    When: for a list of backends or a scrape, at most once a second for each backend. Thread: a
    hook's; concurrent calls are possible. Arguments: `backend`. Returns a `HostUnit` (sizes in
    bytes), or None if the backend is not the host's. The first result counts. An implementation
    that raises, overruns or returns another type is logged, and the next one is called.
    """


@hookspec
def monitor_explain_exit(backend: Backend) -> HostExit | None:
    """Tell what a host knows of how a backend ended.

    When: after each end of a backend, before `monitor_backend_postmortem`, at least a second after
    the end. Thread: a hook's; concurrent calls are possible. Arguments: `backend`, its last record.
    Returns a `HostExit`, or None if the host knows nothing of the end. The first result counts. An
    implementation that raises, overruns or returns another type is logged, and the next one is
    called.
    """


@hookspec
def monitor_before_shutdown(backend: Backend, force: bool) -> str | None:
    """Decide whether a backend may be stopped.

    When: at a shutdown, for each backend of the model, before any other step. Thread: a hook's.
    Arguments: `backend`; `force`, whether the client asked for force. Returns None to agree, or a
    string to refuse: the reason that the client gets (409). An implementation that raises or
    overruns refuses as well, unless the shutdown is forced. A result of another type is logged, and
    ignored.
    """


@hookspec
def monitor_stop_backend(backend: Backend, timeout_seconds: float) -> bool | None:
    """Stop a backend through its host, so that the host does not start it again.

    When: at a shutdown, after its backends are drained and after `Free`. Thread: a hook's, one per
    backend. Arguments: `backend`; `timeout_seconds`, the time limit of the stop; an implementation
    overruns only `hook_timeout_seconds` after that. Returns True if the stop is done or under way
    (the monitor verifies it, and sends no signal); False if the stop failed; None if the hook does
    not manage the backend, or if the host no longer manages it and the monitor shall end what still
    runs. The first True or False counts. If all return None, the monitor stops the process tree
    itself, and watches for a restart. An implementation that raises `ShutdownFailed` failed, with
    that reason. If it raises another error or returns another type, the error is logged, and the
    next implementation is called. If it overruns, the stop counts as under way.
    """


@hookspec
def monitor_stop_signal(backend: Backend) -> int | None:
    """Choose the signal that asks a backend to end.

    When: at a shutdown, if no `monitor_stop_backend` stops the backend, right before the first
    signal. Thread: a hook's. Arguments: `backend`. Returns a signal, such as `signal.SIGINT` or its
    number, that the registered process gets in place of SIGTERM; None to leave the choice to the
    next implementation. The first signal counts. Its other members get SIGTERM in any case, later
    unless the setting `stop_signal_target` is `all`; SIGKILL follows for those that do not end. An
    implementation that raises, overruns or returns anything else, also SIGKILL, SIGSTOP or SIGCONT,
    is logged, and the next one is called; without any signal, SIGTERM is sent.
    """


@hookspec
def monitor_shutdown_finished(
    backend: Backend, outcome: str, seconds: float, freed: Freed | None
) -> None:
    """A shutdown ended, for one backend.

    When: before the client gets its response, if the hook returns within `hook_timeout_seconds`.
    Thread: a hook's, one event of the plugin at a time. Arguments: `backend`; `outcome`: `stopped`,
    `refused`, `failed` or `respawned`; `seconds`, its duration; `freed`, the memory that the
    backend has given back, or None if the shutdown has not ended all its members. Returns nothing.
    An error is logged; the other implementations run.
    """


@hookspec
def monitor_state_changed(backend: Backend, previous: State | None, current: State) -> None:
    """A reading found a backend in another state than the reading before.

    When: after that reading, which does not wait for the hook; numbers that `State` does not know
    are ignored. Thread: a hook's, one event of the plugin at a time. Arguments: `backend`;
    `previous`, the state that the hook was last called with, None at the first call; `current`.
    Returns nothing. An error is logged; the other implementations run.
    """


@hookspec
def monitor_readings_swept(readings: Sequence[Reading]) -> None:
    """A background sweep took a reading of every backend.

    When: after each sweep, every `sweep_interval_seconds`. Thread: a hook's, one sweep at a time;
    the time limit is `hook_timeout_seconds`. Arguments: `readings`, one per backend, also per
    replica. Returns nothing. An error is logged; the other implementations run.
    """


@hookspec
def monitor_backend_gone(backend: Backend, exit: BackendExit) -> None:
    """A backend ended, for any reason.

    When: once per backend, as soon as the monitor notices the end. Thread: a hook's, one event of
    the plugin at a time. Arguments: `backend`, its last record; `exit`, the facts known by then.
    Returns nothing. An error is logged; the other implementations run.
    """


@hookspec
def monitor_backend_left_behind(backend: Backend, pids: Sequence[int]) -> None:
    """A backend has ended, and members of it still run.

    When: once per backend, after `monitor_backend_gone`, if members run that had a second to end as
    well; after a shutdown only if that failed. Not for a process that belongs to another registered
    backend. Thread: a hook's, one event of the plugin at a time. Arguments: `backend`, its last
    record; `pids`, the members. Returns nothing. An error is logged; the other implementations run.
    """


@hookspec
def monitor_backend_postmortem(backend: Backend, postmortem: PostMortem) -> None:
    """All that will be known of the end of a backend is known.

    When: once per backend, after `monitor_backend_gone`: when its left-behind members were searched
    for, and its last output was read. Thread: a hook's, one event of the plugin at a time.
    Arguments: `backend`, its last record; `postmortem`, whose `last_output` may hold what users
    sent to the model. Returns nothing. An error is logged without its text; the other
    implementations run.
    """


@hookspec
def monitor_watchdog_acted(backend: Backend, watchdog: str, action: str, reason: str) -> None:
    """A watchdog, such as memory_limit.py, has found something wrong with a backend.

    When: after `Monitor.report_watchdog`. Thread: a hook's, one event of the plugin at a time.
    Arguments: `backend`; `watchdog`, its name; `action`, what it does: `stop`, `restart`, `tell`
    (nothing but this report) or `gave_up` (the model was restarted too often); `reason`, for
    people. Returns nothing. An error is logged; the other implementations run.
    """


@hookspec
def monitor_add_routes(app: falcon.App[Any, Any]) -> None:
    """Add routes to the HTTP application.

    When: once, when the application is made: at `Monitor.start()` or at the first use of
    `Monitor.app`. Thread: that caller's; there is no time limit. Arguments: `app`, the Falcon
    application. Returns nothing. An error is logged; the other implementations run.
    """


HOOK_NAMES = tuple(name for name in dir(sys.modules[__name__]) if name.startswith("monitor_"))


def specs_for(project_name: str, names: Iterable[str]) -> types.ModuleType:
    """Make a module of copied specs, marked for a host's own Pluggy project.

    A marker sets an attribute of the function, with the project's name.
    """
    marker = pluggy.HookspecMarker(project_name)
    specs = types.ModuleType(f"{PROJECT_NAME} hooks for {project_name}")
    for name in names:
        spec = getattr(sys.modules[__name__], name)
        copy = types.FunctionType(spec.__code__, spec.__globals__, name)
        copy.__doc__ = spec.__doc__
        copy.__annotations__ = dict(spec.__annotations__)
        setattr(specs, name, marker(copy))
    return specs
