"""The answer of `/hooks` as a table for people."""

from __future__ import annotations

from typing import Any

_HEAD = ("PLUGIN", "HOOK", "CALLS", "ERRORS", "OVERRAN", "TOTAL ms", "LONGEST ms", "SOURCE")
_TO_THE_LEFT = (0, 1, 7)


def hooks_table(answer: Any) -> str:
    """Write a line for each hook of each plugin, and the plugins that are left out.

    Args:
        answer: what `/hooks` gave, decoded.
    """
    rows: list[tuple[str, ...]] = [_HEAD]
    for plugin in answer["plugins"]:
        name, source = _shown(plugin["name"]), _shown(plugin["source"])
        for hook in plugin["hooks"]:
            figures = (str(hook[key]) for key in ("calls", "errors", "overruns"))
            times = (f"{hook[key] * 1000:.1f}" for key in ("seconds_total", "seconds_max"))
            rows.append((name, _shown(hook["name"]), *figures, *times, source))
        if not plugin["hooks"]:
            rows.append((name, "-", "-", "-", "-", "-", "-", source))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if place in _TO_THE_LEFT else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    if not answer["plugins"]:
        lines = ["no plugin is loaded"]
    if answer["disabled"]:
        lines.append(f"left out: {', '.join(map(_shown, answer['disabled']))}")
    return "\n".join(lines)


def _shown(text: str) -> str:
    """Escape what would move a terminal's cursor."""
    return text if text.isprintable() else ascii(text)[1:-1]
