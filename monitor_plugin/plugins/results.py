"""What implementations of hooks may give: checked, and made into what is used.

Each function takes an answer, and gives it as it is used, and None where it says nothing. They run
where the implementation does, as a mapping may be anybody's code.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeGuard

from ..domain.models import Memory, Status
from .hook_run import WrongType

_MAX_BYTES = 2**64 - 1
_STATES = range(-(2**63), 2**63)
_METADATA_KEY = re.compile(r"(?!grpc-)[0-9a-z_.-]+(?<!-bin)", re.ASCII)
_METADATA_VALUE = re.compile(r"[\x20-\x7e]*", re.ASCII)


def given_status(value: object) -> Status:
    """Take a status."""
    if not _is_status(value):
        raise WrongType(value, "a Status of integers within 64 bits")
    memory = value.memory
    if memory is not None:
        memory = Memory(int(memory.total), _breakdown(memory.breakdown))
    return Status(int(value.state), memory)


def given_metadata(value: object) -> dict[str, str] | None:
    """Take the metadata of a call."""
    if not isinstance(value, Mapping) or not _is_metadata(given := dict(value)):
        raise WrongType(value, "a mapping of gRPC metadata: ASCII, and keys in lower case")
    return given


def given_components(value: object) -> dict[str, int] | None:
    """Take bytes by component."""
    if type(value) is dict and not value:  # the usual answer, and to be had for little
        return None
    if not isinstance(value, Mapping) or not _is_breakdown(given := dict(value)):
        raise WrongType(value, "a mapping of names to bytes")
    return _breakdown(given)


def given_reason(value: object) -> str:
    """Take why a shutdown is refused."""
    if not isinstance(value, str):
        raise WrongType(value, "a string or None")
    return value


def given_under_way(value: object) -> bool:
    """Take whether a stop is under way."""
    if not isinstance(value, bool):
        raise WrongType(value, "True, False or None")
    return value


def _is_bytes(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MAX_BYTES


def _is_text(value: object) -> bool:
    """Whether it is a string that JSON can carry, which takes no lone surrogate."""
    if not isinstance(value, str):
        return False
    return value == value.encode(errors="replace").decode()


def _breakdown(given: Mapping[str, int]) -> dict[str, int]:
    """Copy bytes by component as plain integers: JSON takes no subclass, such as a ByteSize."""
    return {name: int(amount) for name, amount in given.items()}


def _is_breakdown(value: object) -> bool:
    return isinstance(value, Mapping) and all(
        _is_text(name) and _is_bytes(amount) for name, amount in value.items()
    )


def _is_status(value: object) -> TypeGuard[Status]:
    if not isinstance(value, Status) or not isinstance(value.state, int):
        return False
    if int(value.state) not in _STATES:
        return False
    memory = value.memory
    return memory is None or (
        isinstance(memory, Memory) and _is_bytes(memory.total) and _is_breakdown(memory.breakdown)
    )


def _is_metadata(value: object) -> bool:
    return isinstance(value, Mapping) and all(
        isinstance(key, str)
        and isinstance(text, str)
        and _METADATA_KEY.fullmatch(key)
        and _METADATA_VALUE.fullmatch(text)
        for key, text in value.items()
    )
