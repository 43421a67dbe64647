"""What `top` draws: at any size, what matters most."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from rich.cells import cell_len
from rich.console import RenderableType
from rich.text import Text

from ..answers import Backends, Event, Item
from .tables import backend_columns, table_of
from .text import duration, printable, shown

_EVENT_LINES = 5
_LEAST_LINES = 12  # where there are fewer, backends get all of them
_KEYS = "q quit  s stop  m c n u sort by memory CPU name uptime  up down select"


class Screen(NamedTuple):
    """What is to be seen.

    Attributes:
        url: the monitor's.
        answer: what it said last.
        rows: the backends, sorted.
        selected: the number of the one that is selected; -1 where there is none.
        sort: by what they are sorted.
        events: what happened, the newest last.
        lost: why the monitor does not answer; None while it does.
        question: what is asked; None where nothing is.
        note: what came of the last thing that was done.
    """

    url: str
    answer: Backends
    rows: Sequence[Item]
    selected: int
    sort: str
    events: Sequence[Event]
    lost: str | None
    question: str | None
    note: str | None


def drawn(screen: Screen, width: int, height: int) -> list[RenderableType]:
    """Lay it out in that many columns and lines."""
    above = [_header(screen, width)]
    if screen.lost:
        above.append(Text(f"Lost: {screen.lost}. Trying again.", "bold red"))
    below = [Text(screen.question, "bold reverse") if screen.question else Text(_KEYS, "dim")]
    if screen.note:
        below.insert(0, Text(screen.note, "bold"))
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
    silent = ", ".join(shown(each.node) for each in screen.answer.nodes if each.error)
    missing = f"  no answer of {silent}" if silent else ""
    text = f"{screen.answer.summary()}{missing}  by {screen.sort}"
    url = shown(screen.url)
    room = width - cell_len(text) - cell_len(url)
    return Text(text + (" " * room + url if room > 1 else ""), "bold")


def _event_line(event: Event) -> Text:
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
    return Text(f"{time}  {shown(event.model)} ({event.pid})  {printable(what)}", style)
