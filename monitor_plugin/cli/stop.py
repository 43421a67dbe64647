"""`monitor-plugin stop`: asks first, stops up to four models at a time, shows their progress."""

from __future__ import annotations

import queue
import sys
import threading
import time
from collections.abc import Sequence
from typing import NamedTuple

import click

from ..api.results import FREED_HEADER, parse_freed
from ..api.schemas import ClusterBackendsAnswer, NodeBackendItem, NodeEndItem
from ..client import Client
from ..domain.errors import MonitorError, RequestFailed
from ..domain.models import Freed
from .options import (
    EXIT_CODES,
    FAILED,
    FINE,
    NOT_LOADED,
    PROGRAM,
    ModelName,
    NodeName,
    exit_code_of,
    explain,
    make_client,
    monitor_options,
    preformatted,
)
from .progress import PROGRESS_SECONDS, Progress, ProgressLine
from .queries import fetch_backends, fetch_unseen
from .views.text import (
    by_memory,
    describe_given_back,
    escape_name,
    left_behind,
    missing_parts,
    not_loaded,
    printable,
    summarize,
)

_EXAMPLES = """\
Examples:
  monitor-plugin stop llama
  monitor-plugin stop --yes --force llama 'org/big model'
  monitor-plugin stop --pid 4711 llama
  monitor-plugin stop --all"""
_AT_ONCE = 4
# The monitor answers when the model has stopped. Each step of a shutdown may be set to take a day.
_SHUTDOWN_TIMEOUT_SECONDS = 4 * 86400.0
_RETRY_SECONDS = 1.0
_PHASES = {
    "asking": "asking the hooks",
    "draining": "draining, until it is not busy",
    "stopping": "stopping",
    "watching": "watching for a restart",
}


class StopResult(NamedTuple):
    """The result of stopping a model.

    Attributes:
        model: the model.
        seconds: how long it took.
        error: None if the model has stopped.
        freed: the memory that was given back; None if that is not known.
    """

    model: str
    seconds: float
    error: MonitorError | None
    freed: Freed | None = None


@click.command(epilog=preformatted(_EXAMPLES, EXIT_CODES))
@click.argument("models", nargs=-1, type=ModelName(loaded=True), metavar="MODEL...")
@click.option(
    "--all",
    "every",
    is_flag=True,
    help="Stop every model that is loaded, or has left processes behind.",
)
@click.option("--force", is_flag=True, help="Do not wait for a busy backend to finish its work.")
@click.option("--yes", is_flag=True, help="Do not ask first.")
@click.option(
    "--pid",
    type=click.IntRange(min=1),
    metavar="PID",
    help="Stop only this backend of the model, or only what it left behind if it has ended.",
)
@click.option(
    "--node",
    type=NodeName(),
    metavar="NAME",
    help="In a cluster, stop the models on this node only.",
)
@monitor_options
def stop(
    url: str | None,
    token_file: str | None,
    models: tuple[str, ...],
    every: bool,
    force: bool,
    yes: bool,
    pid: int | None,
    node: str | None,
) -> int:
    """Stop models and all their processes, through the host where possible.

    Asks first. Waits until a busy backend has finished its work, then until all its processes have
    ended. Up to four models are stopped at the same time. Ctrl-C ends the wait, not a shutdown that
    has begun.
    """
    if bool(models) == every:
        raise click.UsageError("name the models to stop, or say --all")
    if pid is not None and len(set(models)) != 1:
        raise click.UsageError("--pid is one of the backends of a model: name that model alone")
    if not yes and not sys.stdin.isatty():
        raise click.UsageError("there is no terminal on which to ask; --yes stops without asking")
    client = make_client(url, token_file)
    progress = ProgressLine(client, describe_shutdowns)
    answer, _ = fetch_backends(client, fresh=False, node=node)
    loaded = [item.model for item in answer.backends]
    ended = [end.model for end in answer.ended if end.left_behind]
    wanted = list(dict.fromkeys(models or [*loaded, *ended]))
    # --all includes the models of a node that does not answer.
    missing = missing_parts(answer) if every else []
    for error in missing:
        click.echo(f"{PROGRAM}: {printable(error)}", err=True)
    code = FAILED if missing else FINE
    if not wanted:
        click.echo(summarize(answer))
        return code
    if not yes and not confirm(answer, wanted, "Stop", force, pid):
        click.echo("Nothing was stopped.", err=True)
        return FAILED
    code = _stop_all(client, wanted, force, pid, node, progress, code)
    if code == FINE and (unseen := fetch_unseen(client)):
        click.echo(f"Stops are verified in part: {printable(unseen)}.", err=True)
    return code


def _stop_all(
    client: Client,
    models: Sequence[str],
    force: bool,
    pid: int | None,
    node: str | None,
    progress: ProgressLine,
    code: int,
) -> int:
    """Stop models, print progress and results; returns `code` or the exit code of a failure.

    The threads are daemons, so Ctrl-C does not wait for them.

    Raises:
        click.Abort: a signal has ended the wait.
    """
    waiting = list(models)
    under_way: list[str] = []
    results: queue.SimpleQueue[StopResult] = queue.SimpleQueue()
    try:
        while waiting or under_way:
            while waiting and len(under_way) < _AT_ONCE:
                under_way.append(waiting.pop(0))
                arguments = (client, under_way[-1], force, pid, node, results)
                try:
                    threading.Thread(target=_stop, args=arguments, daemon=True).start()
                except RuntimeError as error:
                    failure = MonitorError(f"model {under_way[-1]!r} was not stopped: {error}")
                    results.put(StopResult(under_way[-1], 0.0, failure))
            try:
                result = results.get(timeout=PROGRESS_SECONDS)
            except queue.Empty:
                progress.show(under_way)
                continue
            under_way.remove(result.model)
            progress.clear()
            if result.error is None:
                name, given_back = escape_name(result.model), describe_given_back(result.freed)
                click.echo(f"{name}: stopped in {result.seconds:.1f} s{given_back}")
                continue
            click.echo(f"{PROGRAM}: {explain(result.error)}", err=True)
            # The code for a model that was not stopped takes precedence over NOT_LOADED.
            if code in (FINE, NOT_LOADED):
                code = exit_code_of(result.error)
    except KeyboardInterrupt:
        progress.clear()
        text = "Not waiting any more."
        if under_way:
            text += f" The monitor goes on stopping {', '.join(map(escape_name, under_way))}."
        if waiting:
            text += f" Not stopped: {', '.join(map(escape_name, waiting))}."
        raise click.Abort(text) from None
    return code


def _stop(
    client: Client,
    model: str,
    force: bool,
    pid: int | None,
    node: str | None,
    results: queue.SimpleQueue[StopResult],
) -> None:
    started, failure, freed = time.monotonic(), None, None
    try:
        freed = stop_one(client, model, force=force, pid=pid, node=node)
    except MonitorError as error:
        failure = error
    results.put(StopResult(model, time.monotonic() - started, failure, freed))


def stop_one(
    client: Client,
    model: str,
    *,
    force: bool,
    pid: int | None = None,
    node: str | None = None,
) -> Freed | None:
    """Stop a model, or its backend with a PID, on all nodes of a cluster or on one.

    Tries again after `too_many_shutdowns`. Returns the memory that was given back; None if the
    monitor does not report it.

    Raises:
        RequestFailed: the model was not stopped.
    """
    body = {"model": model, "force": force, "pid": pid, "node": node}
    body = {name: value for name, value in body.items() if value is not None}
    while True:
        try:
            answer = client.post_for_answer(
                "/backend/shutdown", body, timeout_seconds=_SHUTDOWN_TIMEOUT_SECONDS
            )
            return parse_freed(answer.headers.get(FREED_HEADER))
        except RequestFailed as error:
            if error.type != "too_many_shutdowns":
                raise
        time.sleep(_RETRY_SECONDS)


def confirm(
    answer: ClusterBackendsAnswer, wanted: Sequence[str], verb: str, force: bool, pid: int | None
) -> bool:
    """Show the backends of some models, and ask whether to stop or restart (`verb`) the models."""
    from .views.tables import backends_table, console

    def is_wanted(item: NodeBackendItem | NodeEndItem) -> bool:
        return item.model in wanted and pid in (None, item.pid)

    items = sorted(filter(is_wanted, answer.backends), key=by_memory)
    output = console(stderr=True)
    if items:
        output.print(backends_table(items, answer, output.width))
    ended = [end for end in answer.ended if is_wanted(end) and end.left_behind]
    for line in left_behind(ended):
        click.echo(f"{line}.", err=True)
    for model in wanted:
        if model not in {*(item.model for item in items), *(end.model for end in ended)}:
            click.echo(f"{escape_name(model)} {not_loaded(answer)}.", err=True)
    one = len(wanted) == 1
    models = f"model '{escape_name(wanted[0])}'" if one else f"these {len(wanted)} models"
    how = " by force, whatever they do" if force else ""
    one_backend = "" if pid is None else f", only PID {pid}"
    return click.confirm(f"{verb} {models}{one_backend}{how}?", err=True)


def describe_shutdowns(answer: ClusterBackendsAnswer, models: Sequence[str]) -> dict[str, Progress]:
    """Return the phase of the shutdown of each of these models that is being stopped."""
    return {
        item.model: Progress(
            _PHASES.get(item.shutdown.phase, printable(item.shutdown.phase)), item.shutdown.seconds
        )
        for item in answer.backends
        if item.shutdown and item.model in models
    }
