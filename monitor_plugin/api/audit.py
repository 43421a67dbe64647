"""The audit: one line of JSON for each shutdown and each refused request."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .results import kind_of

_logger = logging.getLogger("monitor_plugin.audit")


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
        write_audit_line(
            who=who,
            whence=whence,
            what=what,
            model=model,
            force=force,
            pid=pid,
            outcome=outcome,
            seconds=time.monotonic() - began,
        )


def write_audit_line(whence: str, seconds: float, **facts: Any) -> None:
    """Write a line of the audit.

    Args:
        whence: the client's address, or another origin of the request.
        seconds: how long the request took.
        facts: `who`, `what`, `outcome` and whatever else the line has.
    """
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
