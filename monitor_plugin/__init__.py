"""A drop-in monitor for hosts that run one model-serving process per model.

The monitor reads each backend by its gRPC `Status` or by its process, and stops backends and
verifies their end, over HTTP and from Python. Importing the package starts and opens nothing. gRPC
and the HTTP server are imported when `Monitor` or `install` is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .config.settings import Settings
from .domain.errors import (
    BackendUnreadable,
    ClusterError,
    InvalidBackend,
    InvalidRequest,
    ListenError,
    LogUnavailable,
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
    StartFailed,
    TooManyShutdowns,
    TooManyStarts,
)
from .domain.gpus import Gpu, GpuUse
from .domain.known_models import KnownModel
from .domain.logs import LogTail
from .domain.models import (
    Backend,
    BackendExit,
    EventFigures,
    Freed,
    HookFigures,
    LoadedPlugin,
    Memory,
    Reading,
    Sample,
    State,
    Status,
)
from .domain.postmortems import PostMortem
from .domain.units import HostExit, HostUnit
from .hookspecs import hookimpl, hookspec

if TYPE_CHECKING:
    from .installation import install
    from .monitor import Monitor

__all__ = [
    "Backend",
    "BackendExit",
    "BackendUnreadable",
    "ClusterError",
    "EventFigures",
    "Freed",
    "Gpu",
    "GpuUse",
    "HookFigures",
    "HostExit",
    "HostUnit",
    "InvalidBackend",
    "InvalidRequest",
    "KnownModel",
    "ListenError",
    "LoadedPlugin",
    "LogTail",
    "LogUnavailable",
    "Memory",
    "ModelNotLoaded",
    "Monitor",
    "MonitorError",
    "NodeForbidden",
    "NodeUnreachable",
    "OutcomeUnknown",
    "PidNotHeld",
    "PluginError",
    "PostMortem",
    "Reading",
    "RequestFailed",
    "Sample",
    "Settings",
    "SettingsError",
    "ShutdownFailed",
    "ShutdownRefused",
    "StartFailed",
    "State",
    "Status",
    "TooManyShutdowns",
    "TooManyStarts",
    "hookimpl",
    "hookspec",
    "install",
]


# Keeps the old paths of modules that were moved out of this folder.
__path__.append(f"{__path__[0]}/moved")


def __getattr__(name: str) -> Any:
    # Both need gRPC and the HTTP server, whose import takes several times as long as the rest.
    modules = {"Monitor": ".monitor", "install": ".installation"}
    if name not in modules:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(modules[name], __name__), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
