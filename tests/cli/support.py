"""Helpers of the tests of views."""

from __future__ import annotations

import io

from rich.cells import cell_len
from rich.console import Console, RenderableType


def text_of(view: RenderableType, width: int) -> str:
    """Print a view on a terminal of a width, which no line may exceed."""
    output = Console(file=io.StringIO(), width=width, markup=False, emoji=False, highlight=False)
    output.print(view)
    assert isinstance(output.file, io.StringIO)
    text = output.file.getvalue()
    assert all(cell_len(line) <= width for line in text.splitlines())
    assert "\x1b" not in text
    return text


def rows(text: str) -> list[list[str]]:
    """Return the cells of each line, which two spaces or more separate."""
    return [
        [cell.strip() for cell in line.split("  ") if cell.strip()] for line in text.splitlines()
    ]
