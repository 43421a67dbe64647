"""How each error appears over HTTP: its status, its type and the envelope."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from ..domain.errors import (
    BackendUnreadable,
    InvalidRequest,
    LogUnavailable,
    ModelNotLoaded,
    NodeForbidden,
    NodeUnreachable,
    OutcomeUnknown,
    ShutdownFailed,
    ShutdownRefused,
    StartFailed,
    TooManyShutdowns,
    TooManyStarts,
)
from .results import Response, encode, escape


class ErrorDetail(msgspec.Struct, frozen=True):
    """What was wrong; `code` repeats the HTTP status."""

    code: int
    message: str
    type: str


class ErrorAnswer(msgspec.Struct, frozen=True):
    """The envelope of every error."""

    error: ErrorDetail


class LoadFailedAnswer(msgspec.Struct, frozen=True):
    """The answer of a start or a restart that has failed: LocalAI's fields, and the envelope.

    `loaded` is empty. `message` is the one of the error.
    """

    loaded: list[str]
    message: str
    error: ErrorDetail


class ErrorKind(NamedTuple):
    """The HTTP status and the error type of the response to an error."""

    status: int
    type: str


INTERNAL_ERROR = ErrorKind(500, "internal_error")
INTERNAL_ERROR_MESSAGE = "the monitor failed; its log says how"

ERROR_KINDS: dict[type, ErrorKind] = {
    InvalidRequest: ErrorKind(400, "invalid_request"),
    ModelNotLoaded: ErrorKind(500, "model_not_loaded"),
    LogUnavailable: ErrorKind(404, "log_unavailable"),
    BackendUnreadable: ErrorKind(500, "backend_unreadable"),
    ShutdownRefused: ErrorKind(409, "shutdown_refused"),
    ShutdownFailed: ErrorKind(500, "shutdown_failed"),
    StartFailed: ErrorKind(500, "start_failed"),
    TooManyShutdowns: ErrorKind(503, "too_many_shutdowns"),
    TooManyStarts: ErrorKind(503, "too_many_starts"),
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


def encode_error(kind: ErrorKind, message: str) -> bytes:
    """Encode the envelope of an error. Lone surrogates in a hook's message are escaped."""
    return encode(ErrorAnswer(ErrorDetail(kind.status, escape(message), kind.type)))


def error_response(error: BaseException, message: str | None = None) -> Response:
    """Make the response to an error. Internal errors always have the same message.

    Args:
        error: the error.
        message: the message; by default the error's own.
    """
    kind = error_kind(error)
    headers = {}
    if isinstance(error, (TooManyShutdowns, TooManyStarts)):
        headers["Retry-After"] = str(error.retry_after_seconds)
    if kind is INTERNAL_ERROR:
        message = INTERNAL_ERROR_MESSAGE
    return Response(kind.status, encode_error(kind, message or str(error)), headers, kind.type)


def load_failed_response(error: BaseException, message: str | None = None) -> Response:
    """Make the response of a start or a restart that has failed, which only admins get.

    Args:
        error: the error; the message ends with the last output of the process, if there is some.
        message: the message without that output; by default the error's own.
    """
    message = message or str(error)
    if isinstance(error, StartFailed) and error.last_output:
        message += f"; its last output:\n{error.last_output}"
    return with_load_fields(error_response(error, message))


def with_load_fields(response: Response) -> Response:
    """Add the fields of a failed start to the response to an error."""
    detail = msgspec.json.decode(response.body, type=ErrorAnswer).error
    body = encode(LoadFailedAnswer([], detail.message, detail))
    return msgspec.structs.replace(response, body=body)
