from __future__ import annotations

import msgspec
import pytest

from monitor_plugin import Backend, BackendExit, Memory, Reading, Sample, State, Status

BACKEND = Backend("llama", 42, "127.0.0.1:50051", 1.5)
RECORDS = [
    BACKEND,
    Memory(3, {"weights": 2}),
    Status(2, Memory(3)),
    Sample(1, 2, 0.5, 12.5),
    BackendExit("exited", 0, None, False, 2.0),
    Reading(BACKEND, None, Sample(1, 2, 0.5, 12.5), "psutil", "UNIMPLEMENTED", 2.0),
]


def test_states_have_the_numbers_of_the_protocol() -> None:
    """The numbers are LocalAI's: 0 uninitialized, 1 busy, 2 ready, -1 error."""
    numbers = {state.name: int(state) for state in State}
    assert numbers == {"UNINITIALIZED": 0, "BUSY": 1, "READY": 2, "ERROR": -1}


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_records_are_frozen(record: msgspec.Struct) -> None:
    """No field of a record can be assigned, so that it can be shared between threads."""
    for name in record.__struct_fields__:
        with pytest.raises(AttributeError):
            setattr(record, name, None)


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (Backend, "model pid address created_at"),
        (Memory, "total breakdown"),
        (
            Status,
            "state memory requests_running requests_waiting tokens_per_second kv_cache_percent",
        ),
        (Sample, "rss vms memory_percent cpu_percent"),
        (BackendExit, "cause exit_code signal oom ended_at oom_certain peak_rss"),
        (
            Reading,
            "backend status sample source rpc_error taken_at memory_source replicas "
            "address_owner memory_age_seconds protocol status_error",
        ),
    ],
)
def test_records_have_the_fields_of_the_contract(kind: type[msgspec.Struct], fields: str) -> None:
    """The fields have their documented names and order."""
    assert kind.__struct_fields__ == tuple(fields.split())


def test_backends_with_different_creation_times_differ() -> None:
    """Also if the PID is the same."""
    assert Backend("llama", 42, "127.0.0.1:50051", 1.5) == BACKEND
    assert msgspec.structs.replace(BACKEND, created_at=1.6) != BACKEND
    assert len({BACKEND, Backend("llama", 42, "127.0.0.1:50051", 1.5)}) == 1


def test_optional_fields_default_to_unknown() -> None:
    """Memory is unknown unless given, and two records share no breakdown."""
    assert Status(7).memory is None
    assert RECORDS[-1].memory_source is None  # type: ignore[attr-defined]
    one, other = Memory(1), Memory(1)
    assert one.breakdown == {}
    assert one.breakdown is not other.breakdown
