"""`monitor-plugin ended`."""

from __future__ import annotations

import json
from collections.abc import Sequence

import click

from ..api.schemas import NodeEndItem
from ..domain.errors import MonitorError
from .options import EXIT_CODES, ModelName, make_client, monitor_options, preformatted
from .queries import fetch_backends, fetch_end
from .views.ends import end_lines

_EXAMPLES = """\
Examples:
  monitor-plugin ended
  monitor-plugin ended llama
  monitor-plugin ended --json 1796067012345 | jq -r .last_output"""


@click.command(epilog=preformatted(_EXAMPLES, EXIT_CODES))
@click.argument("end", type=ModelName(), required=False, metavar="[ID|MODEL]")
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print the answer of GET /ended/ID; without an ID or MODEL the ends of GET /backends.",
)
@monitor_options
def ended(url: str | None, token_file: str | None, end: str | None, as_json: bool) -> None:
    """Show why backends ended: the last ends, one by its ID, or the last one of a model.

    Of one end it shows the cause, the time to ready and the uptime, the memory, the last reading
    before the end, the processes that were left behind, and how often the model has ended within
    the hour before. The last output is shown to admins alone.
    """
    client = make_client(url, token_file)
    listed, answer = fetch_backends(client, fresh=False)
    if end is not None:
        item, answer = fetch_end(client, _find(listed.ended, end))
        click.echo(json.dumps(answer) if as_json else "\n".join(end_lines(item)))
    elif as_json:
        click.echo(json.dumps(answer["ended"]))
    elif not listed.ended:
        click.echo("No backend has ended lately.")
    else:
        from .views.tables import console, ends_table  # rich takes long to import

        output = console()
        output.print(ends_table(listed.ended, output.width, with_ids=True))


def _find(ended: Sequence[NodeEndItem], end: str) -> NodeEndItem:
    """Return the end with an ID, or else the last one of a model.

    Raises:
        MonitorError: there is none.
    """
    found = [each for each in ended if str(each.id) == end]
    found += [each for each in ended if each.model == end]
    if not found:
        raise MonitorError(f"no end has the ID {end}, and no backend of model {end!r} ended lately")
    return found[0]
