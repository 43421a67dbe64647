"""Texts for events."""

from __future__ import annotations

from collections.abc import Callable

from ...domain.models import describe_process
from ...domain.watchdog_actions import describe_watchdog_action
from ..queries import EventItem
from .text import describe_given_back, duration, escape_name, printable


def describe_event(event: EventItem) -> str:
    """Return the backend of an event, and what happened to it, escaped."""
    describe = _DESCRIPTIONS.get(event.type)
    what = describe(event) if describe else event.type.replace("_", " ")
    return f"{escape_name(event.model)} ({event.pid})  {printable(what)}"


def is_alarming(event: EventItem) -> bool:
    """Whether an operator should see an event first."""
    if event.type == "ended":
        return event.cause != "shutdown"
    return event.type in ("left_behind", "oom_kill", "watchdog") or event.address_owner is not None


def _describe_left_behind(event: EventItem) -> str:
    count = f"{len(event.pids)} process{'es' * (len(event.pids) != 1)}"
    return f"left {count} behind: {', '.join(map(str, event.pids))}"


def _describe_address_owner(event: EventItem) -> str:
    if event.address_owner:
        return f"its address is served by {describe_process(event.address_owner)}"
    return "its address is no longer served by another process"


def _describe_state(event: EventItem) -> str:
    return f"{event.previous_name or 'unknown'} -> {event.current_name or 'unknown'}"


def _describe_shutdown(event: EventItem) -> str:
    given_back = describe_given_back(event.freed)
    return f"shutdown: {event.outcome} after {duration(event.seconds)}{given_back}"


_DESCRIPTIONS: dict[str, Callable[[EventItem], str]] = {
    "state_changed": _describe_state,
    "ended": lambda event: event.description or "ended",
    "member_ended": lambda event: f"lost a process, which {event.description or 'ended'}",
    "left_behind": _describe_left_behind,
    "address_owner": _describe_address_owner,
    "oom_kill": lambda event: "lost a process, killed by the kernel for want of memory",
    "shutdown_finished": _describe_shutdown,
    "shutdown_phase": lambda event: f"shutdown: {event.phase}",
    "watchdog": lambda event: f"{describe_watchdog_action(event.action)}: {event.reason}",
}
