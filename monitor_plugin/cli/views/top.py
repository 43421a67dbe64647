"""The layout of `top`: at any size, what matters most."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from rich.cells import cell_len
from rich.console import RenderableType
from rich.text import Text

from ...api.schemas import ClusterBackendsAnswer, NodeBackendItem
from ..queries import EventItem
from .summary import summarize
from .tables import backend_columns, table_of
from .text import duration, escape_name, printable

_EVENT_LINES = 5
_LEAST_LINES = 12  # with fewer lines, no events are shown
_KEYS = "q quit  s stop  m c n u sort by memory CPU name uptime  up down select"


class Screen(NamedTuple):
    """What the screen shows.

    Attributes:
        url: the monitor's.
        answer: its last answer.
        rows: the backends, sorted.
        selected: the index of the selected row; -1 if there is none.
        sort: `memory`, `cpu`, `name` or `uptime`.
        events: the newest last.
        lost: why the monitor does not answer; None while it does.
        question: a question that waits for an answer, or None.
        message: the result of the last action, or None.
    """

    url: str
    answer: ClusterBackendsAnswer
    rows: Sequence[NodeBackendItem]
    selected: int
    sort: str
    events: Sequence[EventItem]
    lost: str | None
    question: str | None
    message: str | None


def draw(screen: Screen, width: int, height: int) -> list[RenderableType]:
    """Lay a screen out in so many columns and lines."""
    above = [_header(screen, width)]
    if screen.lost:
        above.append(Text(f"Lost: {screen.lost}. Trying again.", "bold red"))
    below = [Text(screen.question, "bold reverse") if screen.question else Text(_KEYS, "dim")]
    if screen.message:
        below.insert(0, Text(screen.message, "bold"))
    lines = max(2, height - len(above) - len(below))
    events = min(len(screen.events), _EVENT_LINES) + 1 if lines > _LEAST_LINES else 0
    shown_rows = max(1, min(len(screen.rows), lines - 1 - events))
    first = max(0, min(screen.selected - shown_rows // 2, len(screen.rows) - shown_rows))
    table = table_of(
        screen.rows[first : first + shown_rows],
        backend_columns(screen.answer),
        width,
        fold=False,
        selected=screen.selected - first,
    )
    table.style = "dim" if screen.lost else ""
    left = lines - 1 - shown_rows
    past = [Text(""), *(_event_line(each) for each in reversed(screen.events))][:left]
    past += [Text("")] * (left - len(past))
    texts = [*past, *below]
    for text in (*above, *texts):
        text.no_wrap, text.overflow = True, "ellipsis"
    return [*above, table, *texts]


def _header(screen: Screen, width: int) -> Text:
    silent = ", ".join(escape_name(each.node) for each in screen.answer.nodes if each.error)
    missing = f"  no answer of {silent}" if silent else ""
    text = f"{summarize(screen.answer)}{missing}  by {screen.sort}"
    url = escape_name(screen.url)
    room = width - cell_len(text) - cell_len(url)
    return Text(text + (" " * room + url if room > 1 else ""), "bold")


def _event_line(event: EventItem) -> Text:
    time = f"{event.at.astimezone():%H:%M:%S}" if event.at else "        "
    if event.type == "state_changed":
        what = f"{event.previous_name or 'unknown'} -> {event.current_name or 'unknown'}"
    elif event.type == "ended":
        what = event.description or "ended"
    elif event.type == "shutdown_finished":
        what = f"shutdown: {event.outcome} after {duration(event.seconds)}"
    elif event.type == "shutdown_phase":
        what = f"shutdown: {event.phase}"
    else:
        what = event.type.replace("_", " ")
    style = "red" if event.type == "ended" and event.cause != "shutdown" else ""
    return Text(f"{time}  {escape_name(event.model)} ({event.pid})  {printable(what)}", style)
