"""The status of servers that speak the Open Inference Protocol v2: Triton, KServe, TorchServe.

Calls `ServerReady` of a backend, then `ModelReady`. The state is READY if both are true, else
UNINITIALIZED. The state is also UNINITIALIZED if the server is ready, and answers `ModelReady` with
an error: for a model that the server does not know, MLServer answers UNKNOWN, other servers answer
NOT_FOUND. The protocol has no BUSY; the memory is that of the process tree. A backend that does not
speak the protocol gets a single request; from then on the other hooks and gRPC `Status` read the
backend. They also do so whenever the backend cannot be reached or does not respond in time. The
setting `protocol=kserve-grpc` of the monitor asks in the same way without this file; it has neither
ASK_FOR nor SERVICE.

To enable it, copy or link this file into the folder of the monitor's setting `hooks_dir`. Optional
environment variables: MONITOR_HOOK_KSERVE_STATUS_...

    MODELS    shell pattern of the models that get requests (*)
    ASK_FOR   name of the model in the request (the backend's model)
    SERVICE   name of the gRPC service (inference.GRPCInferenceService); that of TorchServe is
              org.pytorch.serve.grpc.openinference.GRPCInferenceService
"""

from __future__ import annotations

from monitor_plugin import Backend, Status
from monitor_plugin.hook_support.settings import HookSettings
from monitor_plugin.hook_support.status_hooks import KSERVE_SERVICE, Call, StatusHooks, ask_kserve

_settings = HookSettings(__name__)
MODELS = _settings.get("MODELS", str, "a pattern, as triton-*", "*")
ASK_FOR = _settings.get("ASK_FOR", str, "a model's name", None)
SERVICE = _settings.get("SERVICE", str, "a service's name", KSERVE_SERVICE)


def ask(backend: Backend, call: Call) -> Status:
    """Request whether a server is ready, then whether its model is ready."""
    return ask_kserve(ASK_FOR or backend.model, call, SERVICE)


_hooks = StatusHooks(ask, MODELS)
monitor_started = _hooks.monitor_started
monitor_backend_registered = _hooks.monitor_backend_registered
monitor_query_status = _hooks.monitor_query_status
monitor_backend_gone = _hooks.monitor_backend_gone
monitor_closing = _hooks.monitor_closing
