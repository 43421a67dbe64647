"""Text for people: names that cannot steer a terminal, and numbers with their units."""

from __future__ import annotations

from ...domain.byte_sizes import format_bytes

UNKNOWN = "?"


def escape_name(name: str) -> str:
    r"""Escape a name: all characters that a terminal could act upon, or that are invisible.

    Letters of every script stay, as do spaces within. A space at an end becomes `\x20`. A backslash
    is doubled, so that no name looks like the escaped form of another one.
    """
    core = name.strip(" ")
    before, _, after = name.partition(core) if core else (name, "", "")
    core = printable(core.replace("\\", r"\\"))
    return r"\x20" * len(before) + core + r"\x20" * len(after)


def printable(text: str) -> str:
    r"""Escape characters that are not printable: `\x1b`, `\u202e`."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in text
    )


def amount(count: float | None) -> str:
    """Show bytes: `96.0 MiB`."""
    return UNKNOWN if count is None else format_bytes(count)


def percent(share: float | None) -> str:
    """Show a percentage, without its sign."""
    return UNKNOWN if share is None else f"{share:.1f}"


def duration(seconds: float | None) -> str:
    """Show a duration by its two largest units: `45s`, `3m20s`, `5h2m`, `12d3h`."""
    if seconds is None:
        return UNKNOWN
    whole = max(0, int(seconds))
    for size, unit, smaller_size, smaller in (
        (86400, "d", 3600, "h"),
        (3600, "h", 60, "m"),
        (60, "m", 1, "s"),
    ):
        if whole >= size:
            rest = whole % size // smaller_size
            return f"{whole // size}{unit}" + (f"{rest}{smaller}" if rest else "")
    return f"{whole}s"
