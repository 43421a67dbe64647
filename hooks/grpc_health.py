"""The status of servers that speak gRPC's own health checking protocol, grpc.health.v1.

Calls `Health/Check` of a backend: SERVING becomes READY, NOT_SERVING becomes UNINITIALIZED. The
protocol knows neither BUSY nor memory, so exclude backends that implement `Status` by the setting
MODELS. A backend that does not speak the protocol gets one request in its life; after that the
other hooks and gRPC `Status` read it. They also read, each time, a backend that cannot be reached,
does not respond in time, or does not know the service or its state.

To enable it, copy or link this file into the folder of the monitor's setting `hooks_dir`. Optional
environment variables: MONITOR_HOOK_GRPC_HEALTH_...

    MODELS    pattern of the names of the models that get requests (*)
    SERVICE   name of the service to ask for (empty: the server as a whole)
"""

from __future__ import annotations

from google.protobuf.wrappers_pb2 import Int32Value, StringValue

from monitor_plugin import Backend, State, Status
from monitor_plugin.hook_support.settings import HookSettings
from monitor_plugin.hook_support.status_hooks import Call, StatusHooks

_settings = HookSettings(__name__)
MODELS = _settings.get("MODELS", str, "a pattern, as triton-*", "*")
SERVICE = _settings.get("SERVICE", str, "a service's name", "")
STATES = {1: State.READY, 2: State.UNINITIALIZED}  # by SERVING and NOT_SERVING


def ask(backend: Backend, call: Call) -> Status | None:
    """Request the health of a server.

    The protocol's messages have one field each, like the wrapper messages that are used here.
    """
    request = StringValue(value=SERVICE).SerializeToString()
    health = Int32Value.FromString(call("/grpc.health.v1.Health/Check", request)).value
    return Status(STATES[health]) if health in STATES else None


_hooks = StatusHooks(ask, MODELS)
monitor_started = _hooks.monitor_started
monitor_backend_registered = _hooks.monitor_backend_registered
monitor_query_status = _hooks.monitor_query_status
monitor_backend_gone = _hooks.monitor_backend_gone
monitor_closing = _hooks.monitor_closing
