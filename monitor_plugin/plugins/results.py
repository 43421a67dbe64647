"""Validates the results of hooks.

Each function returns the value as plain types, or raises `WrongType`. The
functions run within the implementation's time limit, because a mapping may be third-party code.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeGuard

from ..domain.models import Memory, Status
from .executor import WrongType

_MAX_BYTES = 2**64 - 1
_STATES = range(-(2**63), 2**63)
_METADATA_KEY = re.compile(r"(?!grpc-)[0-9a-z_.-]+(?<!-bin)", re.ASCII)
_METADATA_VALUE = re.compile(r"[\x20-\x7e]*", re.ASCII)


def validate_status(value: object) -> Status:
    """Validate the result of `monitor_query_status`."""
    if not _is_status(value):
        raise WrongType(value, "a Status of integers within 64 bits")
    memory = value.memory
    if memory is not None:
        memory = Memory(int(memory.total), _breakdown(memory.breakdown))
    return Status(int(value.state), memory)


def validate_metadata(value: object) -> dict[str, str]:
    """Validate the result of `monitor_call_metadata`."""
    if not isinstance(value, Mapping) or not _is_metadata(metadata := dict(value)):
        raise WrongType(value, "a mapping of gRPC metadata: ASCII, and keys in lower case")
    return metadata


def validate_components(value: object) -> dict[str, int]:
    """Validate the result of `monitor_memory_components`."""
    if not isinstance(value, Mapping) or not _is_breakdown(components := dict(value)):
        raise WrongType(value, "a mapping of names to bytes")
    return _breakdown(components)


def validate_reason(value: object) -> str:
    """Validate the result of `monitor_before_shutdown`."""
    if not isinstance(value, str):
        raise WrongType(value, "a string or None")
    return value


def validate_under_way(value: object) -> bool:
    """Validate the result of `monitor_stop_backend`."""
    if not isinstance(value, bool):
        raise WrongType(value, "True, False or None")
    return value


def _is_bytes(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MAX_BYTES


def _is_text(value: object) -> bool:
    """Whether a value is a string without lone surrogates, which JSON cannot encode."""
    return isinstance(value, str) and value == value.encode(errors="replace").decode()


def _breakdown(components: Mapping[str, int]) -> dict[str, int]:
    """Copy bytes by component as plain integers; msgspec encodes no subclass of int."""
    return {name: int(amount) for name, amount in components.items()}


def _is_breakdown(value: object) -> bool:
    return isinstance(value, Mapping) and all(
        _is_text(name) and _is_bytes(amount) for name, amount in value.items()
    )


def _is_status(value: object) -> TypeGuard[Status]:
    if not isinstance(value, Status) or not isinstance(value.state, int):
        return False
    memory = value.memory
    return int(value.state) in _STATES and (
        memory is None
        or (
            isinstance(memory, Memory)
            and _is_bytes(memory.total)
            and _is_breakdown(memory.breakdown)
        )
    )


def _is_metadata(value: Mapping[object, object]) -> bool:
    return all(
        isinstance(key, str)
        and isinstance(text, str)
        and _METADATA_KEY.fullmatch(key)
        and _METADATA_VALUE.fullmatch(text)
        for key, text in value.items()
    )
