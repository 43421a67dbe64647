"""`monitor-plugin ps`."""

from __future__ import annotations

import json

import click

from .options import EXIT_CODES, ModelName, NodeName, make_client, monitor_options, preformatted
from .queries import fetch_backends

_EXAMPLES = """\
Examples:
  monitor-plugin ps
  monitor-plugin ps -o wide
  monitor-plugin ps --url unix:/run/monitor.sock --model llama
  monitor-plugin ps --json | jq '.backends[].memory.total'"""


@click.command(epilog=preformatted(_EXAMPLES, EXIT_CODES))
@click.option("--model", type=ModelName(), metavar="NAME", help="Show this model only.")
@click.option("--json", "as_json", is_flag=True, help="Print the answer of GET /backends.")
@click.option(
    "--output",
    "-o",
    type=click.Choice(["wide"]),
    help="wide: also show requests, tokens per second, use of the KV cache, and the protocol.",
)
@click.option("--node", type=NodeName(), metavar="NAME", help="In a cluster, show this node only.")
@monitor_options
def ps(
    url: str | None,
    token_file: str | None,
    model: str | None,
    as_json: bool,
    output: str | None,
    node: str | None,
) -> None:
    """List the backends with their state and memory, the largest first.

    A "!" marks a backend that an operator should check: one with an error, or one that gives no
    answer (which can mean busy). Below are the processes that ended backends have left behind, the
    models that the host can run and that have no backend, the processes that the monitor refused to
    register, and the backends that ended recently, and why.
    """
    client = make_client(url, token_file)
    if as_json:
        click.echo(json.dumps(fetch_backends(client, model, node=node)[1]))
        return
    from .views.tables import backends_view, console  # rich takes long to import

    answer, _ = fetch_backends(client, model, node=node)
    screen = console()
    screen.print(backends_view(answer, model, screen.width, wide=output == "wide"))
