"""`stop`: asks first, stops several models at once, and says how far each is."""

from __future__ import annotations

import queue
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import click
from rich.cells import set_cell_size

from ..client import Client
from ..domain.errors import MonitorError, RequestFailed
from . import options
from .answers import Backends, Item, ask_backends
from .views.tables import backend_columns, by_memory, console, table_of
from .views.text import duration, printable, shown

_AT_ONCE = 4
_LOOK_SECONDS = 0.5
_LOOK_TIMEOUT_SECONDS = 5.0
# It answers when it is done, and its parts may be set to take a day each.
_SHUTDOWN_TIMEOUT_SECONDS = 4 * 86400.0
_RETRY_SECONDS = 1.0
_PHASES = {
    "asking": "asking the hooks",
    "draining": "draining, until it is not busy",
    "stopping": "stopping",
    "watching": "watching for a restart",
}


class StopResult(NamedTuple):
    """How the stop of a model went; no error: it is stopped."""

    model: str
    seconds: float
    error: MonitorError | None


def stop_models(
    client: Client, models: Iterable[str], *, force: bool, yes: bool, node: str | None = None
) -> int:
    """Stop models, or all that are loaded where none is named; returns the exit code.

    Of a cluster all nodes' are meant, unless one is named.
    """
    answer, _ = ask_backends(client, fresh=False, node=node)
    wanted = list(models) or list(dict.fromkeys(item.model for item in answer.backends))
    # Those of a node that does not answer are meant by "all" too.
    missed = [] if models else answer.missing()
    for each in missed:
        click.echo(f"monitor-plugin: {printable(each)}", err=True)
    if not wanted:
        click.echo(answer.summary())
        return options.FAILED if missed else options.FINE
    if not yes and not _agreed(answer, wanted, force):
        click.echo("Nothing was stopped.", err=True)
        return options.FAILED
    stops = _Stops(client, wanted, force, node)
    progress = _Progress(client)
    code = options.FAILED if missed else options.FINE
    try:
        while (result := stops.next(_LOOK_SECONDS)) or stops.under_way:
            if result is None:
                progress.show(stops.under_way)
                continue
            progress.clear()
            if result.error is None:
                click.echo(f"{shown(result.model)}: stopped in {result.seconds:.1f} s")
                continue
            click.echo(f"monitor-plugin: {options.explain(result.error)}", err=True)
            # That one was not stopped says more than that another was not there.
            if code in (options.FINE, options.NOT_LOADED):
                code = options.exit_code_of(result.error)
    except KeyboardInterrupt:
        progress.clear()
        left = ", ".join(shown(model) for model in stops.give_up())
        click.echo(f"Not waiting any more. The monitor goes on stopping {left}.", err=True)
        return options.INTERRUPTED
    return code


def stop_one(
    client: Client,
    model: str,
    *,
    force: bool,
    pid: int | None = None,
    node: str | None = None,
) -> None:
    """Stop a model, on all nodes or on one, or its backend with a PID.

    Waits while the monitor has too much to do.

    Raises:
        RequestFailed: it was not stopped.
    """
    body = {"model": model, "force": force, "pid": pid, "node": node}
    body = {name: value for name, value in body.items() if value is not None}
    while True:
        try:
            client.post("/backend/shutdown", body, timeout_seconds=_SHUTDOWN_TIMEOUT_SECONDS)
        except RequestFailed as error:
            if error.type != "too_many_shutdowns":  # of which nothing was stopped
                raise
            time.sleep(_RETRY_SECONDS)
        else:
            return


def _agreed(answer: Backends, wanted: Sequence[str], force: bool) -> bool:
    concerned = sorted((item for item in answer.backends if item.model in wanted), key=by_memory)
    output = console(stderr=True)
    if concerned:
        output.print(table_of(concerned, backend_columns(answer), output.width, fold=True))
    loaded = {item.model for item in concerned}
    for model in wanted:
        if model not in loaded:
            click.echo(f"{shown(model)} {answer.absent()}.", err=True)
    count = f"model '{shown(wanted[0])}'" if len(wanted) == 1 else f"these {len(wanted)} models"
    how = " by force, whatever they do" if force else ""
    return click.confirm(f"Stop {count}{how}?", err=True)


class _Stops:
    """Stops models, a few at a time, on threads that do not keep the process from ending."""

    def __init__(
        self, client: Client, models: Sequence[str], force: bool, node: str | None
    ) -> None:
        self._client = client
        self._node = node
        self._force = force
        self._waiting = list(reversed(models))
        self._results: queue.SimpleQueue[StopResult] = queue.SimpleQueue()
        self.under_way: list[str] = []
        for _ in models[:_AT_ONCE]:
            self._start_next()

    def next(self, timeout_seconds: float) -> StopResult | None:
        """Wait for the next result; None where there is none in that time."""
        try:
            result = self._results.get(timeout=timeout_seconds)
        except queue.Empty:
            return None
        self.under_way.remove(result.model)
        self._start_next()
        return result

    def give_up(self) -> list[str]:
        """Begin no more; gives those that are under way."""
        self._waiting.clear()
        return self.under_way

    def _start_next(self) -> None:
        if self._waiting:
            model = self._waiting.pop()
            self.under_way.append(model)
            threading.Thread(target=self._stop, args=(model,), daemon=True).start()

    def _stop(self, model: str) -> None:
        started, failure = time.monotonic(), None
        try:
            stop_one(self._client, model, force=self._force, node=self._node)
        except MonitorError as error:
            failure = error
        self._results.put(StopResult(model, time.monotonic() - started, failure))


class _Progress:
    """A line that says how far the shutdowns are: rewritten in a terminal, else at each change."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._console = console(stderr=True)
        self._said: dict[str, str] = {}

    def show(self, models: Sequence[str]) -> None:
        """Ask the monitor how far these are, and say so."""
        try:
            answer, _ = ask_backends(
                self._client, fresh=False, timeout_seconds=_LOOK_TIMEOUT_SECONDS
            )
        except MonitorError:  # the shutdown itself tells, if it is for good
            return
        under_way = {item.model: item for item in answer.backends if item.shutdown}
        lines = {model: _phase(under_way[model]) for model in models if model in under_way}
        if self._console.is_terminal:
            parts = [f"{shown(model)}: {how}, {since}" for model, (how, since) in lines.items()]
            line = set_cell_size("; ".join(parts), max(0, self._console.width - 1))
            self._write(f"\r{line}")
        else:
            for model, (how, _) in lines.items():
                if self._said.get(model) != how:
                    self._said[model] = how
                    self._write(f"{shown(model)}: {how}\n")

    def clear(self) -> None:
        """Take the line away."""
        if self._console.is_terminal:
            self._write("\r" + " " * max(0, self._console.width - 1) + "\r")

    def _write(self, text: str) -> None:
        sys.stderr.write(text)
        sys.stderr.flush()


def _phase(item: Item) -> tuple[str, str]:
    assert item.shutdown
    phase = item.shutdown.phase
    return _PHASES.get(phase, printable(phase)), duration(item.shutdown.seconds)
