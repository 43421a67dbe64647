"""What is answered, and which error is which answer, to the letter of the contract."""

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
from ..domain.models import Bytes, LoadedPlugin, Memory, Reading

if TYPE_CHECKING:
    from ..readings.model_reader import SharedReading  # it imports gRPC


class StatusAnswer(msgspec.Struct, frozen=True):
    """The answer where the backend gave its status. Bytes."""

    state: int
    memory: Memory | None


class MemoryInfo(msgspec.Struct, frozen=True):
    """Bytes, as psutil gives them."""

    rss: Bytes | None
    vms: Bytes | None


class SampleAnswer(msgspec.Struct, frozen=True):
    """The answer where it did not. Percent of physical memory, and of one core."""

    memory_info: MemoryInfo
    memory_percent: float | None
    cpu_percent: float | None


class StoppedAnswer(msgspec.Struct, frozen=True):
    """The answer of a shutdown that is done."""

    message: str = "model stopped"


class HealthAnswer(msgspec.Struct, frozen=True):
    """The answer of `/healthz` and `/readyz`: `ok`, `ready`, or with a 503 `not ready`."""

    status: str


class HooksAnswer(msgspec.Struct, frozen=True):
    """The answer of `/hooks`; `disabled` names the plugins that are left out."""

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
    """A whole answer, as HTTP gives it.

    Attributes:
        status: of HTTP.
        body: JSON.
        headers: but for those that every answer has.
        outcome: for the audit: `stopped`, or the type of the error.
    """

    status: int
    body: bytes
    headers: dict[str, str] = {}
    outcome: str | None = None


class ErrorKind(NamedTuple):
    """How an error appears over HTTP."""

    status: int
    type: str


INTERNAL_ERROR = ErrorKind(500, "internal_error")

_ERROR_KINDS: dict[type, ErrorKind] = {
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

# Falcon's own errors: no route, wrong method and the like.
_STATUS_TYPES = {
    400: "invalid_request",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    413: "payload_too_large",
    415: "unsupported_media_type",
    501: "not_implemented",
}


def kind_of(error: BaseException) -> ErrorKind:
    """Tell how one of the package's errors appears over HTTP; any other is an internal one."""
    for kind in type(error).__mro__:
        if kind in _ERROR_KINDS:
            return _ERROR_KINDS[kind]
    return INTERNAL_ERROR


def kind_of_status(status: int) -> ErrorKind:
    """Tell how an HTTP error of the framework's appears."""
    return ErrorKind(status, _STATUS_TYPES.get(status, "http_error"))


def encode(answer: msgspec.Struct) -> bytes:
    """Encode an answer as JSON, its fields in their order."""
    return msgspec.json.encode(answer)


def encode_error(kind: ErrorKind, message: str) -> bytes:
    """Encode the envelope of an error; a lone surrogate in a hook's words appears escaped."""
    return encode(ErrorAnswer(ErrorDetail(kind.status, _unicode(message), kind.type)))


def encode_plugins(plugins: Sequence[LoadedPlugin], disabled: Sequence[str]) -> bytes:
    """Encode the answer of `/hooks`; bytes of a file's name that are no UTF-8 appear escaped."""
    listed = [
        msgspec.structs.replace(each, name=_unicode(each.name), source=_unicode(each.source))
        for each in plugins
    ]
    return encode(HooksAnswer(listed, tuple(map(_unicode, disabled))))


def _unicode(text: str) -> str:
    return text.encode(errors="backslashreplace").decode()


def error_response(error: BaseException, message: str | None = None) -> Response:
    """Turn an error into the answer that tells of it, in its own words unless others are given."""
    kind = kind_of(error)
    headers = {}
    if isinstance(error, TooManyShutdowns):
        headers["Retry-After"] = str(error.retry_after_seconds)
    if kind is INTERNAL_ERROR:
        message = "the monitor failed; its log says how"
    return Response(kind.status, encode_error(kind, message or str(error)), headers, kind.type)


def reading_response(reading: Reading) -> Response:
    """Turn a reading into the answer that is documented."""
    return Response(200, encode(body_of(reading)), headers_of(reading))


def shared_response(shared: SharedReading) -> Response:
    """Give the response of a shared reading, which is encoded for its first reader."""
    response: Response = shared.response or reading_response(shared.reading)
    shared.response = response
    return response


def body_of(reading: Reading) -> StatusAnswer | SampleAnswer:
    """Turn a reading into the documented answer."""
    if reading.status is not None:
        return StatusAnswer(reading.status.state, reading.status.memory)
    sample = reading.sample
    return SampleAnswer(
        MemoryInfo(sample.rss if sample else None, sample.vms if sample else None),
        sample.memory_percent if sample else None,
        sample.cpu_percent if sample else None,
    )


def headers_of(reading: Reading) -> dict[str, str]:
    """Say in headers where a reading came from, as the body's fields are fixed."""
    headers = {
        "X-Monitor-Source": reading.source,
        "X-Monitor-Memory-Source": reading.memory_source,
        "X-Monitor-Rpc-Error": reading.rpc_error,
        "X-Monitor-Replicas": str(reading.replicas),
    }
    return {name: value for name, value in headers.items() if value is not None}
