"""The exceptions of the package; `api/errors.py` maps each of them to an HTTP status.

Their tree::

    MonitorError
    ├── SettingsError          a setting has a value that cannot be used
    ├── ListenError            the HTTP server cannot listen at the address of its setting
    ├── PluginError            a plugin or a plugin manager cannot be used
    ├── InvalidBackend         a host registered a backend that cannot be watched
    ├── InvalidRequest         a client sent a request that is not valid
    │   └── PidNotHeld         the model has no backend with that PID
    ├── ModelNotLoaded         no backend of that model is registered
    ├── LogUnavailable         the log of a backend cannot be read
    ├── BackendUnreadable      neither the backend nor its process could be read
    ├── ShutdownRefused        a hook refused the shutdown
    ├── ShutdownFailed         the processes could not be stopped, or were started again, or the
    │                          address is still served
    ├── StartFailed            the model could not be started, or did not become ready
    ├── TooManyShutdowns       too many shutdowns are running already
    ├── TooManyStarts          too many starts are running already
    ├── RequestFailed          a request to a running monitor failed
    └── ClusterError           a request to another node of the cluster failed
        ├── NodeUnreachable    the node does not answer
        ├── NodeForbidden      NATS does not permit the request
        └── OutcomeUnknown     the node was told to stop or start a model; the result is unknown
"""

from __future__ import annotations

from collections.abc import Sequence


class MonitorError(Exception):
    """The base class of all exceptions of the package."""


class SettingsError(MonitorError, ValueError):
    """A setting has a value that cannot be used.

    Attributes:
        setting: the name of the field in `Settings`.
    """

    def __init__(self, setting: str, message: str) -> None:
        super().__init__(message)
        self.setting = setting


class ListenError(MonitorError, OSError):
    """The HTTP server cannot listen at the address of its setting.

    Attributes:
        listen: the value of the setting `listen`.
    """

    def __init__(self, listen: str, message: str) -> None:
        super().__init__(message)
        self.listen = listen


class PluginError(MonitorError):
    """A plugin, or a host's plugin manager, cannot be used.

    Attributes:
        plugin_name: the name under which it was registered; None if it has none.
    """

    def __init__(self, plugin_name: str | None, message: str) -> None:
        super().__init__(message)
        self.plugin_name = plugin_name


class InvalidBackend(MonitorError, ValueError):
    """A host registered a backend that cannot be watched; nothing was changed.

    Attributes:
        model: the model as the host gave it, of any type.
        pid: the PID as the host gave it, of any type.
        address: the address as the host gave it, of any type.
    """

    def __init__(self, message: str, *, model: object, pid: object, address: object) -> None:
        super().__init__(message)
        self.model = model
        self.pid = pid
        self.address = address


class InvalidRequest(MonitorError, ValueError):
    """A client sent a request with a bad model name, a bad body or the like."""


class PidNotHeld(InvalidRequest):
    """The model has no backend with that PID.

    Attributes:
        model: the name that was asked for.
        pid: the PID that was asked for.
        pids: the PIDs of the model's backends.
    """

    def __init__(self, model: str, pid: int, pids: Sequence[int]) -> None:
        held = ", ".join(map(str, pids))
        super().__init__(f"model {model!r} has no backend with PID {pid}; it has {held}")
        self.model = model
        self.pid = pid
        self.pids = tuple(pids)


class ModelNotLoaded(MonitorError, LookupError):
    """No backend of that model is registered.

    Attributes:
        model: the name that was asked for.
    """

    def __init__(self, model: str, ended: str | None = None, on_any_node: bool = False) -> None:
        """`ended` describes how the last backend of the model ended, if that is known."""
        where = " on any node" if on_any_node else ""
        super().__init__(f"model {model!r} is not loaded{where}" + (f": {ended}" if ended else ""))
        self.model = model


class LogUnavailable(MonitorError):
    """The log of a model's process cannot be read.

    Attributes:
        model: the model's name.
    """

    def __init__(self, model: str, pid: int | None, stream: str, reason: str) -> None:
        """`reason` is a clause about the process."""
        name = {"stdout": "standard output", "stderr": "standard error"}[stream]
        process = "its process" if pid is None else f"its process {pid}"
        super().__init__(
            f"model {model!r}: there is no log of the {name} of {process}: {reason}; let the "
            "process write to a file, or implement the hook monitor_read_log"
        )
        self.model = model


class BackendUnreadable(MonitorError):
    """The call of `Status` failed, and the process could not be read either.

    Attributes:
        model: the backend's model.
        pid: the backend's PID.
    """

    def __init__(self, model: str, pid: int, reason: str) -> None:
        super().__init__(f"model {model!r}: process {pid} cannot be read: {reason}")
        self.model = model
        self.pid = pid


class ShutdownRefused(MonitorError):
    """A hook refused the shutdown; nothing was stopped.

    Attributes:
        model: the model's name.
        plugin_name: the plugin that refused.
        reason: the reason that the plugin gave.
    """

    def __init__(self, model: str, plugin_name: str, reason: str) -> None:
        super().__init__(
            f"model {model!r} was not stopped: plugin {plugin_name!r} refused: {reason}"
        )
        self.model = model
        self.plugin_name = plugin_name
        self.reason = reason


class ShutdownFailed(MonitorError):
    """The model's processes could not be stopped, or were started again, or its address is served.

    Attributes:
        model: the model's name.
        pids: the processes that were still running, or served the address, when the monitor gave
            up.
    """

    def __init__(self, model: str, reason: str, pids: Sequence[int] = ()) -> None:
        super().__init__(f"model {model!r} could not be stopped: {reason}")
        self.model = model
        self.reason = reason
        self.pids = tuple(pids)


class StartFailed(MonitorError):
    """The model could not be started, or did not become ready.

    Attributes:
        model: the model's name.
        reason: why, as a clause.
        last_output: the last output of its process, escaped; None if there is none. It may hold
            what users sent to the model, so that the message does not have it.
        is_cancelled: whether a shutdown by force, or the end of the monitor, ended the start.
    """

    def __init__(
        self,
        model: str,
        reason: str,
        last_output: str | None = None,
        *,
        is_cancelled: bool = False,
    ) -> None:
        super().__init__(f"model {model!r} could not be started: {reason}")
        self.model = model
        self.reason = reason
        self.last_output = last_output
        self.is_cancelled = is_cancelled


class TooManyShutdowns(MonitorError):
    """The maximum number of shutdowns are running already; nothing was stopped.

    Attributes:
        retry_after_seconds: how long to wait before the next attempt.
    """

    def __init__(self, limit: int, retry_after_seconds: int) -> None:
        super().__init__(
            f"{limit} shutdowns are under way, which is as many as are taken at once; "
            f"nothing was stopped, try again in {retry_after_seconds} s"
        )
        self.retry_after_seconds = retry_after_seconds


class TooManyStarts(MonitorError):
    """The maximum number of starts are running already; nothing was started.

    Attributes:
        retry_after_seconds: how long to wait before the next attempt.
    """

    def __init__(self, limit: int, retry_after_seconds: int) -> None:
        super().__init__(
            f"{limit} starts are in progress, which is the maximum; nothing was started, try again "
            f"in {retry_after_seconds} s"
        )
        self.retry_after_seconds = retry_after_seconds


class ClusterError(MonitorError):
    """A request to another node of the cluster failed.

    Attributes:
        nodes: the names of the nodes, if they are known.
    """

    def __init__(self, message: str, nodes: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.nodes = tuple(nodes)


class NodeUnreachable(ClusterError):
    """A node does not answer; nothing was stopped or started on it."""


class NodeForbidden(ClusterError):
    """NATS does not permit the request; nothing was stopped or started."""


class OutcomeUnknown(ClusterError):
    """A node was told to stop or start a model, and may or may not have done so."""


class RequestFailed(MonitorError):
    """A request to a running monitor failed: no response, or an error.

    Attributes:
        url: the URL of the monitor.
        status: the HTTP status of the response; None if there was none.
        type: the type of the error, such as `model_not_loaded`; None if the response has none.
    """

    def __init__(
        self, url: str, message: str, status: int | None = None, type: str | None = None
    ) -> None:
        super().__init__(message)
        self.url = url
        self.status = status
        self.type = type
