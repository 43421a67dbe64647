"""`top`: what is known of the monitor, what the keys do, and the loop that draws it."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from rich.console import ConsoleDimensions

from ..client import Client
from ..domain.errors import MonitorError
from . import options
from .answers import Backends, Event, Item, ask_backends, ask_events
from .stop import stop_one
from .terminal import open_terminal
from .views.tables import by_memory, console
from .views.text import duration, shown
from .views.top import Screen, drawn

_EVENTS_KEPT = 50
_STALE_SECONDS = 15.0
_REDRAW_SECONDS = 1.0
# A monitor that hangs is told before its answer is given up.
_SILENCE_SECONDS = 3.0
_TIMEOUT_SECONDS = 10.0
_SORTS = {"m": "memory", "c": "cpu", "n": "name", "u": "uptime"}
_ORDERS: dict[str, Callable[[Item], Any]] = {
    "memory": by_memory,
    "cpu": lambda item: (-(-1 if item.cpu_percent is None else item.cpu_percent), *_name(item)),
    "name": lambda item: _name(item),
    "uptime": lambda item: (item.uptime_seconds or 0, *_name(item)),
}


def _name(item: Item) -> tuple[str, int, str]:
    return item.model, item.pid, item.node or ""


class Question(NamedTuple):
    """What is asked before something is stopped; no PID: the model as a whole."""

    model: str
    pid: int | None
    node: str | None = None


class Top:
    """What is shown, and what keys change. Its own thread only adds what the monitor says.

    Args:
        client: asks the monitor.
        answer: what it said first.
        sort: `memory`, `cpu`, `name` or `uptime`.
        interval_seconds: how often to ask.
        wake: ends the wait for keys, so that what is new is drawn.
    """

    def __init__(
        self,
        client: Client,
        answer: Backends,
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
        self._lost: str | None = None
        self._heard_at = time.monotonic()
        self._events: tuple[Event, ...] = ()
        self._selected: tuple[str, int, str] | None = None
        self._question: Question | None = None
        self._note: str | None = None

    def follow(self) -> None:
        """Ask the monitor until the process ends; what it says last stands while it is lost."""
        pause = threading.Event()
        after: int | None = None
        while True:
            wait = self._interval_seconds if after is not None and not self._lost else 0
            try:
                news = ask_events(self._client, after, wait)
                after = news.next
                self._answer = self._ask()
                self._events = (*self._events, *news.events)[-_EVENTS_KEPT:]
                self._lost, self._heard_at = None, time.monotonic()
                seconds = min(news.poll_after_seconds, self._interval_seconds)
            except MonitorError as error:
                self._lost = options.explain(error)
                seconds = self._interval_seconds
            self._wake()
            pause.wait(seconds)

    def _ask(self) -> Backends:
        """Take the monitor's last readings, or have it read anew where it does not by itself."""
        answer, _ = ask_backends(self._client, fresh=False, timeout_seconds=_TIMEOUT_SECONDS)
        ages = [item.age_seconds for item in answer.backends]
        if any(age is None or age > _STALE_SECONDS for age in ages):
            answer, _ = ask_backends(self._client, timeout_seconds=_TIMEOUT_SECONDS)
        return answer

    def screen(self) -> Screen:
        """Say what is to be drawn; the selection stays with its backend however rows move."""
        answer = self._answer
        rows = sorted(answer.backends, key=_ORDERS[self._sort])
        names = [_name(row) for row in rows]
        if self._selected not in names:
            self._selected = names[0] if names else None
        selected = names.index(self._selected) if self._selected else -1
        if self._question and not any(self._concerned(row) for row in rows):
            self._question = None
            self._note = "It has ended by itself."
        return Screen(
            url=self._client.url,
            answer=answer,
            rows=rows,
            selected=selected,
            sort=self._sort,
            events=self._events,
            lost=self._lost or self._silence(),
            question=self._question and self._asked(self._question),
            note=self._note,
        )

    def _silence(self) -> str | None:
        seconds = time.monotonic() - self._heard_at
        if seconds < self._interval_seconds + _SILENCE_SECONDS:
            return None
        return f"{self._client.url} has said nothing for {duration(seconds)}"

    def press(self, keys: list[str]) -> None:
        """Do what keys say."""
        for key in keys:
            if self._question:
                self._reply(self._question, key)
            elif key == "s":
                self._ask_to_stop()
                return  # what was typed before the question could be seen does not answer it
            elif key == "q":
                self.quitting = True
            elif key in _SORTS:
                self._sort = _SORTS[key]
            else:
                self._move(key)

    def _move(self, key: str) -> None:
        screen = self.screen()
        last = len(screen.rows) - 1
        to = {
            "up": screen.selected - 1,
            "k": screen.selected - 1,
            "down": screen.selected + 1,
            "j": screen.selected + 1,
            "home": 0,
            "end": last,
        }.get(key)
        if to is not None and screen.rows:
            self._selected = _name(screen.rows[max(0, min(last, to))])

    def _ask_to_stop(self) -> None:
        screen = self.screen()
        if screen.rows:
            row = screen.rows[screen.selected]
            replicas = sum(each.model == row.model for each in screen.rows)
            one = (row.pid, row.node) if replicas > 1 else (None, None)
            self._question = Question(row.model, *one)

    def _reply(self, question: Question, key: str) -> None:
        if key in ("y", "Y", "f"):
            arguments = (question, key == "f")
            threading.Thread(target=self._stop, args=arguments, daemon=True).start()
        if key in ("y", "Y", "f", "n", "N", "q", "escape"):
            self._question = None

    def _stop(self, question: Question, force: bool) -> None:
        what = self._named(question)
        self._note = f"Stopping {what}."
        try:
            stop_one(
                self._client, question.model, force=force, pid=question.pid, node=question.node
            )
            self._note = f"Stopped {what}."
        except MonitorError as error:
            self._note = options.explain(error)
        self._wake()

    def _concerned(self, row: Item) -> bool:
        question = self._question
        if question is None:
            return False
        one = (question.pid, question.node)
        return question.model == row.model and one in ((None, None), (row.pid, row.node))

    def _named(self, question: Question) -> str:
        where = f" on {question.node}" if question.node else ""
        return shown(question.model) + (f" (PID {question.pid}{where})" if question.pid else "")

    def _asked(self, question: Question) -> str:
        # What may be pressed first: a long name must not push it out of sight.
        return f"y yes, f yes and by force, n no: stop {self._named(question)}?"


def run_top(client: Client, sort: str, interval_seconds: float) -> int:
    """Show the backends until a key or a signal ends it; returns the exit code.

    Raises:
        RequestFailed: the monitor does not answer at the beginning.
    """
    answer, _ = ask_backends(client, fresh=False, timeout_seconds=_TIMEOUT_SECONDS)
    output = console()
    with open_terminal(sys.stdin.fileno()) as terminal, output.screen() as drawing:
        top = Top(client, answer, sort, interval_seconds, terminal.wake)
        threading.Thread(target=top.follow, daemon=True).start()
        while not top.quitting and terminal.ended_by is None:
            # Asked for each time: COLUMNS and LINES, which rich prefers, do not follow the window.
            width, height = os.get_terminal_size(sys.stdout.fileno())
            output.size = ConsoleDimensions(width or 80, height or 24)
            drawing.update(*drawn(top.screen(), *output.size))
            top.press(terminal.wait(_REDRAW_SECONDS))
        return options.FINE if terminal.ended_by is None else 128 + terminal.ended_by
