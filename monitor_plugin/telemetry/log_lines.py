"""Lines for the log of what happens to backends, and their form: text, or JSON."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from typing import Any

from ..domain.exits import describe_exit
from ..domain.models import Backend, BackendExit, State

_LOGGER_NAME = "monitor_plugin.logs"
_logger = logging.getLogger(_LOGGER_NAME)


def log_event(hook: str, arguments: Mapping[str, Any]) -> None:
    """Write one line, level INFO, of a change of state, an end, or a shutdown.

    Args:
        hook: the hook that tells of it; of others nothing is written.
        arguments: its arguments.
    """
    line = _LINES.get(hook)
    if line is None or not _logger.isEnabledFor(logging.INFO):
        return
    backend: Backend = arguments["backend"]
    text, facts = line(**arguments)
    facts = {"event": hook.removeprefix("monitor_"), **_identity(backend), **facts}
    _logger.info(
        "model %r (process %d) %s", backend.model, backend.pid, text, extra={"facts": facts}
    )


def _identity(backend: Backend) -> dict[str, Any]:
    return {"model": backend.model, "pid": backend.pid}


def _state_line(
    backend: Backend, previous: State | None, current: State
) -> tuple[str, dict[str, Any]]:
    names = [None if each is None else each.name.lower() for each in (previous, current)]
    text = f"is {names[1]}" if previous is None else f"is {names[1]}, was {names[0]}"
    return text, {"previous": names[0], "current": names[1]}


def _end_line(backend: Backend, exit: BackendExit) -> tuple[str, dict[str, Any]]:
    seconds = max(0.0, exit.ended_at - backend.created_at)
    facts = {
        "cause": exit.cause,
        "exit_code": exit.exit_code,
        "signal": exit.signal,
        "seconds": round(seconds, 3),
    }
    return f"{describe_exit(exit)}, after {seconds:.1f} s", facts


def _shutdown_line(backend: Backend, outcome: str, seconds: float) -> tuple[str, dict[str, Any]]:
    facts = {"outcome": outcome, "seconds": round(seconds, 3)}
    return f"shutdown: {outcome}, in {seconds:.1f} s", facts


_LINES: dict[str, Callable[..., tuple[str, dict[str, Any]]]] = {
    "monitor_state_changed": _state_line,
    "monitor_backend_gone": _end_line,
    "monitor_shutdown_finished": _shutdown_line,
}


class JsonFormatter(logging.Formatter):
    """Formats each record as a JSON object on a line of its own, ASCII alone.

    It has `time` (RFC 3339, UTC), `level`, `logger` and `message`, then the facts of a line of
    ours by name, and `exception`, a traceback, where there is one.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Give the line."""
        at = datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {
            "time": at.replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "facts", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def configure_logging(log_format: str) -> None:
    """Set up the log of a command: warnings of all, and the audit and what happens; on stderr.

    Args:
        log_format: `text` or `json`.
    """
    handler = logging.StreamHandler()
    if log_format == "json":
        handler.setFormatter(JsonFormatter())
    else:
        handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(handlers=[handler])
    for name in ("monitor_plugin.audit", _LOGGER_NAME):
        logging.getLogger(name).setLevel(logging.INFO)
