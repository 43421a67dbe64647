"""The answers of the HTTP contract, and the status and type of each error."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from ..domain.errors import (
    BackendUnreadable,
    InvalidRequest,
    ModelNotLoaded,
    NodeForbidden,
    NodeUnreachable,
    OutcomeUnknown,
    ShutdownFailed,
    ShutdownRefused,
    TooManyShutdowns,
)
from ..domain.models import Bytes, LoadedPlugin, Memory, Reading, Sample

if TYPE_CHECKING:
    from ..readings.model_reader import SharedReading  # that module imports gRPC


class StatusAnswer(msgspec.Struct, frozen=True):
    """The answer if the backend reported its status; memory in bytes."""

    state: int
    memory: Memory | None


class MemoryInfo(msgspec.Struct, frozen=True):
    """Memory in bytes, as psutil reports it."""

    rss: Bytes | None
    vms: Bytes | None


class SampleAnswer(msgspec.Struct, frozen=True):
    """The answer if the backend reported no status; percent of physical memory and of one core."""

    memory_info: MemoryInfo
    memory_percent: float | None
    cpu_percent: float | None


class StoppedAnswer(msgspec.Struct, frozen=True):
    """The answer of a shutdown that has succeeded."""

    message: str = "model stopped"


class HealthAnswer(msgspec.Struct, frozen=True):
    """The answer of `/healthz` and `/readyz`: `ok`, `ready`, or with a 503 `not ready`."""

    status: str


class HooksAnswer(msgspec.Struct, frozen=True):
    """The answer of `/hooks`; `disabled` names the plugins that are not loaded."""

    plugins: list[LoadedPlugin]
    disabled: tuple[str, ...]


class ErrorDetail(msgspec.Struct, frozen=True):
    """What was wrong; `code` repeats the HTTP status."""

    code: int
    message: str
    type: str


class ErrorAnswer(msgspec.Struct, frozen=True):
    """The envelope of every error."""

    error: ErrorDetail


class Response(msgspec.Struct, frozen=True):
    """A complete HTTP response.

    Attributes:
        status: the HTTP status code.
        body: JSON.
        headers: headers beside those that every response has.
        outcome: `stopped` or the type of the error, for the audit; None for other responses.
    """

    status: int
    body: bytes
    headers: dict[str, str] = {}
    outcome: str | None = None


class ErrorKind(NamedTuple):
    """The HTTP status and the error type of the response to an error."""

    status: int
    type: str


INTERNAL_ERROR = ErrorKind(500, "internal_error")
INTERNAL_ERROR_MESSAGE = "the monitor failed; its log says how"

ERROR_KINDS: dict[type, ErrorKind] = {
    InvalidRequest: ErrorKind(400, "invalid_request"),
    ModelNotLoaded: ErrorKind(500, "model_not_loaded"),
    BackendUnreadable: ErrorKind(500, "backend_unreadable"),
    ShutdownRefused: ErrorKind(409, "shutdown_refused"),
    ShutdownFailed: ErrorKind(500, "shutdown_failed"),
    TooManyShutdowns: ErrorKind(503, "too_many_shutdowns"),
    NodeForbidden: ErrorKind(403, "node_forbidden"),
    NodeUnreachable: ErrorKind(504, "node_unreachable"),
    OutcomeUnknown: ErrorKind(504, "outcome_unknown"),
}

# The types of Falcon's own errors, by status: no route, wrong method and the like.
HTTP_ERROR_TYPES = {
    400: "invalid_request",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    413: "payload_too_large",
    415: "unsupported_media_type",
    501: "not_implemented",
}


def error_kind(error: BaseException) -> ErrorKind:
    """Look up the kind of an error; any error without an entry is an internal error."""
    for kind in type(error).__mro__:
        if kind in ERROR_KINDS:
            return ERROR_KINDS[kind]
    return INTERNAL_ERROR


def http_error_kind(status: int) -> ErrorKind:
    """Return the kind of an error that Falcon itself raises with this status."""
    return ErrorKind(status, HTTP_ERROR_TYPES.get(status, "http_error"))


def encode(answer: msgspec.Struct) -> bytes:
    """Encode an answer as JSON, with the fields in the order of the struct."""
    return msgspec.json.encode(answer)


def encode_error(kind: ErrorKind, message: str) -> bytes:
    """Encode the envelope of an error. Lone surrogates in a hook's message are escaped."""
    return encode(ErrorAnswer(ErrorDetail(kind.status, _escape(message), kind.type)))


def hooks_answer(plugins: Sequence[LoadedPlugin], disabled: Sequence[str]) -> HooksAnswer:
    """Make the answer of `/hooks`. Bytes of file names that are not UTF-8 are escaped."""
    listed = [
        msgspec.structs.replace(each, name=_escape(each.name), source=_escape(each.source))
        for each in plugins
    ]
    return HooksAnswer(listed, tuple(map(_escape, disabled)))


def _escape(text: str) -> str:
    return text.encode(errors="backslashreplace").decode()


def error_response(error: BaseException, message: str | None = None) -> Response:
    """Make the response to an error. Internal errors always have the same message.

    Args:
        error: the error.
        message: the message; by default the error's own.
    """
    kind = error_kind(error)
    headers = {}
    if isinstance(error, TooManyShutdowns):
        headers["Retry-After"] = str(error.retry_after_seconds)
    if kind is INTERNAL_ERROR:
        message = INTERNAL_ERROR_MESSAGE
    return Response(kind.status, encode_error(kind, message or str(error)), headers, kind.type)


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
        "X-Monitor-Rpc-Error": reading.rpc_error,
        "X-Monitor-Replicas": str(reading.replicas),
    }
    known = {name: value for name, value in headers.items() if value is not None}
    return Response(200, encode(answer), known)


def shared_response(shared: SharedReading) -> Response:
    """Return the response to a shared reading, which is encoded once, for the first reader."""
    response: Response = shared.response or reading_response(shared.reading)
    shared.response = response
    return response
