from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor_plugin import Memory, Status
from monitor_plugin.rpc.protocol import (
    FREE_METHOD,
    SERVICE,
    STATUS_METHOD,
    load_messages,
    status_from_wire,
)

UINT64_MAX = 2**64 - 1

MESSAGES = load_messages()


def _run(code: str) -> str:
    return subprocess.check_output([sys.executable, "-W", "error", "-c", code], text=True)


def test_service_and_methods_have_localais_names() -> None:
    """LocalAI's backends are called by these names."""
    assert (SERVICE, STATUS_METHOD, FREE_METHOD) == (
        "backend.Backend",
        "/backend.Backend/Status",
        "/backend.Backend/Free",
    )


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("HealthMessage", {}),
        ("Reply", {"message": 1}),
        ("Result", {"message": 1, "success": 2}),
        ("MemoryUsageData", {"total": 1, "breakdown": 2}),
        ("StatusResponse", {"state": 1, "memory": 2}),
    ],
)
def test_messages_have_localais_fields(name: str, fields: dict[str, int]) -> None:
    """Each message has LocalAI's field names and numbers."""
    descriptor = MESSAGES[name].DESCRIPTOR
    assert descriptor.full_name == f"backend.{name}"
    assert {field.name: field.number for field in descriptor.fields} == fields


def test_an_unknown_message_is_a_key_error() -> None:
    """Only the protocol's messages are loaded."""
    with pytest.raises(KeyError):
        MESSAGES["Nonsense"]


def test_protobufs_default_pool_stays_empty() -> None:
    """A host can load its own `backend.proto` into the default pool."""
    code = (
        "from google.protobuf import descriptor_pb2, descriptor_pool\n"
        "from monitor_plugin.rpc.protocol import load_messages\n"
        "load_messages()['StatusResponse']\n"
        "pool = descriptor_pool.Default()\n"
        "file = descriptor_pb2.FileDescriptorProto(name='backend.proto', package='backend')\n"
        "file.message_type.add(name='StatusResponse').field.add(\n"
        "    name='other', number=9, label=1, type=9)\n"
        "pool.AddSerializedFile(file.SerializeToString())\n"
        "theirs = pool.FindMessageTypeByName('backend.StatusResponse')\n"
        "ours = load_messages()['StatusResponse'].DESCRIPTOR\n"
        "print([f.name for f in theirs.fields], [f.name for f in ours.fields])"
    )
    assert _run(code) == "['other'] ['state', 'memory']\n"


def test_a_host_may_load_its_own_backend_proto_first() -> None:
    """Another `backend.proto` in the default pool has no effect."""
    code = (
        "from google.protobuf import descriptor_pb2, descriptor_pool\n"
        "file = descriptor_pb2.FileDescriptorProto(name='backend.proto', package='backend')\n"
        "file.message_type.add(name='StatusResponse')\n"
        "descriptor_pool.Default().AddSerializedFile(file.SerializeToString())\n"
        "from monitor_plugin.rpc.protocol import load_messages\n"
        "print(load_messages()['StatusResponse'](state=2).state)"
    )
    assert _run(code) == "2\n"


@pytest.mark.parametrize(
    ("wire", "status"),
    [
        (b"", Status(0)),
        (b"\x08\x02", Status(2)),
        (b"\x08\x01", Status(1)),
        (b"\x08" + b"\xff" * 9 + b"\x01", Status(-1)),
        (b"\x08\x2a", Status(42)),
        (b"\x08\x02\x12\x02\x08\x05", Status(2, Memory(5))),
        (b"\x12\x0b\x08" + b"\xff" * 9 + b"\x01", Status(0, Memory(UINT64_MAX))),
        (b"\x12\x0a\x08\x05\x12\x06\x0a\x02kv\x10\x03", Status(0, Memory(5, {"kv": 3}))),
        (b"\x12\x08\x12\x06\x0a\x02kv\x10\x03", Status(0, Memory(0, {"kv": 3}))),
        (b"\x08\x02\x7a\x03abc", Status(2)),
    ],
)
def test_a_response_becomes_a_status(wire: bytes, status: Status) -> None:
    """Unknown states are kept; the memory has total and breakdown."""
    assert status_from_wire(MESSAGES["StatusResponse"].FromString(wire)) == status


def test_an_empty_memory_report_is_none() -> None:
    """No process holds 0 bytes."""
    status = status_from_wire(MESSAGES["StatusResponse"].FromString(b"\x08\x02\x12\x00"))
    assert status == Status(2, None)


@given(
    st.integers(-(2**31), 2**31 - 1),
    st.integers(0, UINT64_MAX),
    st.dictionaries(st.text(max_size=8), st.integers(0, UINT64_MAX), max_size=5),
)
def test_a_status_survives_the_wire(state: int, total: int, breakdown: dict[str, int]) -> None:
    """Every status is decoded to plain types, with the breakdown sorted by name."""
    sent = MESSAGES["StatusResponse"](state=state, memory={"total": total, "breakdown": breakdown})
    status = status_from_wire(MESSAGES["StatusResponse"].FromString(sent.SerializeToString()))
    assert status.state == state
    assert type(status.state) is int
    if not total and not breakdown:
        assert status.memory is None
        return
    assert status.memory == Memory(total, breakdown)
    assert type(status.memory.breakdown) is dict
    assert list(status.memory.breakdown) == sorted(breakdown)
