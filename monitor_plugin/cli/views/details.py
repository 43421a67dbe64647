"""The view of one model: all that is known of each of its backends."""

from __future__ import annotations

from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ...api.schemas import ClusterBackendsAnswer, NodeBackendItem
from ...domain.models import ProcessUsage, State, TreeUsage
from .summary import describe_source, memory_bytes, memory_percent, seconds_since
from .tables import GAP, condition_text, ends_table
from .text import UNKNOWN, amount, duration, escape_name, percent, printable

_BAR_WIDTH = 20


def details_view(answer: ClusterBackendsAnswer, model: str, width: int) -> RenderableType:
    """Show all that is known of one model's backends."""
    count = len(answer.backends)
    parts: list[RenderableType] = [
        Text(escape_name(model), "bold").append(
            f"  {count} replicas" if count > 1 else "", "not bold"
        )
    ]
    for item in answer.backends:
        table = Table(box=None, show_header=False, padding=(0, GAP, 0, 0), pad_edge=False)
        table.add_column(no_wrap=True, style="bold")
        table.add_column(overflow="fold")
        for name, text in _details(item, answer):
            table.add_row(name, text)
        parts += [table, ""]
    if answer.ended:
        parts.append(ends_table(answer.ended, width))
    else:
        parts.append(Text("None of its backends has ended lately."))
    return Group(*parts)


def _details(item: NodeBackendItem, answer: ClusterBackendsAnswer) -> list[tuple[str, Text]]:
    age = "" if item.age_seconds is None else f", read {duration(item.age_seconds)} ago"
    lines = [
        *([("node", Text(printable(item.node)))] if item.node else []),
        ("PID", Text(str(item.pid))),
        ("address", Text(printable(item.address))),
        ("state", condition_text(item).append(_last_state(item), "not bold")),
        ("source", Text(printable(describe_source(item)) + age)),
        ("started", Text(_started(item))),
        ("memory", Text(_memory(item, answer))),
    ]
    if item.memory:
        parts = sorted(item.memory.breakdown.items(), key=lambda part: -part[1])
        largest = max([size for _, size in parts] or [0])
        longest = max([cell_len(escape_name(name)) for name, _ in parts] or [0])
        for name, size in parts:
            padded = escape_name(name) + " " * (longest - cell_len(escape_name(name)))
            bar = "#" * max(1 if size else 0, round(_BAR_WIDTH * size / max(1, largest)))
            lines.append(("", Text(f"{padded}  {amount(size):>10}  {bar}")))
    if item.process:
        lines.append(("process", Text(_usage(item.process))))
        lines.append(("tree", Text(_usage(item.process.tree))))
    return lines


def _last_state(item: NodeBackendItem) -> str:
    """Return the last state of a backend that gives none now."""
    if item.state is not None or item.last_state is None:
        return ""
    names = {int(each): each.name.lower() for each in State}
    since = duration(seconds_since(item.state_changed_at))
    return f", {names.get(item.last_state, item.last_state)} before, since {since}"


def _started(item: NodeBackendItem) -> str:
    return f"{item.created_at:%Y-%m-%d %H:%M:%S} UTC, {duration(item.uptime_seconds)} ago"


def _memory(item: NodeBackendItem, answer: ClusterBackendsAnswer) -> str:
    share = percent(memory_percent(item, answer))
    names = {"backend": "the backend's word", "pss": "PSS of its tree", "rss": "RSS of its tree"}
    source = names.get(item.memory_source or "", "source unknown")
    return f"{amount(memory_bytes(item))}, {share} % of the machine's, {source}"


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
