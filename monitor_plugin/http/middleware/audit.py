"""The audit: one line of JSON for each shutdown and each refused request."""

from __future__ import annotations

import time

import falcon

from ...api.audit import write_audit_line

_REFUSED = (401, 403)


class Audit:
    """Falcon middleware that writes the audit of what comes over HTTP; to stand first.

    What others learn of a request stands in its `context`: `caller` (the `Token` of who asks),
    `shutdown` (the model and whether by force, where it is one), `outcome` (`stopped`, or the type
    of the error).
    """

    def process_request(self, request: falcon.Request, response: falcon.Response) -> None:
        """Note when the request began."""
        request.context.began = time.monotonic()
        request.context.caller = request.context.shutdown = request.context.outcome = None

    def process_response(
        self, request: falcon.Request, response: falcon.Response, resource: object, succeeded: bool
    ) -> None:
        """Write a line, where the request was a shutdown or was refused."""
        context = request.context
        if "began" not in context:
            return  # the framework refused the method, before anybody was asked
        status = falcon.http_status_to_code(response.status)
        if context.shutdown is None and status not in _REFUSED:
            return
        write_audit_line(
            who=context.caller.name if context.caller else "unknown",
            whence=request.env.get("REMOTE_ADDR") or "unknown",
            what=f"{request.method} {request.path}",
            **(context.shutdown or {}),
            outcome=context.outcome or "refused",
            status=status,
            seconds=time.monotonic() - context.began,
        )
