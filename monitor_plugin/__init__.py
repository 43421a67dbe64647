"""A drop-in monitor for hosts that run one model-serving process per model.

Tells the truth about each backend, by its own gRPC `Status` or by its process, and stops it for
good, over HTTP and from Python. Importing this starts and opens nothing.
"""

from .errors import (
    BackendUnreadable,
    ClusterError,
    InvalidBackend,
    InvalidRequest,
    ListenError,
    ModelNotLoaded,
    MonitorError,
    NodeForbidden,
    NodeUnreachable,
    OutcomeUnknown,
    PidNotHeld,
    PluginError,
    RequestFailed,
    SettingsError,
    ShutdownFailed,
    ShutdownRefused,
    TooManyShutdowns,
)
from .hookspecs import hookimpl, hookspec
from .installing import install
from .models import (
    Backend,
    BackendExit,
    HookFigures,
    LoadedPlugin,
    Memory,
    Reading,
    Sample,
    State,
    Status,
)
from .monitor import Monitor
from .settings import Settings

__all__ = [
    "Backend",
    "BackendExit",
    "BackendUnreadable",
    "ClusterError",
    "HookFigures",
    "InvalidBackend",
    "InvalidRequest",
    "ListenError",
    "LoadedPlugin",
    "Memory",
    "ModelNotLoaded",
    "Monitor",
    "MonitorError",
    "NodeForbidden",
    "NodeUnreachable",
    "OutcomeUnknown",
    "PidNotHeld",
    "PluginError",
    "Reading",
    "RequestFailed",
    "Sample",
    "Settings",
    "SettingsError",
    "ShutdownFailed",
    "ShutdownRefused",
    "State",
    "Status",
    "TooManyShutdowns",
    "hookimpl",
    "hookspec",
    "install",
]
