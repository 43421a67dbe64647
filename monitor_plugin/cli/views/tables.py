"""Tables of backends and of their ends; a narrow terminal gets the most important columns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from ...api.schemas import ClusterBackendsAnswer, NodeBackendItem, NodeEndItem
from .summary import (
    ALARMING,
    ago,
    by_memory,
    condition,
    condition_seconds,
    cpu_percent,
    describe_source,
    memory_bytes,
    memory_percent,
    missing_parts,
    not_loaded,
    summarize,
)
from .text import amount, duration, escape_name, percent, printable

_STYLES = {
    "ready": "green",
    "busy": "yellow",
    "uninitialized": "cyan",
    "error": "bold red",
    "no answer": "bold red",
    "unreachable": "bold red",
}
_CAUSES = {"killed": "red", "oom": "bold red", "exited": "yellow"}
GAP = 2
_NARROWEST_NAME = 12
_ENDS_SHOWN = 10

Row = TypeVar("Row")


@dataclass(frozen=True)
class Column(Generic[Row]):
    """A column; the one with the highest `dispensable` is left out first, one with 0 never."""

    title: str
    cell: Callable[[Row], Text]
    dispensable: int
    justify: Any = "left"


def console(*, stderr: bool = False) -> Console:
    """Make a console that takes no text for markup, and folds no line unless it is a terminal."""
    made = Console(stderr=stderr, markup=False, emoji=False, highlight=False, soft_wrap=False)
    if not made.is_terminal:
        made.width = 10_000
    return made


def backend_columns(answer: ClusterBackendsAnswer) -> list[Column[NodeBackendItem]]:
    """Return the columns for backends; in a cluster one of them is for nodes."""
    node: Column[NodeBackendItem] = Column("NODE", lambda item: Text(printable(item.node)), 1)
    return [
        Column("MODEL", lambda item: Text(escape_name(item.model)), 0),
        *([node] if answer.nodes else []),
        Column("PID", lambda item: Text(str(item.pid)), 4, "right"),
        Column("STATE", condition_text, 0),
        Column("MEMORY", lambda item: Text(amount(memory_bytes(item))), 0, "right"),
        Column("MEM%", lambda item: Text(percent(memory_percent(item, answer))), 5, "right"),
        Column("CPU%", lambda item: Text(percent(cpu_percent(item))), 2, "right"),
        Column("UPTIME", lambda item: Text(duration(item.uptime_seconds)), 3, "right"),
        Column("SOURCE", lambda item: Text(printable(describe_source(item))), 6),
    ]


_END_COLUMNS: list[Column[NodeEndItem]] = [
    Column("ENDED", lambda end: Text(escape_name(end.model)), 0),
    Column("PID", lambda end: Text(_place(end)), 2, "right"),
    Column("CAUSE", lambda end: Text(printable(end.cause), _CAUSES.get(end.cause, "")), 1),
    Column("WHEN", lambda end: Text(ago(end)), 3, "right"),
    Column("HOW", lambda end: Text(printable(end.description)), 0),
]


def _place(end: NodeEndItem) -> str:
    return f"{end.pid} on {printable(end.node)}" if end.node else str(end.pid)


def condition_text(item: NodeBackendItem) -> Text:
    """Show a backend's condition, for how long it lasts, and a `!` if an operator should look."""
    name, seconds = condition(item), condition_seconds(item)
    alarm = "! " if name in ALARMING else ""
    since = "" if seconds is None else f" {duration(seconds)}"
    style = "magenta" if item.shutdown else _STYLES.get(name, "")
    return Text(alarm + printable(name) + since, style)


def table_of(
    rows: Sequence[Row],
    columns: Sequence[Column[Row]],
    width: int,
    *,
    fold: bool,
    selected: int = -1,
) -> Table:
    """Make a table no wider than `width`.

    Args:
        rows: a record for each row.
        columns: those that do not fit are left out.
        width: in characters.
        fold: whether a name that is too long takes several lines; otherwise it is cut.
        selected: the index of the row that is shown in reverse video; -1 for none.
    """
    cells = [[column.cell(row) for column in columns] for row in rows]
    widths = [
        max([cell_len(column.title), *(cell_len(line[at].plain) for line in cells)])
        for at, column in enumerate(columns)
    ]
    name_width = widths[0]
    widths[0] = min(name_width, _NARROWEST_NAME)
    kept = list(range(len(columns)))
    # Rich before 15 also wants room for a gap after the last column.
    while sum(widths[at] + GAP for at in kept) > width:
        worst = max(kept, key=lambda at: columns[at].dispensable)
        if not columns[worst].dispensable:
            break
        kept.remove(worst)
    others = sum(widths[at] + GAP for at in kept if at)
    widths[0] = max(1, min(name_width, width - GAP - others))
    table = Table(box=None, padding=(0, GAP, 0, 0), pad_edge=False, header_style="bold")
    for at in kept:
        elastic = fold and at == len(columns) - 1
        table.add_column(
            columns[at].title,
            justify=columns[at].justify,
            no_wrap=not fold,
            overflow="fold" if fold else "ellipsis",
            width=None if elastic else widths[at],
        )
    for number, line in enumerate(cells):
        style = "reverse" if number == selected else None
        table.add_row(*(line[at] for at in kept), style=style)
    return table


def backends_view(answer: ClusterBackendsAnswer, model: str | None, width: int) -> RenderableType:
    """Show all backends or those of a model, the largest first, and the last that ended."""
    parts: list[RenderableType] = []
    if answer.backends:
        rows = sorted(answer.backends, key=by_memory)
        parts += [table_of(rows, backend_columns(answer), width, fold=True), ""]
    if model is None or answer.backends:
        parts.append(Text(summarize(answer)))
    else:
        parts.append(Text(f"Model '{escape_name(model)}' {not_loaded(answer)}."))
    parts += [Text(printable(each), "bold red") for each in missing_parts(answer)]
    if answer.ended:
        parts += ["", ends_table(answer.ended, width)]
    return Group(*parts)


def ends_table(ended: Sequence[NodeEndItem], width: int) -> RenderableType:
    """Show the backends that ended last."""
    table = table_of(ended[:_ENDS_SHOWN], _END_COLUMNS, width, fold=True)
    more = len(ended) - _ENDS_SHOWN
    return Group(table, Text(f"and {more} before: --json shows them")) if more > 0 else table
