"""The way from a request to who makes it, and from a whole answer to a response."""

from __future__ import annotations

import falcon

from ..api.cluster_view import Requester
from ..api.results import Response


def requester_of(request: falcon.Request) -> Requester:
    """Say who makes a request that was let in."""
    caller = request.context.caller
    whence = request.env.get("REMOTE_ADDR") or "unknown"
    return Requester(caller.name, caller.role.name.lower(), whence)


def send_response(response: falcon.Response, answer: Response) -> None:
    """Answer a request with a whole answer."""
    response.status = falcon.code_to_http_status(answer.status)
    response.data = answer.body
    response.content_type = falcon.MEDIA_JSON
    response.set_headers(answer.headers)
