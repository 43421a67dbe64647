"""The status of servers that speak the Open Inference Protocol v2: Triton, KServe, TorchServe.

Asks a backend for `ServerReady`, then for `ModelReady`: READY where both say so, else UNINITIALIZED
(also where the server knows of no such model). BUSY is not known to the protocol, and the memory is
what the process tree holds. A backend that does not speak it is asked once in its life, and then
left to the other hooks and to gRPC `Status`; so is, each time, one that cannot be reached or does
not answer in time.

To enable it: a copy of, or a link to, this file in the folder of the monitor's setting `hooks_dir`,
and, where need be, environment variables MONITOR_HOOK_KSERVE_STATUS_...

    MODELS    pattern of the names of the models that are asked (*)
    ASK_FOR   name of the model to ask for (the backend's model)
    SERVICE   name of the gRPC service (inference.GRPCInferenceService); TorchServe's own is
              org.pytorch.serve.grpc.openinference.GRPCInferenceService
"""

from __future__ import annotations

import grpc
from google.protobuf.wrappers_pb2 import BoolValue, StringValue

from monitor_plugin import Backend, State, Status
from monitor_plugin.hook_support.settings import HookSettings
from monitor_plugin.hook_support.status_hooks import Call, StatusHooks

_settings = HookSettings(__name__)
MODELS = _settings.get("MODELS", str, "a pattern, as triton-*", "*")
ASK_FOR = _settings.get("ASK_FOR", str, "a model's name", None)
SERVICE = _settings.get("SERVICE", str, "a service's name", "inference.GRPCInferenceService")


def ask(backend: Backend, call: Call) -> Status:
    """Ask a server, then for its model.

    The protocol's messages have one field, or one that matters here, and so these wrappers' form.
    """
    name = StringValue(value=ASK_FOR or backend.model).SerializeToString()
    ready = BoolValue.FromString(call(f"/{SERVICE}/ServerReady", b"")).value
    if ready:
        try:
            ready = BoolValue.FromString(call(f"/{SERVICE}/ModelReady", name)).value
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.NOT_FOUND:
                raise
            ready = False
    return Status(State.READY if ready else State.UNINITIALIZED)


_hooks = StatusHooks(ask, MODELS)
monitor_started = _hooks.monitor_started
monitor_backend_registered = _hooks.monitor_backend_registered
monitor_query_status = _hooks.monitor_query_status
monitor_backend_gone = _hooks.monitor_backend_gone
monitor_closing = _hooks.monitor_closing
