"""The answers of the HTTP contract: their fields, their JSON, and whole responses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from ..domain.models import (
    Bytes,
    Freed,
    LoadedPlugin,
    Memory,
    ProcessName,
    Reading,
    Sample,
    describe_process,
)

if TYPE_CHECKING:
    from ..readings.model_reader import SharedReading  # that module imports gRPC

# Only in the response of a shutdown that could not be verified completely.
VERIFIED_HEADER, PARTLY = "X-Monitor-Verified", "partly"
# The header of a successful shutdown's response with the memory that was given back.
FREED_HEADER = "X-Monitor-Freed"
_MAX_DIGITS = 15  # of an integer in RFC 8941


class StatusAnswer(msgspec.Struct, frozen=True):
    """The answer if the backend reported its status; memory in bytes."""

    state: int
    memory: Memory | None


class MemoryInfo(msgspec.Struct, frozen=True):
    """Memory in bytes, as psutil reports it."""

    rss: Bytes | None
    vms: Bytes | None


class SampleAnswer(msgspec.Struct, frozen=True):
    """The answer if the backend reported no status.

    `memory_percent` is percent of the memory that the process may use, `cpu_percent` of one core.
    """

    memory_info: MemoryInfo
    memory_percent: float | None
    cpu_percent: float | None


class StoppedAnswer(msgspec.Struct, frozen=True):
    """The answer of a shutdown that has succeeded."""

    message: str = "model stopped"


class LoadedAnswer(msgspec.Struct, frozen=True):
    """The answer of a start or a restart that has succeeded; `loaded` has the model's name."""

    loaded: list[str]
    message: str


class HealthAnswer(msgspec.Struct, frozen=True):
    """The answer of `/healthz`: `ok`."""

    status: str


class CheckItem(msgspec.Struct, frozen=True):
    """A check of what the monitor can see or do on its machine.

    Attributes:
        name: what is checked; the same in each answer.
        ok: false if something is wrong or missing; `null` if that cannot be found out.
        message: what was found.
        advice: what to do; `null` if there is nothing to do.
    """

    name: str
    ok: bool | None
    message: str
    advice: str | None = None


class ReadyAnswer(msgspec.Struct, frozen=True, omit_defaults=True):
    """The answer of `/readyz`: `ready`, or with a 503 `not ready`.

    Attributes:
        unseen: what the monitor cannot see of other users' processes; left out if it sees all.
        checks: what the monitor can see and do on its machine; left out without `verbose`.
    """

    status: str
    unseen: str | None = None
    checks: list[CheckItem] | None = None


class HooksAnswer(msgspec.Struct, frozen=True):
    """The answer of `/hooks`; `disabled` names the plugins that are not loaded."""

    plugins: list[LoadedPlugin]
    disabled: tuple[str, ...]


class Response(msgspec.Struct, frozen=True):
    """A complete HTTP response.

    Attributes:
        status: the HTTP status code.
        body: JSON.
        headers: headers beside those that every response has.
        outcome: `stopped`, `loaded`, `restarted` or the type of the error, for the audit; None for
            other responses.
    """

    status: int
    body: bytes
    headers: dict[str, str] = {}
    outcome: str | None = None


def encode(answer: msgspec.Struct) -> bytes:
    """Encode an answer as JSON, with the fields in the order of the struct."""
    return msgspec.json.encode(answer)


def stopped_response(is_partly_verified: bool, freed: Freed | None) -> Response:
    """Make the response of a shutdown that has succeeded.

    Args:
        is_partly_verified: whether the monitor cannot see all processes.
        freed: the memory that was given back; None if that is not known.
    """
    headers = {VERIFIED_HEADER: PARTLY} if is_partly_verified else {}
    if freed is not None:
        headers[FREED_HEADER] = format_freed(freed)
    return Response(200, encode(StoppedAnswer()), headers, "stopped")


def loaded_response(model: str, outcome: str = "loaded") -> Response:
    """Make the response of a start (`loaded`) or a restart (`restarted`) that has succeeded."""
    return Response(200, encode(LoadedAnswer([model], f"model {outcome}")), {}, outcome)


def format_freed(freed: Freed) -> str:
    """Format the header `X-Monitor-Freed`: a dictionary of RFC 8941, without unknown figures.

    For example `memory=268435456, gpu=1073741824, seconds=0.52`. `gpu_left` is there only if GPU
    memory was not given back.
    """
    fields = {"memory": freed.memory, "gpu": freed.gpu, "gpu_left": freed.gpu_left or None}
    known = [f"{name}={value}" for name, value in fields.items() if value is not None]
    return ", ".join([*known, f"seconds={round(freed.seconds, 3)}"])


def parse_freed(header: str | None) -> Freed | None:
    """Parse the header `X-Monitor-Freed`; None if it is missing or malformed."""
    fields = [each.partition("=") for each in (header or "").split(",")]
    values = {name.strip(): value for name, _, value in fields}
    try:
        freed = Freed(
            memory=_parse_count(values.get("memory")),
            gpu=_parse_count(values.get("gpu")),
            gpu_left=_parse_count(values.get("gpu_left", "0" if "gpu" in values else None)),
            seconds=float(values["seconds"]),
        )
    except (KeyError, ValueError):
        return None
    return freed if 0 <= freed.seconds < math.inf else None


def _parse_count(text: str | None) -> int | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS):
        raise ValueError(f"{text!r} is no number of bytes")
    return int(text)


def hooks_answer(plugins: Sequence[LoadedPlugin], disabled: Sequence[str]) -> HooksAnswer:
    """Make the answer of `/hooks`. Bytes of file names that are not UTF-8 are escaped."""
    listed = [
        msgspec.structs.replace(each, name=escape(each.name), source=escape(each.source))
        for each in plugins
    ]
    return HooksAnswer(listed, tuple(map(escape, disabled)))


def escape(text: str) -> str:
    """Escape lone surrogates, which JSON cannot carry."""
    return text.encode(errors="backslashreplace").decode()


def reading_response(reading: Reading) -> Response:
    """Make the documented response to a reading.

    The headers name the sources of the reading, because the fields of the body are fixed.
    """
    answer: StatusAnswer | SampleAnswer
    if reading.status is not None:
        answer = StatusAnswer(reading.status.state, reading.status.memory)
    else:
        sample = reading.sample or Sample(None, None, None, None)
        memory = MemoryInfo(sample.rss, sample.vms)
        answer = SampleAnswer(memory, sample.memory_percent, sample.cpu_percent)
    headers = {
        "X-Monitor-Source": reading.source,
        "X-Monitor-Memory-Source": reading.memory_source,
        "X-Monitor-Memory-Age": _seconds_header(reading.memory_age_seconds),
        "X-Monitor-Rpc-Error": reading.rpc_error,
        "X-Monitor-Replicas": str(reading.replicas),
        "X-Monitor-Address-Owner": _owner_header(reading.address_owner),
    }
    known = {name: value for name, value in headers.items() if value is not None}
    return Response(200, encode(answer), known)


def _seconds_header(seconds: float | None) -> str | None:
    return None if seconds is None else f"{seconds:.3f}"


def _owner_header(owner: ProcessName | None) -> str | None:
    if owner is None:
        return None
    # The name of a process may have any letters, a header may not.
    letters = describe_process(owner)
    return "".join(each if each.isascii() and each.isprintable() else "?" for each in letters)


def shared_response(shared: SharedReading) -> Response:
    """Return the response to a shared reading, which is encoded once, for the first reader."""
    response: Response = shared.response or reading_response(shared.reading)
    shared.response = response
    return response
