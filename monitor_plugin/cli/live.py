"""The live screen of `top`: its state, keys, layout and main loop. Needs rich."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from rich.cells import cell_len
from rich.console import ConsoleDimensions, RenderableType
from rich.text import Text

from ..api.schemas import ClusterBackendsAnswer, NodeBackendItem
from ..client import Client
from ..domain.errors import MonitorError
from .options import FINE, explain
from .queries import EventItem, fetch_backends, fetch_events
from .stop import stop_one
from .terminal import open_terminal
from .views.events import describe_event, is_alarming
from .views.tables import backends_table, console
from .views.text import (
    by_memory,
    cpu_percent,
    duration,
    escape_name,
    pressure_lines,
    printable,
    summarize,
)

_MAX_EVENTS = 50
_STALE_SECONDS = 15.0
_REDRAW_SECONDS = 1.0
# An overdue answer is reported after this time, before the request times out.
_SILENCE_SECONDS = 3.0
_TIMEOUT_SECONDS = 10.0
_EVENT_LINES = 5
_LEAST_LINES = 12  # with fewer lines, no events are shown
_KEYS = "q quit  s stop  m c n u sort by memory CPU name uptime  up down select"
_SORTS = {"m": "memory", "c": "cpu", "n": "name", "u": "uptime"}


def _identity(item: NodeBackendItem) -> tuple[str, int, str]:
    return item.model, item.pid, item.node


def _by_cpu(item: NodeBackendItem) -> tuple[float, str, int, str]:
    used = cpu_percent(item)
    return 1 if used is None else -used, *_identity(item)


_ORDERS: dict[str, Callable[[NodeBackendItem], Any]] = {
    "memory": by_memory,
    "cpu": _by_cpu,
    "name": _identity,
    "uptime": lambda item: (item.uptime_seconds, *_identity(item)),
}


class Screen(NamedTuple):
    """The contents of the screen.

    Attributes:
        answer: the last answer of `/backends`.
        rows: the backends, sorted.
        selected: the index of the selected row; -1 for none.
        events: the newest last.
        lost: why the monitor does not answer; None while the monitor answers.
        question: the question that the user must answer, or None.
        message: the result of the last stop, or None.
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


class StopTarget(NamedTuple):
    """The backend to stop; all backends of the model if `pid` is None."""

    model: str
    pid: int | None = None
    node: str | None = None

    def includes(self, item: NodeBackendItem) -> bool:
        """Return whether this stop would stop the backend."""
        return self.model == item.model and (
            self.pid is None or (self.pid, self.node or "") == (item.pid, item.node)
        )

    def __str__(self) -> str:
        where = f" on {self.node}" if self.node else ""
        return escape_name(self.model) + (f" (PID {self.pid}{where})" if self.pid else "")


class Top:
    """The state of `top`: the main thread applies keys to it, another thread runs `follow`.

    Args:
        client: sends the requests to the monitor.
        answer: the first answer of `/backends`.
        sort: `memory`, `cpu`, `name` or `uptime`.
        interval_seconds: the time between two requests.
        wake: causes the screen to be drawn; called on any thread.

    Attributes:
        quitting: whether the user wants to quit.
    """

    def __init__(
        self,
        client: Client,
        answer: ClusterBackendsAnswer,
        sort: str,
        interval_seconds: float,
        wake: Callable[[], None],
    ) -> None:
        self.quitting = False
        self._client = client
        self._answer = answer
        self._sort = sort
        self._interval_seconds = interval_seconds
        self._wake = wake
        self._failure: str | None = None
        self._answered_at = time.monotonic()
        self._events: tuple[EventItem, ...] = ()
        self._selected: tuple[str, int, str] | None = None
        self._to_confirm: StopTarget | None = None
        self._message: str | None = None

    def follow(self) -> None:
        """Request events and backends until the process ends; keep the last answer on errors."""
        pause = threading.Event()
        after: int | None = None
        while True:
            wait = self._interval_seconds if after is not None and not self._failure else 0
            try:
                batch, events = fetch_events(self._client, after, wait)
                after = batch.next
                self._answer = self._fetch()
                self._events = (*self._events, *events)[-_MAX_EVENTS:]
                self._failure, self._answered_at = None, time.monotonic()
                seconds = min(batch.poll_after_seconds, self._interval_seconds)
            except MonitorError as error:
                self._failure = explain(error)
                seconds = self._interval_seconds
            except Exception as error:  # the next request may succeed
                self._failure = f"unexpected error: {printable(repr(error))}"
                seconds = self._interval_seconds
            self._wake()
            pause.wait(seconds)

    def _fetch(self) -> ClusterBackendsAnswer:
        """Get the readings of the last sweep, or new readings if that sweep is too old."""
        answer, _ = fetch_backends(self._client, fresh=False, timeout_seconds=_TIMEOUT_SECONDS)
        ages = [item.age_seconds for item in answer.backends]
        if any(age is None or age > _STALE_SECONDS for age in ages):
            answer, _ = fetch_backends(self._client, timeout_seconds=_TIMEOUT_SECONDS)
        return answer

    def screen(self) -> Screen:
        """Return the screen to draw. The selection follows its backend when rows move."""
        answer = self._answer  # `follow` may replace it meanwhile
        rows = sorted(answer.backends, key=_ORDERS[self._sort])
        identities = [_identity(row) for row in rows]
        if self._selected not in identities:
            self._selected = identities[0] if identities else None
        selected = identities.index(self._selected) if self._selected else -1
        if self._to_confirm and not any(map(self._to_confirm.includes, rows)):
            self._to_confirm = None
            self._message = "It has ended by itself."
        question = None
        if self._to_confirm:
            # The keys come first, so that a long name does not hide them.
            question = f"y yes, f yes and by force, n no: stop {self._to_confirm}?"
        return Screen(
            url=self._client.url,
            answer=answer,
            rows=rows,
            selected=selected,
            sort=self._sort,
            events=self._events,
            lost=self._failure or self._silence(),
            question=question,
            message=self._message,
        )

    def _silence(self) -> str | None:
        """Return a message if the monitor's answer is overdue."""
        seconds = time.monotonic() - self._answered_at
        if seconds < self._interval_seconds + _SILENCE_SECONDS:
            return None
        return f"{self._client.url} has said nothing for {duration(seconds)}"

    def press(self, keys: list[str]) -> None:
        """Apply keys in their order."""
        for key in keys:
            if self._to_confirm:
                self._reply(self._to_confirm, key)
            elif key == "s":
                self._ask_to_stop()
                return  # keys from before the question was shown must not confirm it
            elif key == "q":
                self.quitting = True
            elif key in _SORTS:
                self._sort = _SORTS[key]
            else:
                self._move(key)

    def _move(self, key: str) -> None:
        screen = self.screen()
        last = len(screen.rows) - 1
        up, down = screen.selected - 1, screen.selected + 1
        to = {"up": up, "k": up, "down": down, "j": down, "home": 0, "end": last}.get(key)
        if to is not None and screen.rows:
            self._selected = _identity(screen.rows[max(0, min(last, to))])

    def _ask_to_stop(self) -> None:
        screen = self.screen()
        if screen.rows:
            row = screen.rows[screen.selected]
            self._to_confirm = StopTarget(row.model)
            if sum(each.model == row.model for each in screen.rows) > 1:
                self._to_confirm = StopTarget(row.model, row.pid, row.node or None)

    def _reply(self, target: StopTarget, key: str) -> None:
        if key in ("y", "Y", "f"):
            arguments = (target, key == "f")
            try:
                threading.Thread(target=self._stop, args=arguments, daemon=True).start()
            except RuntimeError as error:
                self._message = f"{target} was not stopped: {error}"
        if key in ("y", "Y", "f", "n", "N", "q", "escape"):
            self._to_confirm = None

    def _stop(self, target: StopTarget, force: bool) -> None:
        self._message = f"Stopping {target}."
        try:
            stop_one(self._client, target.model, force=force, pid=target.pid, node=target.node)
            self._message = f"Stopped {target}."
        except MonitorError as error:
            self._message = explain(error)
        self._wake()


def draw(screen: Screen, width: int, height: int) -> list[RenderableType]:
    """Return the lines of a screen for a terminal of `width` columns and `height` lines."""
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
    table = backends_table(
        screen.rows[first : first + shown_rows],
        screen.answer,
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
    text = "  ".join([text, *pressure_lines(screen.answer)])
    url = escape_name(screen.url)
    room = width - cell_len(text) - cell_len(url)
    return Text(text + (" " * room + url if room > 1 else ""), "bold")


def _event_line(event: EventItem) -> Text:
    time = f"{event.at.astimezone():%H:%M:%S}" if event.at else "        "
    return Text(f"{time}  {describe_event(event)}", "red" if is_alarming(event) else "")


def run_top(client: Client, sort: str, interval_seconds: float) -> int:
    """Show the backends until `q` or a signal; returns the exit code.

    Raises:
        RequestFailed: the monitor does not answer the first request.
    """
    answer, _ = fetch_backends(client, fresh=False, timeout_seconds=_TIMEOUT_SECONDS)
    output = console()
    with open_terminal(sys.stdin.fileno()) as terminal, output.screen() as drawing:
        top = Top(client, answer, sort, interval_seconds, terminal.wake)
        threading.Thread(target=top.follow, daemon=True).start()
        while not top.quitting and terminal.ended_by is None:
            # Rich prefers COLUMNS and LINES, which do not change with the window.
            width, height = os.get_terminal_size(sys.stdout.fileno())
            output.size = ConsoleDimensions(width or 80, height or 24)
            drawing.update(*draw(top.screen(), *output.size))
            top.press(terminal.wait(_REDRAW_SECONDS))
        return FINE if terminal.ended_by is None else 128 + terminal.ended_by
