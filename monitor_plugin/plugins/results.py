"""Validates the results of hooks.

Each function returns the value as plain types, or raises `WrongType`. The
functions run within the implementation's time limit, because a mapping may be third-party code.
"""

from __future__ import annotations

import math
import re
import signal
from collections.abc import Mapping, Sequence
from operator import index
from typing import TypeVar

import msgspec
from msgspec.structs import replace

from ..domain.gpus import Gpu, GpuUse
from ..domain.known_models import MODEL_STATES, KnownModel
from ..domain.logs import LogTail
from ..domain.model_name import validate_model_name
from ..domain.models import Memory, Status
from .executor import WrongType

_T = TypeVar("_T")

_MAX_BYTES = 2**64 - 1
_STATES = range(-(2**63), 2**63)
# The errors that an invalid field of a GPU raises. The error of msgspec 0.18.0 is no ValueError.
_NOT_PLAIN = (msgspec.MsgspecError, TypeError, ValueError, OverflowError, RecursionError)
_METADATA_KEY = re.compile(r"(?!grpc-)[0-9a-z_.-]+(?<!-bin)", re.ASCII)
# No process can handle SIGKILL or SIGSTOP, and SIGCONT ends none.
_STOP_SIGNALS = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP, signal.SIGCONT}
_METADATA_VALUE = re.compile(r"[\x20-\x7e]*", re.ASCII)


def validate_status(value: object) -> Status:
    """Validate the result of `monitor_query_status`."""
    if isinstance(value, Status) and isinstance(value.state, int) and int(value.state) in _STATES:
        try:
            return Status(int(value.state), _plain_memory(value.memory), *_plain_load(value))
        except _NOT_PLAIN:
            pass
    raise WrongType(value, "a Status of numbers within 64 bits")


def validate_record(kind: type[_T], value: object) -> _T:
    """Validate the result of a hook that returns a record of this kind, or None."""
    if not isinstance(value, kind):
        raise WrongType(value, f"a {kind.__name__} or None")
    try:
        return _plain_record(kind, value)
    except _NOT_PLAIN as error:
        raise WrongType(value, f"a valid {kind.__name__}: {error}") from None


def validate_metadata(value: object) -> dict[str, str]:
    """Validate the result of `monitor_call_metadata`."""
    if isinstance(value, Mapping):
        metadata = dict(value)
        if all(_is_metadata(key, text) for key, text in metadata.items()):
            return metadata
    raise WrongType(value, "a mapping of gRPC metadata: ASCII, and keys in lower case")


def validate_components(value: object) -> dict[str, int]:
    """Validate the result of `monitor_memory_components`."""
    components = _plain_breakdown(value)
    if components is None:
        raise WrongType(value, "a mapping of names to bytes")
    return components


def validate_gpus(value: object) -> tuple[Gpu, ...]:
    """Validate the result of `monitor_list_gpus`."""
    wanted = (
        "a sequence of Gpu, each with a component, bytes and other numbers within 64 bits, and "
        "text that can be encoded"
    )
    if not isinstance(value, Sequence):
        raise WrongType(value, wanted)
    gpus = []
    for position, each in enumerate(value):
        if not isinstance(each, Gpu):
            raise WrongType(value, f"{wanted}; item {position} is {type(each).__name__}")
        try:
            gpus.append(_plain_gpu(each))
        except _NOT_PLAIN as error:
            raise WrongType(value, f"{wanted}; item {position}: {error}") from None
    return tuple(gpus)


def validate_known_models(value: object) -> tuple[KnownModel, ...]:
    """Validate the result of `monitor_list_models`."""
    wanted = (
        "a sequence of KnownModel, each with the name of a model, a state of "
        f"{', '.join(MODEL_STATES)}, a text or None, and a bool"
    )
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
        raise WrongType(value, wanted)
    models: dict[str, KnownModel] = {}
    for position, each in enumerate(value):
        if not isinstance(each, KnownModel):
            raise WrongType(value, f"{wanted}; item {position} is {type(each).__name__}")
        try:
            model = validate_model_name(each.model)
        except ValueError as error:
            raise WrongType(value, f"{wanted}; item {position}: {error}") from None
        is_valid = (
            each.state in MODEL_STATES
            and (each.detail is None or _is_text(each.detail))
            and isinstance(each.can_start, bool)
        )
        if not is_valid:
            raise WrongType(value, f"{wanted}; item {position} is not")
        detail = None if each.detail is None else str.__str__(each.detail)
        known = KnownModel(model, str.__str__(each.state), detail, each.can_start)
        models.setdefault(model, known)  # the first one of a model counts
    return tuple(models.values())


def validate_log(value: object) -> bytes | LogTail:
    """Validate the result of `monitor_read_log`."""
    if isinstance(value, LogTail):
        if isinstance(value.data, bytes) and _is_bytes(value.end):
            return LogTail(bytes(value.data), int(value.end))
    elif isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value)
    raise WrongType(value, "bytes, a LogTail of bytes and their end, or None")


def validate_reason(value: object) -> str:
    """Validate the result of `monitor_before_shutdown`."""
    if not isinstance(value, str):
        raise WrongType(value, "a string or None")
    return value


def validate_under_way(value: object) -> bool:
    """Validate the result of `monitor_stop_backend` or `monitor_start_model`."""
    if not isinstance(value, bool):
        raise WrongType(value, "True, False or None")
    return value


def validate_stop_signal(value: object) -> int:
    """Validate the result of `monitor_stop_signal`."""
    if not isinstance(value, int) or isinstance(value, bool) or value not in _STOP_SIGNALS:
        raise WrongType(value, "the number of a signal other than SIGKILL, SIGSTOP and SIGCONT")
    return int(value)


def _plain_breakdown(value: object) -> dict[str, int] | None:
    """Copy bytes by component with plain integers, which msgspec needs; None if invalid."""
    if not isinstance(value, Mapping):
        return None
    components = dict(value)
    if not all(_is_text(name) and _is_bytes(amount) for name, amount in components.items()):
        return None
    return {name: int(amount) for name, amount in components.items()}


def _plain_memory(memory: Memory | None) -> Memory | None:
    """Copy a memory with plain integers.

    Raises:
        ValueError: it is no memory, or an amount is not valid.
    """
    if memory is None:
        return None
    breakdown = _plain_breakdown(memory.breakdown) if isinstance(memory, Memory) else None
    if breakdown is None or not _is_bytes(memory.total):
        raise _invalid("memory")
    return Memory(int(memory.total), breakdown)


def _plain_load(status: Status) -> tuple[int | None, int | None, float | None, float | None]:
    """Copy the figures of a status after its memory.

    Raises:
        One of `_NOT_PLAIN`: a figure is not valid.
    """
    counts = [status.requests_running, status.requests_waiting]
    rates = [status.tokens_per_second, status.kv_cache_percent]
    if not all(each is None or _is_bytes(each) for each in counts):
        raise _invalid("requests_running or requests_waiting")
    if not all(each is None or (math.isfinite(each) and each >= 0) for each in rates):
        raise _invalid("tokens_per_second or kv_cache_percent")
    running, waiting = (None if each is None else int(each) for each in counts)
    tokens, kv_cache = (None if each is None else float(each) for each in rates)
    return running, waiting, tokens, kv_cache


def _plain_record(kind: type[_T], record: _T) -> _T:
    """Copy a record, and convert its fields to the types that it declares.

    Raises:
        One of `_NOT_PLAIN`: a field is not valid.
    """
    plain = msgspec.convert(msgspec.to_builtins(record, enc_hook=_plain_number), kind)
    _check_fields(msgspec.to_builtins(plain))
    return plain


def _check_fields(fields: Mapping[str, object]) -> None:
    """Check that texts can be encoded, and that numbers are finite, and not negative integers.

    Raises:
        ValueError: a field is not valid.
    """
    for name, field in fields.items():
        if isinstance(field, str) and not _is_text(field):
            raise _invalid(name)
        if isinstance(field, float) and not math.isfinite(field):
            raise _invalid(name)
        if isinstance(field, int) and not _is_bytes(field):
            raise _invalid(name)


def _plain_gpu(gpu: Gpu) -> Gpu:
    """Copy a GPU, and convert its fields to the types that `Gpu` declares.

    Raises:
        One of `_NOT_PLAIN`: a field is not valid.
    """
    plain = _plain_record(Gpu, gpu)
    for use in plain.uses or ():
        _check_fields(msgspec.to_builtins(use))
    if not plain.component:
        raise _invalid("component")
    if plain.uses is None:
        return plain
    by_pid: dict[int, GpuUse] = {}
    for use in plain.uses:
        by_pid.setdefault(use.pid, use)  # the first one of a process counts
    uses = tuple(by_pid.values())
    for amounts in ([each.memory for each in uses], [each.gtt for each in uses]):
        if not _is_bytes(sum(amount or 0 for amount in amounts)):
            raise _invalid("uses")
    return replace(plain, uses=uses)


def _invalid(name: str) -> ValueError:
    """Make the error for a field whose value is out of range, without the value."""
    return ValueError(f"the value of {name!r}")


def _plain_number(value: object) -> int | float:
    """Convert a number of a third party's type.

    Raises:
        TypeError: `value` is no number.
    """
    return float(value) if isinstance(value, float) else index(value)  # type: ignore[arg-type]


def _is_metadata(key: object, text: object) -> bool:
    if not isinstance(key, str) or not isinstance(text, str):
        return False
    return bool(_METADATA_KEY.fullmatch(key) and _METADATA_VALUE.fullmatch(text))


def _is_bytes(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MAX_BYTES


def _is_text(value: object) -> bool:
    """Whether a value is a string without lone surrogates, which JSON cannot encode."""
    return isinstance(value, str) and value == value.encode(errors="replace").decode()
