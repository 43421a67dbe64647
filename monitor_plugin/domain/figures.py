"""Figures that may be unknown."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

Number = TypeVar("Number", int, float)


def sum_known(figures: Iterable[Number | None]) -> Number | None:
    """Add figures up; None if any of them is not known. The sum of no figures is 0."""
    total: Number = 0
    for figure in figures:
        if figure is None:
            return None
        total += figure
    return total
