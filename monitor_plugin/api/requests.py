"""The bodies and queries of requests, parsed strictly."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, TypeVar
from urllib.parse import parse_qsl, unquote_to_bytes

import msgspec

from ..domain.errors import InvalidRequest
from ..domain.model_name import MAX_NAME_BYTES, validate_model_name

# Only for the OpenAPI document: `validate_model_name` checks names, with better error messages.
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
    """The body of `/backend/monitor` in a cluster."""

    node: str | None = None


class NodeShutdownBody(ShutdownBody, frozen=True):
    """The body of `/backend/shutdown` in a cluster."""

    node: str | None = None


class LoadBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of `/backend/load`; unknown fields are refused."""

    model: _ModelName


class RestartBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of `/backend/restart`; unknown fields are refused."""

    model: _ModelName
    force: bool = False
    pid: int | None = None


class NodeLoadBody(LoadBody, frozen=True):
    """The body of `/backend/load` in a cluster."""

    node: str | None = None


class NodeRestartBody(RestartBody, frozen=True):
    """The body of `/backend/restart` in a cluster."""

    node: str | None = None


# A parameter without such a character is used as it stands: most requests need no decoding.
_ENCODED = re.compile(r"[^!-~]|[%+]")
_MAX_PID_DIGITS = 10
_MAX_ID_DIGITS = 18
_MAX_COUNT_DIGITS = 9

Body = TypeVar("Body", bound=msgspec.Struct)


def parse_body(body: bytes, kind: type[Body]) -> Body:
    """Decode a JSON body.

    Raises:
        InvalidRequest: the body is not a JSON object, or a field is missing or of a wrong type.
    """
    if not body:
        raise InvalidRequest('the body is empty; send JSON: {"model": "NAME"}')
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"the body does not fit: {error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"the body is not JSON: {error}") from None


def parse_query(query: str) -> dict[str, str]:
    """Parse a WSGI query string strictly.

    Args:
        query: `QUERY_STRING`, which has one character for each byte.

    Raises:
        InvalidRequest: the query is not valid UTF-8, or has a parameter twice.
    """
    parameters: dict[str, str] = {}
    for pair in query.split("&"):
        if not pair:
            continue
        name, _, value = pair.partition("=")
        if _ENCODED.search(pair):
            try:
                name, value = _decode(name), _decode(value)
            except UnicodeDecodeError:
                raise InvalidRequest("the query is not valid UTF-8") from None
        if name in parameters:
            raise InvalidRequest(f"the query gives {name!r} more than once")
        parameters[name] = value
    return parameters


def _decode(part: str) -> str:
    return unquote_to_bytes(part.encode("latin-1").replace(b"+", b" ")).decode()


# The functions below parse one parameter of a query, and raise InvalidRequest if it is invalid.


def parse_model(query: Mapping[str, str]) -> str | None:
    """Parse `model`; None if it is missing."""
    return validate_model_name(query["model"]) if "model" in query else None


def parse_required_model(query: Mapping[str, str], path: str) -> str:
    """Parse `model`, which requests for this path must have."""
    model = parse_model(query)
    if model is None:
        raise InvalidRequest(f"the query names no model: GET {path}?model=NAME")
    return model


def parse_pid(query: Mapping[str, str], default: int | None) -> int | None:
    """Parse `pid`; `default` if it is missing."""
    if "pid" not in query:
        return default
    text = query["pid"]
    if not _is_number(text, _MAX_PID_DIGITS):
        raise InvalidRequest(f"pid={text!r} is no process id")
    return int(text)


def parse_flag(query: Mapping[str, str], name: str, default: bool) -> bool:
    """Parse a parameter that is true or false; `default` if it is missing."""
    text = query.get(name, str(default)).lower()
    if text not in ("true", "false", "1", "0"):
        raise InvalidRequest(f"{name}={text!r} is neither true nor false")
    return text in ("true", "1")


def is_verbose(query: str) -> bool:
    """Whether a WSGI query string has the parameter `verbose`, without a value or not `false`.

    Unlike those of other routes, the queries of `/readyz` are not parsed strictly: whatever a probe
    sends there gets the plain answer.
    """
    values = dict(parse_qsl(query, keep_blank_values=True, encoding="latin-1"))
    return values.get("verbose", "false").lower() not in ("false", "0")


def parse_event_id(query: Mapping[str, str], name: str) -> int:
    """Parse the number of an event; 0 if it is missing."""
    text = query.get(name, "0")
    if not _is_number(text, _MAX_ID_DIGITS):
        raise InvalidRequest(f"{name}={text!r} is no id of an event: take `next` of an answer")
    return int(text)


def parse_end_id(text: str) -> int | None:
    """Parse the number of an end, which is part of a path; None if it is no number."""
    return int(text) if _is_number(text, _MAX_ID_DIGITS) else None


def parse_offset(query: Mapping[str, str], name: str) -> int | None:
    """Parse an offset in a log; None if it is missing."""
    if name not in query:
        return None
    text = query[name]
    if not _is_number(text, _MAX_ID_DIGITS):
        raise InvalidRequest(f"{name}={text!r} is no offset in a log: take `next` of an answer")
    return int(text)


def parse_count(query: Mapping[str, str], name: str, default: int, maximum: int) -> int:
    """Parse an integer from 1 to a maximum; `default` if it is missing."""
    text = query.get(name, str(default))
    number = int(text) if _is_number(text, _MAX_COUNT_DIGITS) else 0
    if not 1 <= number <= maximum:
        raise InvalidRequest(f"{name}={text!r} is no number from 1 to {maximum}")
    return number


def parse_seconds(query: Mapping[str, str], name: str) -> float:
    """Parse a finite number of seconds; 0 if it is missing."""
    text = query.get(name, "0")
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise InvalidRequest(f"{name}={text!r} is no number of seconds")
    return seconds


def _is_number(text: str, max_digits: int) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= max_digits
