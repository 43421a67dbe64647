"""`monitor-plugin gpus`."""

from __future__ import annotations

import json

import click

from .options import EXIT_CODES, NodeName, make_client, monitor_options, preformatted
from .queries import fetch_gpus

_EXAMPLES = """\
Examples:
  monitor-plugin gpus
  monitor-plugin gpus --json | jq '.gpus[] | {uuid, free}'"""


@click.command(epilog=preformatted(_EXAMPLES, EXIT_CODES))
@click.option("--json", "as_json", is_flag=True, help="Print the answer of GET /gpus.")
@click.option("--node", type=NodeName(), metavar="NAME", help="In a cluster, show this node only.")
@monitor_options
def gpus(url: str | None, token_file: str | None, as_json: bool, node: str | None) -> None:
    """List the GPUs: their memory, the processes that hold it, and how much the GPUs work.

    The memory in use is held by backends (OURS), by other processes (OTHERS), or by no process that
    the monitor knows (UNEXPLAINED). "?" means that a figure is not known; a line below the tables
    says why.
    """
    client = make_client(url, token_file)
    if as_json:
        click.echo(json.dumps(fetch_gpus(client, node)[1]))
        return
    from .views.gpus import gpus_view  # rich takes long to import
    from .views.tables import console

    answer, _ = fetch_gpus(client, node)
    output = console()
    output.print(gpus_view(answer, output.width))
