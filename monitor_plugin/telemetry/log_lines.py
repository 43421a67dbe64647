"""Log lines about events of backends, and their format: text or JSON."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

import msgspec

from ..domain.exits import describe_exit, describe_member_end, member_end_to_dict
from ..domain.freed import describe_freed
from ..domain.models import (
    Backend,
    BackendExit,
    Freed,
    MemberEnd,
    ProcessName,
    State,
    describe_process,
)
from ..domain.watchdog_actions import describe_watchdog_action

_LOGGER_NAME = "monitor_plugin.logs"
_logger = logging.getLogger(_LOGGER_NAME)


def log_event(hook: str, arguments: Mapping[str, Any]) -> None:
    """Log an event of a backend in one line, of level INFO.

    If another process serves the address of a backend, or a watchdog has acted, the level is
    WARNING.

    Args:
        hook: the hook that reports the event, or the name of an event that no hook reports; others
            are not logged.
        arguments: the arguments of the hook, or the facts of the event.
    """
    line = _LINES.get(hook)
    is_warning = arguments.get("address_owner") or hook == "monitor_watchdog_acted"
    level = logging.WARNING if is_warning else logging.INFO
    if line is None or not _logger.isEnabledFor(level):
        return
    backend: Backend = arguments["backend"]
    text, facts = line(**arguments)
    identity = {"model": backend.model, "pid": backend.pid}
    facts = {"event": hook.removeprefix("monitor_"), **identity, **facts}
    message = "model %r (process %d) %s"
    _logger.log(level, message, backend.model, backend.pid, text, extra={"facts": facts})


def _state_line(
    backend: Backend, previous: State | None, current: State
) -> tuple[str, dict[str, Any]]:
    names = [None if each is None else each.name.lower() for each in (previous, current)]
    text = f"is {names[1]}" if previous is None else f"is {names[1]}, was {names[0]}"
    return text, {"previous": names[0], "current": names[1]}


def _exit_line(backend: Backend, exit: BackendExit) -> tuple[str, dict[str, Any]]:
    seconds = max(0.0, exit.ended_at - backend.created_at)
    facts = {
        "cause": exit.cause,
        "exit_code": exit.exit_code,
        "signal": exit.signal,
        "seconds": round(seconds, 3),
    }
    return f"{describe_exit(exit)}, after {seconds:.1f} s", facts


def _left_behind_line(backend: Backend, pids: Sequence[int]) -> tuple[str, dict[str, Any]]:
    numbers = ", ".join(map(str, pids))
    text = (
        f"has ended, and left behind {len(pids)} of its processes, which still run: {numbers}; "
        f"a shutdown of the model with pid {backend.pid} ends them, and no other backend"
    )
    return text, {"pids": list(pids)}


def _oom_kill_line(backend: Backend, kills: int, oom_certain: bool) -> tuple[str, dict[str, Any]]:
    whose = "its processes" if oom_certain else "the processes of its control group"
    text = f"lost {kills} of {whose}, killed by the kernel for want of memory"
    return text, {"kills": kills, "oom_certain": oom_certain}


def _member_line(backend: Backend, end: MemberEnd) -> tuple[str, dict[str, Any]]:
    text = f"has lost process {end.pid} ({end.name!r}), which {describe_member_end(end)}"
    return text, member_end_to_dict(end)


def _address_owner_line(
    backend: Backend, address_owner: ProcessName | None
) -> tuple[str, dict[str, Any]]:
    if address_owner is None:
        text = f"at {backend.address}: the address is no longer served by another process"
        return text, {"address": backend.address, "address_owner": None}
    owner = {"pid": address_owner.pid, "name": address_owner.name}
    text = (
        f"at {backend.address}: the address is served by process {describe_process(address_owner)}"
        ", which does not belong to the backend: its answers are not believed, and readings are "
        "samples; end that process, or register its backend"
    )
    return text, {"address": backend.address, "address_owner": owner}


def _shutdown_line(
    backend: Backend, outcome: str, seconds: float, freed: Freed | None
) -> tuple[str, dict[str, Any]]:
    facts = {"outcome": outcome, "seconds": round(seconds, 3), "freed": msgspec.to_builtins(freed)}
    text = f"shutdown: {outcome}, in {seconds:.1f} s"
    given_back = describe_freed(freed) if freed else ""
    return f"{text}; {given_back}" if given_back else text, facts


def _watchdog_line(
    backend: Backend, watchdog: str, action: str, reason: str
) -> tuple[str, dict[str, Any]]:
    text = f"{describe_watchdog_action(action)}: {reason}"
    return text, {"watchdog": watchdog, "action": action, "reason": reason}


_LINES: dict[str, Callable[..., tuple[str, dict[str, Any]]]] = {
    "monitor_state_changed": _state_line,
    "monitor_backend_gone": _exit_line,
    "monitor_backend_left_behind": _left_behind_line,
    "monitor_shutdown_finished": _shutdown_line,
    "monitor_watchdog_acted": _watchdog_line,
    "oom_kill": _oom_kill_line,
    "member_ended": _member_line,
    "address_owner": _address_owner_line,
}


class JsonFormatter(logging.Formatter):
    """Formats each record as one line: a JSON object, in ASCII.

    It has `time` (RFC 3339, UTC), `level`, `logger` and `message`, then the named facts of the
    monitor's own lines, and `exception` with a traceback if the record has one.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
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
    """Log to stderr: warnings of all loggers, the audit and the events of backends.

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
