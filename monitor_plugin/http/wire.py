"""What goes over the wire: requests in, answers and errors out, to the letter of the contract."""

from __future__ import annotations

import re
from typing import Annotated, NamedTuple, TypeVar
from urllib.parse import unquote_to_bytes

import msgspec

from ..errors import (
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
from ..models import Bytes, LoadedPlugin, Memory, Reading
from ..names import MAX_NAME_BYTES

# What `names.checked_model` checks, with better words, is here for the description alone.
MODEL_NAME_SCHEMA = {
    "description": f"The model's name: free text, at most {MAX_NAME_BYTES} bytes of UTF-8.",
    "minLength": 1,
    "maxLength": MAX_NAME_BYTES,
    "pattern": r"^[^\u0000-\u001f\u007f-\u009f]+$",
}
_ModelName = Annotated[str, msgspec.Meta(extra_json_schema=MODEL_NAME_SCHEMA)]


class MonitorBody(msgspec.Struct, frozen=True):
    """The body of `/backend/monitor`; unknown fields are ignored."""

    model: _ModelName
    pid: int | None = None


class ShutdownBody(msgspec.Struct, frozen=True):
    """The body of `/backend/shutdown`; unknown fields are ignored."""

    model: _ModelName
    force: bool = False
    pid: int | None = None


class NodeMonitorBody(MonitorBody, frozen=True):
    """The same in a cluster."""

    node: str | None = None


class NodeShutdownBody(ShutdownBody, frozen=True):
    """The same in a cluster."""

    node: str | None = None


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


class Answer(msgspec.Struct, frozen=True):
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

_PID_DIGITS = 10
_ENCODED = re.compile(r"[^!-~]|[%+]")

Body = TypeVar("Body", bound=msgspec.Struct)


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
    message = message.encode(errors="backslashreplace").decode()
    return encode(ErrorAnswer(ErrorDetail(kind.status, message, kind.type)))


def error_answer(error: BaseException, message: str | None = None) -> Answer:
    """Turn an error into the answer that tells of it, in its own words unless others are given."""
    kind = kind_of(error)
    headers = {}
    if isinstance(error, TooManyShutdowns):
        headers["Retry-After"] = str(error.retry_after_seconds)
    if kind is INTERNAL_ERROR:
        message = "the monitor failed; its log says how"
    return Answer(kind.status, encode_error(kind, message or str(error)), headers, kind.type)


def reading_answer(reading: Reading) -> Answer:
    """Turn a reading into the answer that is documented."""
    return Answer(200, encode(answer_of(reading)), headers_of(reading))


def answer_of(reading: Reading) -> StatusAnswer | SampleAnswer:
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


def parse_body(body: bytes, kind: type[Body]) -> Body:
    """Decode a JSON body.

    Raises:
        InvalidRequest: it is no JSON, no object, or a field is missing or of a wrong type.
    """
    if not body:
        raise InvalidRequest('the body is empty; send JSON: {"model": "NAME"}')
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"the body does not fit: {error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"the body is not JSON: {error}") from None


def parse_pid(text: str) -> int:
    """Parse the parameter `pid`.

    Raises:
        InvalidRequest: it is no number.
    """
    if not (text.isascii() and text.isdigit() and len(text) <= _PID_DIGITS):
        raise InvalidRequest(f"pid={text!r} is no process id")
    return int(text)


def parse_query(query: str) -> dict[str, str]:
    """Parse a WSGI query string strictly.

    Args:
        query: `QUERY_STRING`, which holds each byte as one character.

    Raises:
        InvalidRequest: it is not valid UTF-8, or names a parameter twice.
    """
    parameters: dict[str, str] = {}
    for pair in query.split("&"):
        if not pair:
            continue
        name, _, value = pair.partition("=")
        if _ENCODED.search(pair):
            try:
                name, value = (_decode(part) for part in (name, value))
            except UnicodeDecodeError:
                raise InvalidRequest("the query is not valid UTF-8") from None
        if name in parameters:
            raise InvalidRequest(f"the query gives {name!r} more than once")
        parameters[name] = value
    return parameters


def _decode(part: str) -> str:
    return unquote_to_bytes(part.encode("latin-1").replace(b"+", b" ")).decode()
