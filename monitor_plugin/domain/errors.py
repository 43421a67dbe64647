"""Everything that the package raises on purpose.

MonitorError
├── SettingsError          a setting has a value that cannot be used
├── ListenError            the HTTP server cannot listen where it was told to
├── PluginError            a plugin or a plugin manager cannot be used
├── InvalidBackend         a host registered something that cannot be watched
├── InvalidRequest         a client sent something that cannot be understood
│   └── PidNotHeld         the model has no backend with that PID
├── ModelNotLoaded         no backend of that model is registered
├── BackendUnreadable      neither the backend nor its process could be read
├── ShutdownRefused        a hook refused the shutdown
├── ShutdownFailed         the processes could not be stopped, or did not stay stopped
├── TooManyShutdowns       no more shutdowns are taken at the moment
├── RequestFailed          a running monitor could not be asked, or answered with an error
└── ClusterError           another node of the cluster is needed
    ├── NodeUnreachable    it does not answer
    ├── NodeForbidden      NATS does not let this node ask it for that
    └── OutcomeUnknown     it was told to stop a model, and has not said whether it did

Each carries its facts as attributes; which HTTP status each becomes stands in `api/results.py`.
"""

from __future__ import annotations

from collections.abc import Sequence


class MonitorError(Exception):
    """The root of the family: catch this one to catch them all."""


class SettingsError(MonitorError, ValueError):
    """A setting has a value that cannot be used.

    Attributes:
        setting: the field's name in `Settings`.
    """

    def __init__(self, setting: str, message: str) -> None:
        super().__init__(message)
        self.setting = setting


class ListenError(MonitorError, OSError):
    """The HTTP server cannot listen where it was told to.

    Attributes:
        listen: the address, as the setting `listen` gives it.
    """

    def __init__(self, listen: str, message: str) -> None:
        super().__init__(message)
        self.listen = listen


class PluginError(MonitorError):
    """A plugin, or a host's plugin manager, cannot be used.

    Attributes:
        plugin_name: the name under which it was registered, if it has one.
    """

    def __init__(self, plugin_name: str | None, message: str) -> None:
        super().__init__(message)
        self.plugin_name = plugin_name


class InvalidBackend(MonitorError, ValueError):
    """A host registered something that cannot be watched; nothing was changed.

    Attributes:
        model, pid, address: as the host gave them, whatever their types.
    """

    def __init__(self, message: str, *, model: object, pid: object, address: object) -> None:
        super().__init__(message)
        self.model = model
        self.pid = pid
        self.address = address


class InvalidRequest(MonitorError, ValueError):
    """A client sent something that cannot be understood: a bad model name, a bad body."""


class PidNotHeld(InvalidRequest):
    """The model has no backend with that PID.

    Attributes:
        model: the name that was asked for.
        pid: the PID that was asked for.
        pids: those of the model's backends.
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
        """`ended` tells how the last backend of the model ended, where that is known."""
        where = " on any node" if on_any_node else ""
        super().__init__(f"model {model!r} is not loaded{where}" + (f": {ended}" if ended else ""))
        self.model = model


class BackendUnreadable(MonitorError):
    """The backend's status failed, and its process could not be read either.

    Attributes:
        model, pid: the backend's.
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
        reason: what it said.
    """

    def __init__(self, model: str, plugin_name: str, reason: str) -> None:
        super().__init__(
            f"model {model!r} was not stopped: plugin {plugin_name!r} refused: {reason}"
        )
        self.model = model
        self.plugin_name = plugin_name
        self.reason = reason


class ShutdownFailed(MonitorError):
    """The model's processes could not be stopped, or did not stay stopped.

    Attributes:
        model: the model's name.
        pids: the processes that were still running when the monitor gave up.
    """

    def __init__(self, model: str, reason: str, pids: Sequence[int] = ()) -> None:
        super().__init__(f"model {model!r} could not be stopped: {reason}")
        self.model = model
        self.reason = reason
        self.pids = tuple(pids)


class TooManyShutdowns(MonitorError):
    """As many shutdowns are under way as the server takes at once; nothing was stopped.

    Attributes:
        retry_after_seconds: when to ask again.
    """

    def __init__(self, limit: int, retry_after_seconds: int) -> None:
        super().__init__(
            f"{limit} shutdowns are under way, which is as many as are taken at once; "
            f"nothing was stopped, try again in {retry_after_seconds} s"
        )
        self.retry_after_seconds = retry_after_seconds


class ClusterError(MonitorError):
    """Another node of the cluster is needed, and does not do its part.

    Attributes:
        nodes: the names of those nodes, where they are known.
    """

    def __init__(self, message: str, nodes: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.nodes = tuple(nodes)


class NodeUnreachable(ClusterError):
    """A node does not answer; nothing was stopped there."""


class NodeForbidden(ClusterError):
    """NATS does not let this node ask for that; nothing was stopped."""


class OutcomeUnknown(ClusterError):
    """A node was told to stop a model, and may or may not have done so."""


class RequestFailed(MonitorError):
    """A running monitor could not be asked, or answered with an error.

    Attributes:
        url: the monitor's.
        status: the HTTP status of the answer; None where there was none.
        type: the error's type in the answer, `model_not_loaded` say; None where it names none.
    """

    def __init__(
        self, url: str, message: str, status: int | None = None, type: str | None = None
    ) -> None:
        super().__init__(message)
        self.url = url
        self.status = status
        self.type = type
