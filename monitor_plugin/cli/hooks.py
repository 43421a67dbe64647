"""`monitor-plugin hooks`."""

from __future__ import annotations

import json
import os

import click

from ..api.results import HooksAnswer
from ..client import client_of
from ..domain.errors import MonitorError, RequestFailed
from .options import monitor_options
from .queries import decode
from .views.hooks import hooks_table


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the answer of GET /hooks.")
@monitor_options
def hooks(url: str | None, token_file: str | None, as_json: bool) -> None:
    """List the plugins of a running monitor, and how their hooks fared.

    Shows which plugins the monitor has loaded, from where, which hooks each implements, and how
    often each was called, raised, was not back in time, and how long it took.
    """
    client = client_of(os.environ, url, token_file)
    try:
        answer = client.get("/hooks")
        table = hooks_table(decode(client, answer, HooksAnswer))
    except RequestFailed as error:
        raise MonitorError(str(error)) from None  # for the exit code 1, whatever has failed
    click.echo(json.dumps(answer, indent=2) if as_json else table)
