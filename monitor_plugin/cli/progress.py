"""Shows what happens to models while a command waits for the monitor."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from queue import Empty, SimpleQueue
from typing import NamedTuple, TypeVar

import click

from ..api.schemas import ClusterBackendsAnswer
from ..client import Client
from ..domain.errors import MonitorError
from .queries import fetch_backends
from .views.text import duration, escape_name

#: The time between two requests of the progress, in seconds.
PROGRESS_SECONDS = 0.5

_TIMEOUT_SECONDS = 5.0

T = TypeVar("T")


class Progress(NamedTuple):
    """The step of an operation on a model, in words, and how many seconds it has taken so far."""

    text: str
    seconds: float | None


class ProgressLine:
    """Shows the progress of models: in a terminal one line, rewritten; else a line per change.

    Args:
        client: sends the requests to the monitor.
        describe: returns the progress by model, without models that have none.
    """

    def __init__(
        self,
        client: Client,
        describe: Callable[[ClusterBackendsAnswer, Sequence[str]], Mapping[str, Progress]],
    ) -> None:
        from .views.tables import console  # rich takes long to import

        self._client = client
        self._describe = describe
        self._console = console(stderr=True)
        self._printed: dict[str, str] = {}

    def show(self, models: Sequence[str]) -> None:
        """Request the progress of these models, and print it."""
        try:
            answer, _ = fetch_backends(self._client, fresh=False, timeout_seconds=_TIMEOUT_SECONDS)
        except MonitorError:  # if this persists, what the command waits for fails too
            return
        found = self._describe(answer, models)
        if self._console.is_terminal:
            from rich.cells import set_cell_size

            parts = [
                f"{escape_name(model)}: {each.text}"
                + ("" if each.seconds is None else f", {duration(each.seconds)}")
                for model, each in found.items()
            ]
            line = set_cell_size("; ".join(parts), max(0, self._console.width - 1))
            click.echo(f"\r{line}", err=True, nl=False)
            return
        for model, each in found.items():
            if self._printed.get(model) != each.text:
                self._printed[model] = each.text
                click.echo(f"{escape_name(model)}: {each.text}", err=True)

    def clear(self) -> None:
        """Remove the line."""
        if self._console.is_terminal:
            blank = " " * max(0, self._console.width - 1)
            click.echo(f"\r{blank}\r", err=True, nl=False)


def wait_for(operate: Callable[[], T], model: str, progress: ProgressLine) -> T:
    """Run an operation on another thread, show the model's progress, and return the result.

    The thread is a daemon, so that a signal ends the command immediately.
    """
    results: SimpleQueue[T | Exception] = SimpleQueue()

    def run() -> None:
        try:
            results.put(operate())
        except Exception as error:
            results.put(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        while True:
            try:
                result = results.get(timeout=PROGRESS_SECONDS)
            except Empty:
                progress.show([model])
                continue
            if isinstance(result, Exception):
                raise result
            return result
    finally:
        progress.clear()
