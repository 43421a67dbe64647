"""Tables of backends, of their exits, and of one model; they fit any width. Needs rich."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from rich.cells import cell_len, set_cell_size
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from ...api.schemas import ClusterBackendsAnswer, NodeBackendItem, NodeEndItem
from ...domain.models import ProcessUsage, State, TreeUsage
from .text import (
    ALARMING,
    UNKNOWN,
    ago,
    amount,
    by_memory,
    condition,
    condition_seconds,
    cpu_percent,
    describe_source,
    duration,
    escape_name,
    memory_bytes,
    memory_percent,
    missing_parts,
    not_loaded,
    percent,
    printable,
    seconds_since,
    summarize,
)

_STYLES = {
    "ready": "green",
    "busy": "yellow",
    "uninitialized": "cyan",
    "error": "bold red",
    "no answer": "bold red",
    "unreachable": "bold red",
}
_CAUSES = {"killed": "red", "oom": "bold red", "exited": "yellow"}
_GAP = 2
_NARROWEST_NAME = 12
_ENDS_SHOWN = 10
_BAR_WIDTH = 20

Row = TypeVar("Row")


@dataclass(frozen=True)
class Column(Generic[Row]):
    """A column. A narrow table omits the highest `dispensable` first, and never omits a 0."""

    title: str
    cell: Callable[[Row], Text]
    dispensable: int
    justify: Any = "left"


def console(*, stderr: bool = False) -> Console:
    """Make a console without markup; outside a terminal lines may be 10,000 columns wide."""
    made = Console(stderr=stderr, markup=False, emoji=False, highlight=False, soft_wrap=False)
    if not made.is_terminal:
        made.width = 10_000
    return made


def backend_columns(answer: ClusterBackendsAnswer) -> list[Column[NodeBackendItem]]:
    """Return the columns for backends, in a cluster with a column for the node."""
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
    """Return a backend's condition with its age; `!` marks what an operator should check."""
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
        columns: the columns; columns that do not fit are omitted.
        width: in terminal columns.
        fold: whether long text takes several lines; otherwise text is cut.
        selected: the index of the row in reverse video; -1 for none.
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
    while sum(widths[at] + _GAP for at in kept) > width:
        worst = max(kept, key=lambda at: columns[at].dispensable)
        if not columns[worst].dispensable:
            break
        kept.remove(worst)
    others = sum(widths[at] + _GAP for at in kept if at)
    widths[0] = max(1, min(name_width, width - _GAP - others))
    table = Table(box=None, padding=(0, _GAP, 0, 0), pad_edge=False, header_style="bold")
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
    """Return the view of `ps`: all backends or those of a model, then the last that ended."""
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
    """Return a table of the backends that ended last."""
    table = table_of(ended[:_ENDS_SHOWN], _END_COLUMNS, width, fold=True)
    more = len(ended) - _ENDS_SHOWN
    return Group(table, Text(f"and {more} before: --json shows them")) if more > 0 else table


def details_view(answer: ClusterBackendsAnswer, model: str, width: int) -> RenderableType:
    """Return the view of `status`: each backend of a model, then its last exits."""
    count = len(answer.backends)
    replicas = f"  {count} replicas" if count > 1 else ""
    parts: list[RenderableType] = [Text(escape_name(model), "bold").append(replicas, "not bold")]
    for item in answer.backends:
        table = Table(box=None, show_header=False, padding=(0, _GAP, 0, 0), pad_edge=False)
        table.add_column(no_wrap=True, style="bold")
        table.add_column(overflow="fold")
        for name, text in _details(item, answer):
            table.add_row(name, Text(text) if isinstance(text, str) else text)
        parts += [table, ""]
    if answer.ended:
        parts.append(ends_table(answer.ended, width))
    else:
        parts.append(Text("None of its backends has ended lately."))
    return Group(*parts)


def _details(item: NodeBackendItem, answer: ClusterBackendsAnswer) -> list[tuple[str, str | Text]]:
    age = "" if item.age_seconds is None else f", read {duration(item.age_seconds)} ago"
    started = f"{item.created_at:%Y-%m-%d %H:%M:%S} UTC, {duration(item.uptime_seconds)} ago"
    share = percent(memory_percent(item, answer))
    sources = {"backend": "the backend's word", "pss": "PSS of its tree", "rss": "RSS of its tree"}
    source = sources.get(item.memory_source or "", "source unknown")
    lines: list[tuple[str, str | Text]] = [
        *([("node", printable(item.node))] if item.node else []),
        ("PID", str(item.pid)),
        ("address", printable(item.address)),
        ("state", condition_text(item).append(_last_state(item), "not bold")),
        ("source", printable(describe_source(item)) + age),
        ("started", started),
        ("memory", f"{amount(memory_bytes(item))}, {share} % of the machine's, {source}"),
    ]
    if item.memory:
        parts = [(escape_name(name), size) for name, size in item.memory.breakdown.items()]
        parts.sort(key=lambda part: -part[1])
        largest = max([1, *(size for _, size in parts)])
        width = max([0, *(cell_len(name) for name, _ in parts)])
        for name, size in parts:
            bar = "#" * max(1 if size else 0, round(_BAR_WIDTH * size / largest))
            lines.append(("", f"{set_cell_size(name, width)}  {amount(size):>10}  {bar}"))
    if item.process:
        lines.append(("process", _usage(item.process)))
        lines.append(("tree", _usage(item.process.tree)))
    return lines


def _last_state(item: NodeBackendItem) -> str:
    """Return the last known state of a backend that gives no state now."""
    if item.state is not None or item.last_state is None:
        return ""
    names = {int(each): each.name.lower() for each in State}
    since = duration(seconds_since(item.state_changed_at))
    return f", {names.get(item.last_state, item.last_state)} before, since {since}"


def _usage(usage: ProcessUsage | None) -> str:
    if usage is None:
        return UNKNOWN
    tree = usage if isinstance(usage, TreeUsage) else None
    counts = [
        (tree.processes if tree else None, "processes", "process"),
        (usage.threads, "threads", "thread"),
        (usage.open_files, "open files", "open file"),
    ]
    sizes = [
        ("rss", usage.rss),
        ("pss", tree.pss if tree else None),
        ("vms", usage.vms),
        ("vram", tree.vram if tree else None),
    ]
    parts = [f"{n} {one if n == 1 else several}" for n, several, one in counts if n is not None]
    parts += [f"{name} {amount(size)}" for name, size in sizes if size is not None]
    if usage.cpu_percent is not None:
        parts.append(f"cpu {percent(usage.cpu_percent)} % of one core")
    if usage.cpu_seconds is not None:
        parts.append(f"{usage.cpu_seconds:.1f} s of cpu")
    return ", ".join(parts) or UNKNOWN
