"""Describes the actions of watchdogs in words for people."""

from __future__ import annotations

_WORDS = {
    "stop": "is being stopped",
    "restart": "is being restarted",
    "gave_up": "is left as it is, after too many restarts",
}


def describe_watchdog_action(action: str | None) -> str:
    """Describe an action of `monitor_watchdog_acted`; `tell` and unknown ones need attention."""
    return _WORDS.get(action or "", "needs attention")
