"""Formats numbers of bytes for people."""

from __future__ import annotations

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


def format_bytes(count: float, number_format: str = ".1f") -> str:
    """Format bytes in the largest fitting unit: `96.0 MiB`, `512 B`.

    Args:
        count: bytes.
        number_format: how to format the number of a unit that is larger than a byte.
    """
    unit = 0
    while count >= 1023.95 and unit < len(_UNITS) - 1:  # 1023.95 would be shown as 1024.0
        count /= 1024
        unit += 1
    return f"{count:{number_format if unit else '.0f'}} {_UNITS[unit]}"
