"""`monitor-plugin status`."""

from __future__ import annotations

import json

import click

from ..api.schemas import ClusterBackendsAnswer, PeaksItem
from .options import (
    EXIT_CODES,
    FAILED,
    FINE,
    NOT_LOADED,
    PROGRAM,
    ModelName,
    make_client,
    monitor_options,
    preformatted,
)
from .queries import fetch_backends, fetch_peaks
from .views.text import (
    ago,
    escape_name,
    host_says,
    left_behind,
    left_behind_hint,
    missing_parts,
    not_loaded,
    output_lines,
    peaks_lines,
    place,
    printable,
)

_EXAMPLES = """\
Examples:
  monitor-plugin status llama
  monitor-plugin status llama >/dev/null || echo "llama is not loaded"\
"""


@click.command(epilog=preformatted(_EXAMPLES, EXIT_CODES))
@click.argument("model", type=ModelName())
@click.option(
    "--json", "as_json", is_flag=True, help="Print the answer of GET /backends?model=MODEL."
)
@monitor_options
def status(url: str | None, token_file: str | None, model: str, as_json: bool) -> int:
    """Show one model: each replica, its memory, the last replicas that ended, and its peaks.

    Of a model without a backend, show what its host says, and how its last backend ended. The last
    output of a backend is shown to admins alone.
    """
    client = make_client(url, token_file)
    answer, decoded_json = fetch_backends(client, model)
    if as_json:
        click.echo(json.dumps(decoded_json))
    else:
        _print(answer, model, fetch_peaks(client, model))
    missing = missing_parts(answer)
    for error in missing:
        click.echo(f"{PROGRAM}: {printable(error)}", err=True)
    if answer.backends:
        return FINE
    message = f"{PROGRAM}: model '{escape_name(model)}' {not_loaded(answer)}"
    for known in answer.models[:1]:
        message += f": {host_says(known)}"
    for each in answer.refused[:1]:
        message += f": process {place(each)} was refused: {printable(each.reason)}"
    for end in [] if answer.refused else answer.ended[:1]:
        message += f": its process {end.pid} {printable(end.description)} {ago(end)}"
    click.echo(message, err=True)
    for line in left_behind(answer.ended):
        click.echo(line, err=True)
    if hint := left_behind_hint(answer.ended):
        click.echo(hint, err=True)
    return FAILED if missing else NOT_LOADED


def _print(answer: ClusterBackendsAnswer, model: str, peaks: PeaksItem | None) -> None:
    if answer.backends or answer.models:
        from .views.tables import console, details_view, unloaded_view  # rich takes long to import

        output = console()
        view = details_view if answer.backends else unloaded_view
        output.print(view(answer, model, output.width))
    else:
        for end in answer.ended[:1]:
            for line in output_lines(end):
                click.echo(line)
    for line in peaks_lines(peaks) if peaks else ():
        click.echo(line)
