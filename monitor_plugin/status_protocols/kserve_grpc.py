"""Servers of the Open Inference Protocol v2 over gRPC: Triton, MLServer, KServe, TorchServe.

The source is https://kserve.github.io/website/docs/concepts/architecture/data-plane/v2-protocol.
"""

from __future__ import annotations

import grpc
from google.protobuf.wrappers_pb2 import BoolValue, StringValue

from ..domain.models import State, Status
from .protocol import Call

SERVICE = "inference.GRPCInferenceService"

# Errors with these codes say nothing about the model.
_NO_ANSWER = (
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
)


def ask(model: str, call: Call, service: str = SERVICE) -> Status:
    """Request whether a server is ready by `ServerReady`, then its model by `ModelReady`.

    The state is READY if both are, else UNINITIALIZED, also if the server answers `ModelReady` with
    an error: for a model that the server does not know, MLServer answers UNKNOWN, other servers
    NOT_FOUND. The protocol has no BUSY, no memory and no load. Wrapper messages replace the
    protocol's messages, of which only the first field is needed.

    Args:
        model: the name of the model in the request.
        call: calls a method; see `Call`.
        service: the name of the gRPC service.
    """
    name = StringValue(value=model).SerializeToString()
    ready = BoolValue.FromString(call(f"/{service}/ServerReady", b"")).value
    if ready:
        try:
            ready = BoolValue.FromString(call(f"/{service}/ModelReady", name)).value
        except grpc.RpcError as error:
            if error.code() in _NO_ANSWER:
                raise
            ready = False
    return Status(State.READY if ready else State.UNINITIALIZED)
