"""The hook contract: every hook by which a host and third parties work with the monitor.

Each docstring says when the hook is called, on which thread, what its arguments are, what may be
returned, and what happens if an implementation raises. "A hook's thread" is one kept for hooks, on
which all implementations are called one by one, the last registered first; one that takes longer
than `hook_timeout_seconds` is left behind there, and is not called again until it has come back.
Implementations may call the monitor back. They may take fewer arguments than the spec has, in any
order, by these names; wrappers and coroutine functions are refused.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import pluggy

from .domain.models import Backend, BackendExit, LoadedPlugin, Observation, Reading, State, Status

if TYPE_CHECKING:
    import falcon
    import grpc

PROJECT_NAME = "monitor_plugin"

# The modules that hook files become have names that begin so.
HOOK_FILE_PREFIX = "monitor_plugin_hooks."

hookspec = pluggy.HookspecMarker(PROJECT_NAME)
hookimpl = pluggy.HookimplMarker(PROJECT_NAME)

HOST_CALLS = ("monitor_backend_spawned", "monitor_backend_exited")


class Monitor(Protocol):
    """`monitor_plugin.Monitor`, as the packages below it know it: see there."""

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

    def shutdown(
        self,
        model: str,
        force: bool = False,
        pid: int | None = None,
        *,
        spare_busy: bool = False,
    ) -> None:
        """Stop a model's backends, or one of them."""

    def stopping(self) -> list[Backend]:
        """List the backends for which a shutdown is under way."""

    def stops_one(self, backend: Backend) -> bool:
        """Whether a shutdown of this backend alone is under way."""

    def open_channel(self, backend: Backend) -> grpc.Channel:
        """Open a gRPC channel to a backend."""

    def call_metadata(self, backend: Backend) -> Mapping[str, str]:
        """Give the metadata of the monitor's own calls to a backend."""

    def reload_tokens(self) -> None:
        """Read the token file again."""


@hookspec
def monitor_backend_spawned(model: str, pid: int, address: str) -> None:
    """A backend runs. Called by the host; implemented by the monitor alone.

    When: after the process was started; the backend need not serve yet. Thread: the host's.
    Arguments: `model`, free text of at most 255 bytes of UTF-8; `pid`, the process, whose children
    belong to it; `address`, the gRPC target: host:port, [::1]:port, unix:/path,
    unix-abstract:name, dns:///host:port, or grpcs://host:port for TLS. Another PID of the same
    model adds a replica; the same PID again updates its record. Returns nothing.
    Raises `InvalidBackend` to the host, having changed nothing: a bad name or address, a PID that
    does not run, PID 0, 1 or the monitor's own or its ancestor's, an address that another live
    backend holds, or one on another machine without TLS (`grpcs://`, or the setting
    `grpc_ca_file`) where the setting `insecure` does not allow it.
    """


@hookspec
def monitor_backend_exited(model: str, pid: int, exit_code: int | None) -> None:
    """A backend ended. Called by the host; implemented by the monitor alone.

    When: once the host knows; the monitor notices the end by itself too, and what is said here
    completes its record. Thread: the host's. Arguments: `model`, `pid` as registered; `exit_code`
    as `subprocess` gives it, a negative one being a signal, None where it is not known. Word about
    a backend that is not registered, or whose process still runs, changes nothing.
    Returns nothing. Raises `InvalidBackend` to the host where an argument has a wrong type.
    """


@hookspec
def monitor_started(monitor: Monitor) -> None:
    """The monitor runs: where a hook gets hold of it and starts its own threads.

    When: at the end of `Monitor.start()`. Thread: the one that starts it; nothing bounds the time
    it takes. Returns nothing. One that raises is logged; the others run.
    """


@hookspec
def monitor_closing() -> None:
    """The monitor is about to close: end what `monitor_started` began.

    When: at the start of `Monitor.close()`, while everything still works. Thread: a hook's.
    Returns nothing. One that raises is logged; the others run.
    """


@hookspec
def monitor_backend_registered(backend: Backend) -> None:
    """A backend was registered, or its record was changed.

    When: before `monitor_backend_spawned` returns to the host. Thread: a hook's, one event at a
    time. Arguments: `backend`, the new record. Returns nothing. One that raises is logged; the
    others run.
    """


@hookspec
def monitor_query_status(backend: Backend, timeout_seconds: float) -> Status | None:
    """Ask the backend for its status by another protocol than LocalAI's.

    When: at each reading, before gRPC is tried; or while it is, where that gave the status before.
    Thread: a hook's, several at once. Arguments: `backend`; `timeout_seconds`, by when to be back.
    Returns a `Status` (bytes in its memory), or None to leave it to the others and to gRPC; the
    first status wins. One that raises, overruns or returns something else is logged, and the next
    is asked.
    """


@hookspec
def monitor_call_metadata(backend: Backend) -> Mapping[str, str]:
    """Give gRPC metadata for the calls to a backend, a token say.

    When: before each `Status` and `Free` call. Thread: a hook's, several at once. Returns keys and
    values as gRPC takes them (ASCII, keys in lower case); all implementations' are merged, and
    where two give one key, that of the one called first stands, and each stands before what the
    setting `grpc_token_file` gives (`authorization`). One that raises, overruns or returns
    something else is logged without its values, and left out.
    """


@hookspec
def monitor_memory_components(backend: Backend, pids: Sequence[int]) -> Mapping[str, int]:
    """Give memory that the hook knows of: on a GPU, say.

    When: at each reading with a status, or while it is asked, where the last one had one; at each
    sweep. Thread: a hook's, several at once. Arguments: `backend`; `pids`, its process and
    descendants, at most a second old. Returns bytes by component, merged into `memory.breakdown`
    (by convention `vram`, or `vram:DEVICE`, on a GPU); a component that the backend, or an
    implementation called before, named already keeps that figure. `memory.total` is not changed.
    One that raises, overruns or returns something else is logged, and left out.
    """


@hookspec
def monitor_before_shutdown(backend: Backend, force: bool) -> str | None:
    """Say whether a backend may be stopped.

    When: at a shutdown, for each backend of the model, before anything is done. Thread: a hook's.
    Arguments: `backend`; `force`, whether the client asked for force. Returns None to agree, or a
    string to refuse, which is the reason that the client gets (409). One that raises or overruns
    refuses too, unless forced. Something else that is returned is logged, and left out.
    """


@hookspec
def monitor_stop_backend(backend: Backend, timeout_seconds: float) -> bool | None:
    """Stop a backend through the host's own books, so that it is not started again.

    When: at a shutdown, once all that it stops are drained, and after `Free`. Thread: a hook's, one
    per backend. Arguments: `backend`; `timeout_seconds`, by when to be back. Returns True: done or
    under way (the monitor verifies, and signals nothing); False: it failed; None: not mine, or off
    the books, and what still runs is the monitor's to end. The first True or False wins; after None
    from all the monitor stops the process tree itself, and watches for a restart. One that raises
    `ShutdownFailed` failed, with that reason; one that raises or returns something else is logged,
    and the next is asked; one that overruns counts as under way.
    """


@hookspec
def monitor_shutdown_finished(backend: Backend, outcome: str, seconds: float) -> None:
    """A shutdown ended, for one backend.

    When: before its client is answered. Thread: a hook's, one event at a time. Arguments:
    `backend`; `outcome`: `stopped`, `refused`, `failed` or `respawned`; `seconds` that it took.
    Returns nothing. One that raises is logged; the others run.
    """


@hookspec
def monitor_state_changed(backend: Backend, previous: State | None, current: State) -> None:
    """A reading found a backend in another state than the reading before.

    When: after that reading; numbers that `State` does not know are passed over. Thread: a hook's,
    one event at a time, in order. Arguments: `backend`; `previous`, None at the first; `current`.
    Returns nothing. One that raises is logged; the others run.
    """


@hookspec
def monitor_readings_swept(readings: Sequence[Reading]) -> None:
    """A background sweep took a reading of every backend.

    When: after each sweep, every `sweep_interval_seconds`. Thread: a hook's, one sweep at a time;
    within `hook_timeout_seconds`. Arguments: `readings`, one of each backend, also of each replica.
    Returns nothing. One that raises is logged; the others run.
    """


@hookspec
def monitor_backend_gone(backend: Backend, exit: BackendExit) -> None:
    """A backend ended, for whatever reason.

    When: once per backend, as soon as its end is noticed. Thread: a hook's, one event at a time.
    Arguments: `backend`, its last record; `exit`, what was known of its end by then. Returns
    nothing. One that raises is logged; the others run.
    """


@hookspec
def monitor_add_routes(app: falcon.App[Any, Any]) -> None:
    """Add routes of one's own to the HTTP application.

    When: once, when the application is made: at `Monitor.start()` or at the first use of
    `Monitor.app`. Thread: that caller's. Returns nothing. One that raises is logged; the others
    run.
    """


HOOK_NAMES = tuple(name for name in dir(sys.modules[__name__]) if name.startswith("monitor_"))


def specs_for(project_name: str, names: Iterable[str]) -> types.ModuleType:
    """Make some of the specs with the markers of a host's own Pluggy project.

    Copies of the functions, because a marker writes its project's name on them.
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
