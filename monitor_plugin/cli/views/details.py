"""How one model looks: all that is known of each of its backends."""

from __future__ import annotations

from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ...domain.models import State
from ..answers import Backends, Figures, Item, seconds_since
from .tables import GAP, condition_text, ends_table
from .text import UNKNOWN, amount, duration, percent, printable, shown

_BAR_WIDTH = 20


def details_view(answer: Backends, model: str, width: int) -> RenderableType:
    """Show all that is known of one model's backends."""
    count = len(answer.backends)
    parts: list[RenderableType] = [
        Text(shown(model), "bold").append(f"  {count} replicas" if count > 1 else "", "not bold")
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


def _details(item: Item, answer: Backends) -> list[tuple[str, Text]]:
    age = "" if item.age_seconds is None else f", read {duration(item.age_seconds)} ago"
    lines = [
        *([("node", Text(printable(item.node)))] if item.node else []),
        ("PID", Text(str(item.pid))),
        ("address", Text(printable(item.address))),
        ("state", condition_text(item).append(_last_state(item), "not bold")),
        ("source", Text(printable(item.why) + age)),
        ("started", Text(_started(item))),
        ("memory", Text(_memory(item, answer))),
    ]
    if item.memory:
        parts = sorted(item.memory.breakdown.items(), key=lambda part: -part[1])
        largest = max([size for _, size in parts] or [0])
        longest = max([cell_len(shown(name)) for name, _ in parts] or [0])
        for name, size in parts:
            padded = shown(name) + " " * (longest - cell_len(shown(name)))
            bar = "#" * max(1 if size else 0, round(_BAR_WIDTH * size / max(1, largest)))
            lines.append(("", Text(f"{padded}  {amount(size):>10}  {bar}")))
    if item.process:
        lines.append(("process", Text(_figures(item.process))))
        lines.append(("tree", Text(_figures(item.process.tree))))
    return lines


def _last_state(item: Item) -> str:
    """Say what it said before it said nothing."""
    if item.state is not None or item.last_state is None:
        return ""
    names = {int(each): each.name.lower() for each in State}
    since = duration(seconds_since(item.state_changed_at))
    return f", {names.get(item.last_state, item.last_state)} before, since {since}"


def _started(item: Item) -> str:
    if item.created_at is None:
        return UNKNOWN
    return f"{item.created_at:%Y-%m-%d %H:%M:%S} UTC, {duration(item.uptime_seconds)} ago"


def _memory(item: Item, answer: Backends) -> str:
    share = answer.share(item)
    said = {"backend": "the backend's word", "pss": "PSS of its tree", "rss": "RSS of its tree"}
    source = said.get(item.memory_source or "", "source unknown")
    return f"{amount(item.held)}, {percent(share)} % of the machine's, {source}"


def _figures(figures: Figures) -> str:
    counted = [
        (figures.processes, ("processes", "process")),
        (figures.threads, ("threads", "thread")),
        (figures.open_files, ("open files", "open file")),
    ]
    sized = [
        ("rss", figures.rss),
        ("pss", figures.pss),
        ("vms", figures.vms),
        ("vram", figures.vram),
    ]
    parts = [f"{number} {name[number == 1]}" for number, name in counted if number is not None]
    parts += [f"{name} {amount(size)}" for name, size in sized if size is not None]
    if figures.cpu_percent is not None:
        parts.append(f"cpu {percent(figures.cpu_percent)} % of one core")
    if figures.cpu_seconds is not None:
        parts.append(f"{figures.cpu_seconds:.1f} s of cpu")
    return ", ".join(parts) or UNKNOWN
