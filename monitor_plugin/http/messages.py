"""Reads the body and the client of a request, and fills responses, for the resources."""

from __future__ import annotations

import falcon
import msgspec

from ..api.cluster_view import Requester
from ..api.results import Response, encode
from ..config.tokens import Role, Token

MAX_BODY_BYTES = 64 * 1024


def read_body(request: falcon.Request) -> bytes:
    """Read the body, whatever the method is.

    Raises:
        falcon.HTTPError: 413 if the body has more than MAX_BODY_BYTES.
    """
    size, body = request.content_length or 0, b""
    if size:
        body = b"" if size > MAX_BODY_BYTES else request.bounded_stream.read()
    elif request.env.get("wsgi.input_terminated"):  # a chunked body from a host's own WSGI server
        while size <= MAX_BODY_BYTES and (more := request.stream.read(MAX_BODY_BYTES + 1 - size)):
            body += more
            size += len(more)
    if size > MAX_BODY_BYTES:
        raise falcon.HTTPError(
            413, description=f"the body is larger than {MAX_BODY_BYTES} bytes, and is not read"
        )
    return body


def read_json(request: falcon.Request, what: str) -> bytes:
    """Read the body of a request that must declare it as JSON: a page of another site cannot.

    Args:
        request: the request.
        what: names the request in the message of an error.

    Raises:
        falcon.HTTPError: 415 if the content type is another one, and as `read_body`.
    """
    media_type = (request.content_type or "").partition(";")[0].strip().lower()
    if media_type != falcon.MEDIA_JSON:
        raise falcon.HTTPUnsupportedMediaType(
            description=f"{what} wants Content-Type: application/json, not {media_type!r}"
        )
    return read_body(request)


def requester_of(request: falcon.Request) -> Requester:
    """Describe the client of a request that the guard has accepted."""
    caller = request.context.caller
    address = request.env.get("REMOTE_ADDR") or "unknown"
    return Requester(caller.name, caller.role.name.lower(), address)


def is_admin(request: falcon.Request) -> bool:
    """Whether the client of a request that the guard has accepted has the role admin."""
    caller: Token = request.context.caller
    return caller.role is Role.ADMIN


def send_answer(response: falcon.Response, answer: msgspec.Struct) -> None:
    """Fill Falcon's response with an answer, as JSON."""
    response.data = encode(answer)
    response.content_type = falcon.MEDIA_JSON


def send_response(target: falcon.Response, response: Response) -> None:
    """Fill Falcon's response from a complete response."""
    target.status = falcon.code_to_http_status(response.status)
    target.data = response.body
    target.content_type = falcon.MEDIA_JSON
    target.set_headers(response.headers)
