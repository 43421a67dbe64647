"""What is asked for: bodies and queries, parsed strictly."""

from __future__ import annotations

import re
from typing import Annotated, TypeVar
from urllib.parse import unquote_to_bytes

import msgspec

from ..domain.errors import InvalidRequest
from ..domain.model_name import MAX_NAME_BYTES

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


_PID_DIGITS = 10
_ENCODED = re.compile(r"[^!-~]|[%+]")

Body = TypeVar("Body", bound=msgspec.Struct)


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
