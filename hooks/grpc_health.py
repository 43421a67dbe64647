"""The status of servers that speak gRPC's health checking protocol, grpc.health.v1.

Calls `Health/Check` of a backend: SERVING becomes READY, NOT_SERVING becomes UNINITIALIZED. The
protocol has neither BUSY nor memory, so exclude backends that implement `Status` with the setting
MODELS. A backend that does not speak the protocol gets a single request; from then on the other
hooks and gRPC `Status` read the backend. They also do so whenever the backend cannot be reached,
does not respond in time, or does not know the service or its state. The setting
`protocol=grpc-health` of the monitor asks in the same way without this file; it has no SERVICE.

To enable it, copy or link this file into the folder of the monitor's setting `hooks_dir`. Optional
environment variables: MONITOR_HOOK_GRPC_HEALTH_...

    MODELS    shell pattern of the models that get requests (*)
    SERVICE   name of the service in the request (empty: the server as a whole)
"""

from __future__ import annotations

from monitor_plugin import Backend, Status
from monitor_plugin.hook_support.settings import HookSettings
from monitor_plugin.hook_support.status_hooks import Call, StatusHooks, ask_grpc_health

_settings = HookSettings(__name__)
MODELS = _settings.get("MODELS", str, "a pattern, as triton-*", "*")
SERVICE = _settings.get("SERVICE", str, "a service's name", "")


def ask(backend: Backend, call: Call) -> Status | None:
    """Request the health of a server."""
    return ask_grpc_health(backend.model, call, SERVICE)


_hooks = StatusHooks(ask, MODELS)
monitor_started = _hooks.monitor_started
monitor_backend_registered = _hooks.monitor_backend_registered
monitor_query_status = _hooks.monitor_query_status
monitor_backend_gone = _hooks.monitor_backend_gone
monitor_closing = _hooks.monitor_closing
