"""`monitor-plugin start`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import click

from ..api.schemas import ClusterBackendsAnswer
from ..client import Client
from ..domain.errors import RequestFailed
from .options import (
    EXIT_CODES,
    FINE,
    ModelName,
    NodeName,
    make_client,
    monitor_options,
    preformatted,
)
from .progress import Progress, ProgressLine, wait_for
from .stop import describe_shutdowns
from .views.text import condition, condition_seconds, escape_name, printable

_EXAMPLES = """\
Examples:
  monitor-plugin start llama
  monitor-plugin start --node gpu-2 'org/big model'"""
# The monitor answers when the model is ready, or after its setting `start_timeout_seconds`, which
# may be a day. A start also waits for shutdowns of the model that have arrived before it.
START_TIMEOUT_SECONDS = 5 * 86400.0

_RETRY_SECONDS = 1.0


@click.command(epilog=preformatted(_EXAMPLES, EXIT_CODES))
@click.argument("model", type=ModelName())
@click.option(
    "--node", type=NodeName(), metavar="NAME", help="In a cluster, start the model on this node."
)
@monitor_options
def start(url: str | None, token_file: str | None, model: str, node: str | None) -> int:
    """Start a model through its host, and wait until it is ready.

    A model that is ready is left as it is. If the start fails, the message has the last output of
    its process where that is known. Ctrl-C ends the wait, not the start.
    """
    client = make_client(url, token_file)
    progress = ProgressLine(client, describe_progress)
    body = {"model": model, **({} if node is None else {"node": node})}
    seconds = operate(client, "/backend/load", body, progress, "start")
    click.echo(f"{escape_name(model)}: ready after {seconds:.1f} s")
    return FINE


def operate(
    client: Client, path: str, body: dict[str, Any], progress: ProgressLine, verb: str
) -> float:
    """Request a start or a restart, show its progress, and return the seconds that it took.

    Tries again after `too_many_starts`.

    Raises:
        RequestFailed: it has failed.
        click.Abort: a signal has ended the wait.
    """
    began = time.monotonic()

    def request() -> None:
        while True:
            try:
                client.post(path, body, timeout_seconds=START_TIMEOUT_SECONDS)
                return
            except RequestFailed as error:
                if error.type not in ("too_many_starts", "too_many_shutdowns"):
                    raise
            time.sleep(_RETRY_SECONDS)

    model = body["model"]
    try:
        wait_for(request, model, progress)
    except KeyboardInterrupt:
        text = f"Not waiting any more. The monitor goes on with the {verb} of {escape_name(model)}."
        raise click.Abort(text) from None
    return time.monotonic() - began


def describe_progress(answer: ClusterBackendsAnswer, models: Sequence[str]) -> dict[str, Progress]:
    """Return the shutdown of each of these models, or its state, or what its host says of it."""
    found = {
        each.model: Progress(
            printable(f"{each.state}: {each.detail}" if each.detail else each.state), None
        )
        for each in answer.models
        if each.model in models
    }
    for item in answer.backends:
        if item.model in models:
            text = "registered" if item.source is None else printable(condition(item))
            found[item.model] = Progress(text, condition_seconds(item))
    return found | describe_shutdowns(answer, models)
