"""The messages of LocalAI's backend protocol that the monitor uses, in a private descriptor pool.

A host may load LocalAI's full `backend_pb2` in the same process. protobuf's default pool accepts
only one file named `backend.proto`, so the monitor uses neither that pool nor generated code.
"""

from __future__ import annotations

from importlib import resources
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from ..domain.models import Memory, Status

SERVICE = "backend.Backend"
STATUS_METHOD = f"/{SERVICE}/Status"
FREE_METHOD = f"/{SERVICE}/Free"


def load_messages() -> dict[str, Any]:
    """Load the compiled `backend.proto` into a new descriptor pool.

    Returns:
        The message classes by name, for example `StatusResponse`.
    """
    compiled = resources.files("monitor_plugin.rpc").joinpath("backend.binpb").read_bytes()
    (file,) = descriptor_pb2.FileDescriptorSet.FromString(compiled).file
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    messages = pool.FindFileByName(file.name).message_types_by_name
    return {name: message_factory.GetMessageClass(each) for name, each in messages.items()}


def status_from_wire(response: Any) -> Status:
    """Convert a `StatusResponse` message.

    A memory report of 0 bytes without a breakdown becomes None, as no process holds 0 bytes.
    """
    memory = None
    if response.HasField("memory"):
        breakdown = dict(sorted(response.memory.breakdown.items()))
        if response.memory.total or breakdown:
            memory = Memory(total=response.memory.total, breakdown=breakdown)
    return Status(state=response.state, memory=memory)
