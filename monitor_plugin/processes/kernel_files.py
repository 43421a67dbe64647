"""Reads small files of /proc, /sys and control groups."""

from __future__ import annotations

import os
import re

_READ_BYTES = 65536
_LINE = re.compile(r"^(\w+) (\d+)$", re.MULTILINE)


def read_text(path: str) -> str:
    """Read a file.

    Raises:
        OSError: the file cannot be read, for example because its process or group is gone.
    """
    # A text file object takes twice as long, and the limits of 200 backends are in 1,000 files.
    descriptor = os.open(path, os.O_RDONLY)
    try:
        parts = []
        while part := os.read(descriptor, _READ_BYTES):
            parts.append(part)
    finally:
        os.close(descriptor)
    return b"".join(parts).decode(errors="surrogateescape")


def read_number(path: str) -> int | None:
    """Read a file with one number; None if the file cannot be read, or has no number."""
    try:
        return int(read_text(path))
    except (OSError, ValueError):
        return None


def read_numbers(path: str) -> dict[str, int]:
    """Read the lines `name number` of a file; empty if the file cannot be read.

    Other lines are ignored.
    """
    try:
        return {name: int(number) for name, number in _LINE.findall(read_text(path))}
    except OSError:
        return {}
