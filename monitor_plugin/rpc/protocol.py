"""LocalAI's backend protocol, as far as it is used, in a descriptor pool of our own.

A host may have LocalAI's full `backend_pb2` in the same process, and protobuf's default pool
takes only one `backend.proto`; so nothing is loaded there, and no generated code is used.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import resources
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from ..domain.models import Memory, Status

SERVICE = "backend.Backend"
STATUS_METHOD = f"/{SERVICE}/Status"
FREE_METHOD = f"/{SERVICE}/Free"


def load_messages() -> Callable[[str], Any]:
    """Load the compiled `backend.proto` into a private pool.

    Returns:
        A function that gives a message's class by its name, `StatusResponse` say.
    """
    compiled = resources.files("monitor_plugin.rpc").joinpath("backend.binpb").read_bytes()
    pool = descriptor_pool.DescriptorPool()
    for file in descriptor_pb2.FileDescriptorSet.FromString(compiled).file:
        pool.AddSerializedFile(file.SerializeToString())

    def message_class(name: str) -> Any:
        return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"backend.{name}"))

    return message_class


def status_from_wire(response: Any) -> Status:
    """Turn a `StatusResponse` message into a `Status`.

    A memory report without a total and without parts is none at all: no process holds 0 bytes.
    """
    memory = None
    if response.HasField("memory"):
        breakdown = dict(sorted(response.memory.breakdown.items()))
        if response.memory.total or breakdown:
            memory = Memory(total=response.memory.total, breakdown=breakdown)
    return Status(state=response.state, memory=memory)
