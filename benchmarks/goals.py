"""Figures with their spread, and the goals that they are held against."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple


class Goal(NamedTuple):
    """Where a median is to lie."""

    at_least: float | None = None
    at_most: float | None = None

    def met_by(self, value: float) -> bool:
        """Whether it lies there."""
        above = self.at_least is None or value >= self.at_least
        return above and (self.at_most is None or value <= self.at_most)

    def __str__(self) -> str:
        return f">= {self.at_least:g}" if self.at_least is not None else f"<= {self.at_most:g}"


class Figure(NamedTuple):
    """What was measured, once a round."""

    name: str
    unit: str
    values: Sequence[float]
    goal: Goal | None = None

    @property
    def median(self) -> float:
        """The median of all rounds."""
        return statistics.median(self.values)

    def __str__(self) -> str:
        spread = f"{min(self.values):.5g} .. {max(self.values):.5g}"
        line = f"{self.name:54} {self.median:9.5g} {self.unit:6} ({spread})"
        if self.goal:
            line += f"  goal {self.goal}: {'met' if self.goal.met_by(self.median) else 'MISSED'}"
        return line

    def plain(self) -> dict[str, Any]:
        """Give it as JSON takes it."""
        fields: dict[str, Any] = {"name": self.name, "unit": self.unit, "median": self.median}
        fields["values"] = list(self.values)
        if self.goal:
            fields |= {"goal": str(self.goal), "met": self.goal.met_by(self.median)}
        return fields
