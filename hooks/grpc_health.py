"""The status of servers that speak gRPC's own health checking protocol, grpc.health.v1.

Asks a backend for `Health/Check`: READY where it says SERVING, UNINITIALIZED where it says
NOT_SERVING. That is all that it can say: BUSY and memory are not known to the protocol, so that
backends that implement `Status` are better left out by the setting MODELS. A backend that does not
speak it is asked once in its life, and then left to the other hooks and to gRPC `Status`; so is,
each time, one that cannot be reached, does not answer in time, or does not know the service or its
state.

To enable it: a copy of, or a link to, this file in the folder of the monitor's setting `hooks_dir`,
and, where need be, environment variables MONITOR_HOOK_GRPC_HEALTH_...

    MODELS    pattern of the names of the models that are asked (*)
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
    """Ask a server for its health.

    The protocol's messages have one field each, and so these wrappers' form.
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
