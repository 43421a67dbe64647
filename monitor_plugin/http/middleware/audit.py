"""Writes the audit lines of requests over HTTP."""

from __future__ import annotations

import time

import falcon

from ...api.audit import write_audit_line
from ...api.results import FREED_HEADER, parse_freed

_REFUSED = (401, 403)


class Audit:
    """Falcon middleware that writes audit lines. It has to be the first middleware.

    Other middleware and the resources set attributes of a request's `context`: `caller` (the
    `Token` that was sent), `arguments` (the model and the options of a shutdown, start or restart)
    and `outcome` (`stopped`, `loaded`, `restarted`, or the type of the error).
    """

    def process_request(self, request: falcon.Request, response: falcon.Response) -> None:
        """Record when the request began."""
        request.context.began = time.monotonic()
        request.context.caller = request.context.arguments = request.context.outcome = None

    def process_response(
        self, request: falcon.Request, response: falcon.Response, resource: object, succeeded: bool
    ) -> None:
        """Write a line if the request was for an operation on a model, or was refused."""
        context = request.context
        if "began" not in context:
            return  # Falcon refused the method without calling `process_request`
        status = falcon.http_status_to_code(response.status)
        if context.arguments is None and status not in _REFUSED:
            return
        write_audit_line(
            caller=context.caller.name if context.caller else "unknown",
            client=request.env.get("REMOTE_ADDR") or "unknown",
            action=f"{request.method} {request.path}",
            arguments=context.arguments or {},
            outcome=context.outcome or "refused",
            status=status,
            seconds=time.monotonic() - context.began,
            freed=parse_freed(response.get_header(FREED_HEADER)),
        )
