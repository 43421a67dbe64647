"""`monitor-plugin restart`."""

from __future__ import annotations

import sys

import click

from .options import (
    EXIT_CODES,
    FAILED,
    FINE,
    ModelName,
    NodeName,
    make_client,
    monitor_options,
    preformatted,
)
from .progress import ProgressLine
from .queries import fetch_backends
from .start import describe_progress, operate
from .stop import confirm
from .views.text import escape_name

_EXAMPLES = """\
Examples:
  monitor-plugin restart llama
  monitor-plugin restart --yes --force llama
  monitor-plugin restart --pid 4711 llama"""


@click.command(epilog=preformatted(_EXAMPLES, EXIT_CODES))
@click.argument("model", type=ModelName())
@click.option("--force", is_flag=True, help="Do not wait for a busy backend to finish its work.")
@click.option("--yes", is_flag=True, help="Do not ask first.")
@click.option(
    "--pid",
    type=click.IntRange(min=1),
    metavar="PID",
    help="Stop only this backend of the model before the start.",
)
@click.option(
    "--node", type=NodeName(), metavar="NAME", help="In a cluster, restart the model on this node."
)
@monitor_options
def restart(
    url: str | None,
    token_file: str | None,
    model: str,
    force: bool,
    yes: bool,
    pid: int | None,
    node: str | None,
) -> int:
    """Stop a model as `stop` does, start it through its host, and wait until it is ready.

    Asks first. A model that is not loaded is only started. Ctrl-C ends the wait, not the restart.
    """
    if not yes and not sys.stdin.isatty():
        raise click.UsageError(
            "there is no terminal on which to ask; --yes restarts without asking"
        )
    client = make_client(url, token_file)
    progress = ProgressLine(client, describe_progress)
    if not yes:
        answer, _ = fetch_backends(client, fresh=False, node=node)
        if not confirm(answer, [model], "Restart", force, pid):
            click.echo("Nothing was stopped.", err=True)
            return FAILED
    body = {"model": model, "force": force, "pid": pid, "node": node}
    body = {name: value for name, value in body.items() if value is not None}
    seconds = operate(client, "/backend/restart", body, progress, "restart")
    click.echo(f"{escape_name(model)}: ready again after {seconds:.1f} s")
    return FINE
