"""`monitor-plugin stop`: asks first, stops several models at once, and shows their progress."""

from __future__ import annotations

import queue
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import click

from ..api.schemas import ClusterBackendsAnswer, ShutdownItem
from ..client import Client
from ..domain.errors import MonitorError, RequestFailed
from .options import (
    EXIT_CODES,
    FAILED,
    FINE,
    INTERRUPTED,
    NOT_LOADED,
    PROGRAM,
    ModelName,
    exit_code_of,
    explain,
    make_client,
    monitor_options,
    preformatted,
)
from .queries import fetch_backends
from .views.summary import by_memory, missing_parts, not_loaded, summarize
from .views.text import duration, escape_name, printable

_EXAMPLES = """\
Examples:
  monitor-plugin stop llama
  monitor-plugin stop --yes --force llama 'org/big model'
  monitor-plugin stop --all"""
_AT_ONCE = 4
_PROGRESS_SECONDS = 0.5
_PROGRESS_TIMEOUT_SECONDS = 5.0
# The answer comes when the model has stopped. Each part of a shutdown may be set to take a day.
_SHUTDOWN_TIMEOUT_SECONDS = 4 * 86400.0
_RETRY_SECONDS = 1.0
_PHASES = {
    "asking": "asking the hooks",
    "draining": "draining, until it is not busy",
    "stopping": "stopping",
    "watching": "watching for a restart",
}


class StopResult(NamedTuple):
    """The result of stopping a model; `error` is None if it has stopped."""

    model: str
    seconds: float
    error: MonitorError | None


@click.command(epilog=preformatted(_EXAMPLES, EXIT_CODES))
@click.argument("models", nargs=-1, type=ModelName(), metavar="MODEL...")
@click.option("--all", "every", is_flag=True, help="Stop every model that is loaded.")
@click.option("--force", is_flag=True, help="Do not wait for a busy one to finish its work.")
@click.option("--yes", is_flag=True, help="Do not ask first.")
@click.option("--node", metavar="NAME", help="Of a cluster, stop them on this node alone.")
@monitor_options
def stop(
    url: str | None,
    token_file: str | None,
    models: tuple[str, ...],
    every: bool,
    force: bool,
    yes: bool,
    node: str | None,
) -> int:
    """Stop models, for good: whole process trees, through the host's own books.

    Asks first. Waits until a busy one has done its work, then until all of it is gone. Several
    are stopped at the same time, up to four. Ctrl-C ends the waiting, not a shutdown that has
    begun.
    """
    if bool(models) == every:
        raise click.UsageError("name the models to stop, or say --all")
    if not yes and not sys.stdin.isatty():
        raise click.UsageError("there is no terminal on which to ask; --yes stops without asking")
    client = make_client(url, token_file)
    return stop_models(client, dict.fromkeys(models), force=force, yes=yes, node=node)


def stop_models(
    client: Client, models: Iterable[str], *, force: bool, yes: bool, node: str | None
) -> int:
    """Stop models; returns the exit code.

    Args:
        client: asks the monitor.
        models: their names; none for all models that are loaded.
        force: do not wait for busy backends.
        yes: do not ask first.
        node: the node of a cluster on which to stop them; None for all nodes.
    """
    progress = _Progress(client)
    answer, _ = fetch_backends(client, fresh=False, node=node)
    wanted = list(models) or list(dict.fromkeys(item.model for item in answer.backends))
    # "All" includes the models of a node that does not answer.
    missing = [] if models else missing_parts(answer)
    for error in missing:
        click.echo(f"{PROGRAM}: {printable(error)}", err=True)
    if not wanted:
        click.echo(summarize(answer))
        return FAILED if missing else FINE
    if not yes and not _confirm(answer, wanted, force):
        click.echo("Nothing was stopped.", err=True)
        return FAILED
    stops = _Stops(client, wanted, force, node)
    code = FAILED if missing else FINE
    try:
        while (result := stops.next(_PROGRESS_SECONDS)) or stops.under_way:
            if result is None:
                progress.show(stops.under_way)
                continue
            progress.clear()
            if result.error is None:
                click.echo(f"{escape_name(result.model)}: stopped in {result.seconds:.1f} s")
                continue
            click.echo(f"{PROGRAM}: {explain(result.error)}", err=True)
            # A model that was not stopped matters more than one that was not loaded.
            if code in (FINE, NOT_LOADED):
                code = exit_code_of(result.error)
    except KeyboardInterrupt:
        progress.clear()
        left = ", ".join(escape_name(model) for model in stops.give_up())
        click.echo(f"Not waiting any more. The monitor goes on stopping {left}.", err=True)
        return INTERRUPTED
    return code


def stop_one(
    client: Client,
    model: str,
    *,
    force: bool,
    pid: int | None = None,
    node: str | None = None,
) -> None:
    """Stop a model, or its backend with a PID, on all nodes of a cluster or on one.

    Asks again while the monitor refuses because of too many shutdowns.

    Raises:
        RequestFailed: the model was not stopped.
    """
    body = {"model": model, "force": force, "pid": pid, "node": node}
    body = {name: value for name, value in body.items() if value is not None}
    while True:
        try:
            client.post("/backend/shutdown", body, timeout_seconds=_SHUTDOWN_TIMEOUT_SECONDS)
        except RequestFailed as error:
            if error.type != "too_many_shutdowns":
                raise
            time.sleep(_RETRY_SECONDS)
        else:
            return


def _confirm(answer: ClusterBackendsAnswer, wanted: Sequence[str], force: bool) -> bool:
    from .views.tables import backend_columns, console, table_of

    items = sorted((item for item in answer.backends if item.model in wanted), key=by_memory)
    output = console(stderr=True)
    if items:
        output.print(table_of(items, backend_columns(answer), output.width, fold=True))
    loaded = {item.model for item in items}
    for model in wanted:
        if model not in loaded:
            click.echo(f"{escape_name(model)} {not_loaded(answer)}.", err=True)
    one = len(wanted) == 1
    models = f"model '{escape_name(wanted[0])}'" if one else f"these {len(wanted)} models"
    how = " by force, whatever they do" if force else ""
    return click.confirm(f"Stop {models}{how}?", err=True)


class _Stops:
    """Stops models, a few at a time, on daemon threads: the process can end before they do."""

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
        """Wait for the next result; returns None if there is none in that time."""
        try:
            result = self._results.get(timeout=timeout_seconds)
        except queue.Empty:
            return None
        self.under_way.remove(result.model)
        self._start_next()
        return result

    def give_up(self) -> list[str]:
        """Start no more; returns the models whose shutdown is under way."""
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
    """Shows the phases of shutdowns: a line that is rewritten in a terminal, else each change."""

    def __init__(self, client: Client) -> None:
        from .views.tables import console

        self._client = client
        self._console = console(stderr=True)
        self._printed: dict[str, str] = {}

    def show(self, models: Sequence[str]) -> None:
        """Ask the monitor for the phases of these models, and print them."""
        try:
            answer, _ = fetch_backends(
                self._client, fresh=False, timeout_seconds=_PROGRESS_TIMEOUT_SECONDS
            )
        except MonitorError:  # if this lasts, the shutdown itself fails too
            return
        shutdowns = {item.model: item.shutdown for item in answer.backends if item.shutdown}
        shutdowns = {model: shutdowns[model] for model in models if model in shutdowns}
        if self._console.is_terminal:
            from rich.cells import set_cell_size

            parts = [
                f"{escape_name(model)}: {_describe(shutdown)}, {duration(shutdown.seconds)}"
                for model, shutdown in shutdowns.items()
            ]
            line = set_cell_size("; ".join(parts), max(0, self._console.width - 1))
            click.echo(f"\r{line}", err=True, nl=False)
            return
        for model, shutdown in shutdowns.items():
            phase = _describe(shutdown)
            if self._printed.get(model) != phase:
                self._printed[model] = phase
                click.echo(f"{escape_name(model)}: {phase}", err=True)

    def clear(self) -> None:
        """Remove the line."""
        if self._console.is_terminal:
            blank = " " * max(0, self._console.width - 1)
            click.echo(f"\r{blank}\r", err=True, nl=False)


def _describe(shutdown: ShutdownItem) -> str:
    return _PHASES.get(shutdown.phase, printable(shutdown.phase))
