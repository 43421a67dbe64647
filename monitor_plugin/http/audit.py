"""The audit: one line of JSON for each shutdown and each refused request."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import falcon

from .wire import kind_of

_logger = logging.getLogger("monitor_plugin.audit")

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
        _write(
            who=context.caller.name if context.caller else "unknown",
            whence=request.env.get("REMOTE_ADDR") or "unknown",
            what=f"{request.method} {request.path}",
            **(context.shutdown or {}),
            outcome=context.outcome or "refused",
            status=status,
            seconds=time.monotonic() - context.began,
        )


@contextmanager
def audited_shutdown(
    model: object,
    force: object,
    pid: object,
    who: str = "host",
    whence: str = "python",
    what: str = "Monitor.shutdown",
) -> Iterator[None]:
    """Write a line for a shutdown that does not come over HTTP: the host's own code asks for it."""
    began = time.monotonic()
    outcome = "stopped"
    try:
        yield
    except BaseException as error:
        outcome = kind_of(error).type
        raise
    finally:
        _write(
            who=who,
            whence=whence,
            what=what,
            model=model,
            force=force,
            pid=pid,
            outcome=outcome,
            seconds=time.monotonic() - began,
        )


def _write(whence: str, seconds: float, **facts: Any) -> None:
    # ASCII alone, and all else escaped, so that no name can forge a line.
    if facts.get("pid", 0) is None:
        del facts["pid"]  # of all the model's backends
    facts = {name: _plain(value) for name, value in facts.items()}
    line = {"who": facts.pop("who"), "from": whence, **facts, "seconds": round(seconds, 3)}
    summary = f"{facts.get('what')}: {facts.get('outcome')}"
    _logger.info("%s", json.dumps(line), extra={"facts": {**line, "message": summary}})


def _plain(value: object) -> object:
    """Pass through what JSON can surely say; of what else a host may pass, give the type."""
    if value is None or isinstance(value, (str, bool)):
        return value
    if isinstance(value, int) and value.bit_length() <= 64:
        return value
    return f"<{type(value).__name__}>"
