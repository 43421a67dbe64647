"""Writes audit lines: one of JSON for each shutdown, start, restart and refused request."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

from ..domain.freed import describe_freed
from ..domain.models import Freed
from .errors import error_kind

_logger = logging.getLogger("monitor_plugin.audit")


@dataclass
class AuditedResult:
    """The result of an audited operation: the memory that a shutdown has given back, if known."""

    freed: Freed | None = None


def audited_shutdown(
    model: object,
    force: object,
    pid: object,
    *,
    caller: str = "host",
    client: str = "python",
    action: str = "Monitor.shutdown",
) -> AbstractContextManager[AuditedResult]:
    """Write an audit line for a shutdown not requested over HTTP, by default by the host.

    The caller sets the `freed` of the result.
    """
    arguments = {"model": model, "force": force, "pid": pid}
    return audited(action, arguments, "stopped", caller=caller, client=client)


@contextmanager
def audited(
    action: str,
    arguments: Mapping[str, object],
    success: str,
    *,
    caller: str = "host",
    client: str = "python",
) -> Iterator[AuditedResult]:
    """Write an audit line for an operation not requested over HTTP, by default by the host.

    Args:
        action: the function that was called, or the method and path.
        arguments: its arguments.
        success: the outcome if no exception is raised.
        caller: the name of the token, or `host`.
        client: the client's address, or `python`.
    """
    began = time.monotonic()
    outcome, audit = success, AuditedResult()
    try:
        yield audit
    except BaseException as error:
        outcome = error_kind(error).type
        raise
    finally:
        write_audit_line(
            caller=caller,
            client=client,
            action=action,
            arguments=arguments,
            outcome=outcome,
            seconds=time.monotonic() - began,
            freed=audit.freed,
        )


def write_audit_line(
    *,
    caller: str,
    client: str,
    action: str,
    arguments: Mapping[str, object],
    outcome: str,
    status: int | None = None,
    seconds: float,
    freed: Freed | None = None,
) -> None:
    """Write an audit line.

    Args:
        caller: the name of the token, `host`, or `unknown` without a valid token.
        client: the client's address, or `python`.
        action: the method and path, or the function that was called.
        arguments: the arguments of the operation; empty for other requests.
        outcome: `stopped`, `loaded`, `restarted`, or the type of the error.
        status: the HTTP status; None if the request was not made over HTTP.
        seconds: how long the request took.
        freed: the memory that a shutdown has given back; None for other requests, or if unknown.
    """
    line: dict[str, object] = {"who": caller, "from": client, "what": action}
    for name, value in arguments.items():
        if name != "pid" or value is not None:  # None: all backends of the model
            line[name] = _plain(value)
    line["outcome"] = outcome
    if status is not None:
        line["status"] = status
    line["seconds"] = round(seconds, 3)
    if freed is not None and (text := describe_freed(freed)):
        line["freed"] = text
    # The JSON is ASCII, and control characters are escaped, so that no name can forge a line.
    facts = {**line, "message": f"{action}: {outcome}"}
    _logger.info("%s", json.dumps(line), extra={"facts": facts})


def _plain(value: object) -> object:
    """Return a plain value unchanged; replace any other object of a host by its type's name."""
    if value is None or isinstance(value, (str, bool)):
        return value
    if isinstance(value, int) and value.bit_length() <= 64:
        return value
    return f"<{type(value).__name__}>"
