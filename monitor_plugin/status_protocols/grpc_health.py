"""Servers of gRPC's health checking protocol, grpc.health.v1.

The source is https://github.com/grpc/grpc/blob/master/doc/health-checking.md.
"""

from __future__ import annotations

from google.protobuf.wrappers_pb2 import Int32Value, StringValue

from ..domain.models import State, Status
from .protocol import Call

_STATES = {1: State.READY, 2: State.UNINITIALIZED}  # by SERVING and NOT_SERVING


def ask(model: str, call: Call, service: str = "") -> Status | None:
    """Request the health of a server by `Health/Check`.

    SERVING is READY, and NOT_SERVING is UNINITIALIZED. The protocol has no BUSY, no memory and no
    load. Wrapper messages replace the protocol's messages, which have one field each.

    Args:
        model: not used, as the protocol knows services instead.
        call: calls a method; see `Call`.
        service: the name of the service; empty for the server as a whole.
    """
    request = StringValue(value=service).SerializeToString()
    health = Int32Value.FromString(call("/grpc.health.v1.Health/Check", request)).value
    return Status(_STATES[health]) if health in _STATES else None
