"""The answer of `/hooks` as a table for people."""

from __future__ import annotations

from ...api.results import HooksAnswer
from .text import printable

_HEAD = ("PLUGIN", "HOOK", "CALLS", "ERRORS", "OVERRAN", "TOTAL ms", "LONGEST ms", "SOURCE")
_LEFT_JUSTIFIED = (0, 1, 7)


def hooks_table(answer: HooksAnswer) -> str:
    """Write a line for each hook of each plugin, and the plugins that are left out."""
    rows: list[tuple[str, ...]] = [_HEAD]
    for plugin in answer.plugins:
        name, source = printable(plugin.name), printable(plugin.source)
        for hook in plugin.hooks:
            counts = (str(count) for count in (hook.calls, hook.errors, hook.overruns))
            times = (f"{each * 1000:.1f}" for each in (hook.seconds_total, hook.seconds_max))
            rows.append((name, printable(hook.name), *counts, *times, source))
        if not plugin.hooks:
            rows.append((name, "-", "-", "-", "-", "-", "-", source))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if place in _LEFT_JUSTIFIED else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    if not answer.plugins:
        lines = ["no plugin is loaded"]
    if answer.disabled:
        lines.append(f"left out: {', '.join(map(printable, answer.disabled))}")
    return "\n".join(lines)
