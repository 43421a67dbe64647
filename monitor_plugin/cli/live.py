"""The live screen of `top`: what is known of the monitor, what the keys do, and the loop."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from rich.console import ConsoleDimensions

from ..api.schemas import ClusterBackendsAnswer, NodeBackendItem
from ..client import Client
from ..domain.errors import MonitorError
from .options import FINE, explain
from .queries import EventItem, fetch_backends, fetch_events
from .stop import stop_one
from .terminal import open_terminal
from .views.summary import by_memory, cpu_percent
from .views.tables import console
from .views.text import duration, escape_name
from .views.top import Screen, draw

_EVENTS_KEPT = 50
_STALE_SECONDS = 15.0
_REDRAW_SECONDS = 1.0
# Silence is shown before the request times out.
_SILENCE_SECONDS = 3.0
_TIMEOUT_SECONDS = 10.0
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


class StopTarget(NamedTuple):
    """What a stop is for: one backend, or the whole model if `pid` is None."""

    model: str
    pid: int | None = None
    node: str | None = None

    def includes(self, item: NodeBackendItem) -> bool:
        """Return whether a backend belongs to it."""
        return self.model == item.model and (
            self.pid is None or (self.pid, self.node or "") == (item.pid, item.node)
        )

    def __str__(self) -> str:
        where = f" on {self.node}" if self.node else ""
        return escape_name(self.model) + (f" (PID {self.pid}{where})" if self.pid else "")


class Top:
    """The state of `top`. Keys change it, on the main thread; `follow` updates it on another.

    Args:
        client: asks the monitor.
        answer: its first answer.
        sort: `memory`, `cpu`, `name` or `uptime`.
        interval_seconds: from one request to the next.
        wake: ends the wait for keys, so that the screen is drawn again.

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
        """Ask the monitor until the process ends; its last answer stays while it is lost."""
        pause = threading.Event()
        after: int | None = None
        while True:
            wait = self._interval_seconds if after is not None and not self._failure else 0
            try:
                batch, events = fetch_events(self._client, after, wait)
                after = batch.next
                self._answer = self._fetch()
                self._events = (*self._events, *events)[-_EVENTS_KEPT:]
                self._failure, self._answered_at = None, time.monotonic()
                seconds = min(batch.poll_after_seconds, self._interval_seconds)
            except MonitorError as error:
                self._failure = explain(error)
                seconds = self._interval_seconds
            self._wake()
            pause.wait(seconds)

    def _fetch(self) -> ClusterBackendsAnswer:
        """Get the monitor's last readings, or new ones if it makes none by itself."""
        answer, _ = fetch_backends(self._client, fresh=False, timeout_seconds=_TIMEOUT_SECONDS)
        ages = [item.age_seconds for item in answer.backends]
        if any(age is None or age > _STALE_SECONDS for age in ages):
            answer, _ = fetch_backends(self._client, timeout_seconds=_TIMEOUT_SECONDS)
        return answer

    def screen(self) -> Screen:
        """Return what is to be drawn; the selection stays with its backend when rows move."""
        answer = self._answer
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
            # The keys come first: a long name must not push them off the screen.
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
        seconds = time.monotonic() - self._answered_at
        if seconds < self._interval_seconds + _SILENCE_SECONDS:
            return None
        return f"{self._client.url} has said nothing for {duration(seconds)}"

    def press(self, keys: list[str]) -> None:
        """Act on keys."""
        for key in keys:
            if self._to_confirm:
                self._reply(self._to_confirm, key)
            elif key == "s":
                self._ask_to_stop()
                return  # keys that were pressed before the question was shown do not answer it
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
            threading.Thread(target=self._stop, args=arguments, daemon=True).start()
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


def run_top(client: Client, sort: str, interval_seconds: float) -> int:
    """Show the backends until a key or a signal ends it; returns the exit code.

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
