"""Measured figures with their spread, and the goals that they are compared with."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple


class Goal(NamedTuple):
    """The least or the greatest median that meets a goal."""

    at_least: float | None = None
    at_most: float | None = None

    def met_by(self, value: float) -> bool:
        """Whether a median meets this goal."""
        above = self.at_least is None or value >= self.at_least
        return above and (self.at_most is None or value <= self.at_most)

    def __str__(self) -> str:
        return f">= {self.at_least:g}" if self.at_least is not None else f"<= {self.at_most:g}"


class Figure(NamedTuple):
    """One measured quantity, with a value for each round."""

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

    def to_json(self) -> dict[str, Any]:
        """Convert to an object for JSON."""
        fields: dict[str, Any] = {"name": self.name, "unit": self.unit, "median": self.median}
        fields["values"] = list(self.values)
        if self.goal:
            fields |= {"goal": str(self.goal), "met": self.goal.met_by(self.median)}
        return fields
