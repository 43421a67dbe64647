"""Tables of backends, of their exits, and of one model; they fit any width. Needs rich."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from rich.cells import cell_len, set_cell_size
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from ...api.schemas import (
    ClusterBackendsAnswer,
    NodeBackendItem,
    NodeEndItem,
    NodeModelItem,
    NodeRefusedItem,
)
from ...domain.models import ProcessUsage, State, TreeUsage
from .text import (
    ADDRESS_TAKEN,
    ALARMING,
    UNKNOWN,
    ago,
    amount,
    by_memory,
    condition,
    condition_seconds,
    cpu_percent,
    describe_limits,
    describe_source,
    describe_unit,
    duration,
    escape_name,
    left_behind,
    left_behind_hint,
    load_lines,
    memory_bytes,
    memory_percent,
    memory_share,
    missing_parts,
    not_loaded,
    output_lines,
    percent,
    place,
    pressure_lines,
    printable,
    requests,
    seconds_since,
    summarize,
    vram,
    vram_texts,
    zombies,
)

_STYLES = {
    "ready": "green",
    "busy": "yellow",
    "uninitialized": "cyan",
    "starting": "cyan",
    "error": "bold red",
    "no answer": "bold red",
    "unreachable": "bold red",
    "no access": "bold red",
    "bad answer": "bold red",
    ADDRESS_TAKEN: "bold red",
}
# States of models without a backend, what an operator should check first.
_MODEL_STYLES = {
    "failed": "bold red",
    "waiting": "red",
    "exited": "yellow",
    "running": "yellow",
    "starting": "cyan",
    "stopped": "",
}
_CAUSES = {"killed": "red", "oom": "bold red", "exited": "yellow"}
_GAP = 2
_NARROWEST_NAME = 12
_NARROWEST_TEXT = 24  # of a last column that may take several lines
_ENDS_SHOWN = 10
_REFUSED_SHOWN = 10
_MODELS_SHOWN = 20
_BAR_WIDTH = 20


class Column(NamedTuple):
    """A column. A narrow table omits the highest `dispensable` first, and never omits a 0."""

    title: str
    cells: list[Text]
    dispensable: int
    justify: Any = "left"


def console(*, stderr: bool = False) -> Console:
    """Make a console without markup; outside a terminal lines may be 10,000 columns wide."""
    made = Console(stderr=stderr, markup=False, emoji=False, highlight=False, soft_wrap=False)
    if not made.is_terminal:
        made.width = 10_000
    return made


def backends_table(
    items: Sequence[NodeBackendItem],
    answer: ClusterBackendsAnswer,
    width: int,
    *,
    fold: bool = True,
    selected: int = -1,
    wide: bool = False,
) -> Table:
    """Return a table of backends, in a cluster with a column for the node; see `fitted_table`.

    A `wide` table also has what the backends report of their requests.
    """
    shares = [percent(memory_percent(item, answer)) for item in items]
    columns = [
        Column("MODEL", [Text(escape_name(item.model)) for item in items], 0),
        Column("NODE", [Text(printable(item.node)) for item in items], 1),
        Column("PID", [Text(str(item.pid)) for item in items], 5, "right"),
        Column("STATE", [condition_text(item) for item in items], 0),
        Column("MEMORY", [Text(amount(memory_bytes(item))) for item in items], 0, "right"),
        Column("MEM%", [Text(share) for share in shares], 6, "right"),
        Column("VRAM", [Text(each) for each in vram_texts(items, answer)], 2, "right"),
        Column("CPU%", [Text(percent(cpu_percent(item))) for item in items], 3, "right"),
        Column("UPTIME", [Text(duration(item.uptime_seconds)) for item in items], 4, "right"),
        Column("SOURCE", [Text(printable(describe_source(item))) for item in items], 7),
    ]
    if wide:
        tokens = [percent(item.tokens_per_second) for item in items]
        kv_cache = [percent(item.kv_cache_percent) for item in items]
        protocols = [printable(item.protocol or UNKNOWN) for item in items]
        columns[-1:-1] = [
            Column("REQS", [Text(requests(item)) for item in items], 1, "right"),
            Column("TOK/S", [Text(each) for each in tokens], 1, "right"),
            Column("KV%", [Text(each) for each in kv_cache], 1, "right"),
            Column("PROTOCOL", [Text(each) for each in protocols], 6),
        ]
    absent = set() if answer.nodes else {"NODE"}
    if not answer.gpus and all(vram(item) is None for item in answer.backends):
        absent.add("VRAM")
    columns = [column for column in columns if column.title not in absent]
    return fitted_table(columns, width, fold=fold, selected=selected)


def models_table(models: Sequence[NodeModelItem], width: int) -> RenderableType:
    """Return a table of the models without a backend, those first that failed."""
    order = list(_MODEL_STYLES)

    def rank(item: NodeModelItem) -> tuple[int, str, str]:
        place = order.index(item.state) if item.state in order else len(order)
        return place, item.model, item.node

    shown = sorted(models, key=rank)[:_MODELS_SHOWN]
    states = [Text(printable(each.state), _MODEL_STYLES.get(each.state, "")) for each in shown]
    columns = [
        Column("NO BACKEND", [Text(escape_name(each.model)) for each in shown], 0),
        Column("NODE", [Text(printable(each.node)) for each in shown], 1),
        Column("STATE", states, 0),
        Column("START", [Text("yes" if each.can_start else "no") for each in shown], 2),
        Column("DETAIL", [Text(printable(each.detail or "")) for each in shown], 3),
    ]
    if not any(each.node for each in shown):
        columns = [column for column in columns if column.title != "NODE"]
    table = fitted_table(columns, width)
    more = len(models) - _MODELS_SHOWN
    return Group(table, Text(f"and {more} more: --json shows them")) if more > 0 else table


def ends_table(
    ended: Sequence[NodeEndItem], width: int, *, with_ids: bool = False
) -> RenderableType:
    """Return a table of the backends that ended last; with their IDs, of all that are listed."""
    ends = ended if with_ids else ended[:_ENDS_SHOWN]
    causes = [Text(printable(end.cause), _CAUSES.get(end.cause, "")) for end in ends]
    columns = [
        Column("ENDED", [Text(escape_name(end.model)) for end in ends], 0),
        Column("PID", [Text(place(end)) for end in ends], 2, "right"),
        Column("CAUSE", causes, 1),
        Column("WHEN", [Text(ago(end)) for end in ends], 3, "right"),
        Column("PEAK RSS", [Text(amount(end.peak_rss)) for end in ends], 4, "right"),
        Column("HOW", [Text(printable(end.description)) for end in ends], 0),
    ]
    if with_ids:
        columns.insert(1, Column("ID", [Text(str(end.id)) for end in ends], 0, "right"))
    if all(end.peak_rss is None for end in ends):
        columns = [column for column in columns if column.title != "PEAK RSS"]
    table = fitted_table(columns, width)
    more = len(ended) - len(ends)
    return Group(table, Text(f"and {more} before: --json shows them")) if more > 0 else table


def refused_table(refused: Sequence[NodeRefusedItem], width: int) -> RenderableType:
    """Return a table of the processes whose registration was refused."""
    shown = refused[:_REFUSED_SHOWN]
    columns = [
        Column("REFUSED", [Text(escape_name(each.model)) for each in shown], 0),
        Column("PID", [Text(place(each)) for each in shown], 1, "right"),
        Column("ADDRESS", [Text(printable(each.address)) for each in shown], 2),
        Column("REASON", [Text(printable(each.reason)) for each in shown], 0),
    ]
    table = fitted_table(columns, width)
    more = len(refused) - _REFUSED_SHOWN
    return Group(table, Text(f"and {more} more: --json shows them")) if more > 0 else table


def condition_text(item: NodeBackendItem) -> Text:
    """Return a backend's condition, with its age and zombies; `!` marks what to check."""
    name, seconds = condition(item), condition_seconds(item)
    alarm = "! " if name in ALARMING else ""
    since = "" if seconds is None else f" {duration(seconds)}"
    style = "magenta" if item.shutdown else _STYLES.get(name, "")
    text = Text(alarm + printable(name) + since, style)
    if count := zombies(item):
        text.append(f", {count} zombie{'s' if count > 1 else ''}", "yellow")
    return text


def fitted_table(
    columns: Sequence[Column], width: int, *, fold: bool = True, selected: int = -1
) -> Table:
    """Make a table no wider than `width`; columns that do not fit are omitted.

    Args:
        columns: the columns; the first has the names, which may take several lines or be cut.
        width: in terminal columns.
        fold: whether long text, also that of the last column, takes several lines; otherwise text
            is cut.
        selected: the index of the row in reverse video; -1 for none.
    """
    widths = {
        column.title: max(map(cell_len, [column.title, *(cell.plain for cell in column.cells)]))
        for column in columns
    }
    name, last = columns[0].title, columns[-1].title
    name_width, last_width = widths[name], widths[last]
    widths[name] = min(name_width, _NARROWEST_NAME)
    if fold:
        widths[last] = min(last_width, _NARROWEST_TEXT)
    shown = list(columns)
    # Rich before 15 also wants room for a gap after the last column.
    while sum(widths[column.title] + _GAP for column in shown) > width:
        worst = max(shown, key=lambda column: column.dispensable)
        if not worst.dispensable:
            break
        shown.remove(worst)
    room = width - sum(widths[column.title] + _GAP for column in shown)
    if fold and shown[-1] is columns[-1]:  # the names get what the last column does not need
        widths[last] += max(0, min(last_width - widths[last], room))
        room = width - sum(widths[column.title] + _GAP for column in shown)
    widths[name] = max(1, min(name_width, widths[name] + room))
    table = Table(box=None, padding=(0, _GAP, 0, 0), pad_edge=False, header_style="bold")
    for column in shown:
        table.add_column(
            column.title,
            justify=column.justify,
            no_wrap=not fold,
            overflow="fold" if fold else "ellipsis",
            width=widths[column.title],
        )
    for number, row in enumerate(zip(*(column.cells for column in shown), strict=True)):
        table.add_row(*row, style="reverse" if number == selected else None)
    return table


def backends_view(
    answer: ClusterBackendsAnswer, model: str | None, width: int, *, wide: bool = False
) -> RenderableType:
    """Return the view of `ps`: backends, models without one, what was refused, the last ends."""
    parts: list[RenderableType] = []
    if answer.backends:
        rows = sorted(answer.backends, key=by_memory)
        parts += [backends_table(rows, answer, width, wide=wide), ""]
    if model is None or answer.backends:
        parts.append(Text(summarize(answer)))
    else:
        parts.append(Text(f"Model '{escape_name(model)}' {not_loaded(answer)}."))
    parts += [Text(each) for each in pressure_lines(answer)]
    parts += [Text(printable(each), "bold red") for each in missing_parts(answer)]
    parts += [Text(each, "bold red") for each in left_behind(answer.ended)]
    if hint := left_behind_hint(answer.ended):
        parts.append(Text(hint))
    if answer.models:
        parts += ["", models_table(answer.models, width)]
    if answer.refused:
        parts += ["", refused_table(answer.refused, width)]
    if answer.ended:
        parts += ["", ends_table(answer.ended, width)]
    return Group(*parts)


def details_view(answer: ClusterBackendsAnswer, model: str, width: int) -> RenderableType:
    """Return the view of `status`: each backend of a model, what was refused, its last exits."""
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
    parts += [Text(each, "bold red") for each in left_behind(answer.ended)]
    if hint := left_behind_hint(answer.ended):
        parts.append(Text(hint))
    if answer.refused:
        parts += [refused_table(answer.refused, width), ""]
    if answer.ended:
        parts.append(ends_table(answer.ended, width))
        parts += [Text(each) for each in output_lines(answer.ended[0])]
    else:
        parts.append(Text("None of its backends has ended lately."))
    return Group(*parts)


def unloaded_view(answer: ClusterBackendsAnswer, model: str, width: int) -> RenderableType:
    """Return the view of `status` for a model without a backend that a host knows."""
    parts: list[RenderableType] = [models_table(answer.models, width)]
    if answer.ended:
        parts += ["", ends_table(answer.ended, width)]
        parts += [Text(each) for each in output_lines(answer.ended[0])]
    return Group(*parts)


def _details(item: NodeBackendItem, answer: ClusterBackendsAnswer) -> list[tuple[str, str | Text]]:
    age = "" if item.age_seconds is None else f", read {duration(item.age_seconds)} ago"
    started = f"{item.created_at:%Y-%m-%d %H:%M:%S} UTC, {duration(item.uptime_seconds)} ago"
    share = memory_share(item, answer)
    sources = {"backend": "the backend's word", "pss": "PSS of its tree", "rss": "RSS of its tree"}
    source = sources.get(item.memory_source or "", "source unknown")
    lines: list[tuple[str, str | Text]] = [
        *([("node", printable(item.node))] if item.node else []),
        ("PID", str(item.pid)),
        ("address", printable(item.address) + _server(item)),
        ("state", condition_text(item).append(_last_state(item), "not bold")),
        ("source", printable(describe_source(item)) + age),
        *([("protocol", printable(item.protocol))] if item.protocol else []),
        *load_lines(item),
        ("started", started),
        ("memory", f"{amount(memory_bytes(item))}, {share}, {source}"),
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
        if kinds := _kinds(item.process.tree):
            lines.append(("kinds", kinds))
    if item.limits:
        lines.append(("limits", describe_limits(item.limits)))
    if item.unit:
        lines.append(("unit", describe_unit(item.unit)))
    return lines


def _server(item: NodeBackendItem) -> str:
    """Return which member serves the address, where that is not the registered process."""
    known = item.served_by is not None and item.served_by != item.pid
    return f", served by its process {item.served_by}" if known else ""


def _last_state(item: NodeBackendItem) -> str:
    """Return the last known state of a backend that gives no state now."""
    if item.state is not None or item.last_state is None:
        return ""
    names = {int(each): each.name.lower() for each in State}
    since = duration(seconds_since(item.state_changed_at))
    return f", {names.get(item.last_state, item.last_state)} before, since {since}"


def _kinds(tree: TreeUsage | None) -> str:
    """Return a text for the kinds of memory that make up a tree's PSS, its swap, and their age.

    The text is empty if none of these figures is known.
    """
    if tree is None:
        return ""
    age = tree.memory_age_seconds
    sizes = {"anonymous": tree.anonymous, "file": tree.file}
    sizes |= {"shared": tree.shared, "swap": tree.swap}
    if all(size is None for size in sizes.values()):
        return ""
    parts = [f"{name} {amount(size)}" for name, size in sizes.items()]
    if tree.file:
        parts[1] += " (the kernel can drop it)"
    return ", ".join(parts) + ("" if age is None else f", read {duration(age)} ago")


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
        ("peak rss", usage.peak_rss),
        ("pss", tree.pss if tree else None),
        ("vms", usage.vms),
        ("vram", tree.vram if tree else None),
        ("gtt", tree.gtt if tree else None),
    ]
    parts = [f"{n} {one if n == 1 else several}" for n, several, one in counts if n is not None]
    parts += [f"{name} {amount(size)}" for name, size in sizes if size is not None]
    if usage.cpu_percent is not None:
        parts.append(f"cpu {percent(usage.cpu_percent)} % of one core")
    if usage.cpu_seconds is not None:
        parts.append(f"{usage.cpu_seconds:.1f} s of cpu")
    return ", ".join(parts) or UNKNOWN
