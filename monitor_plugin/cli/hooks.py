"""`monitor-plugin hooks`."""

from __future__ import annotations

import json

import click

from ..api.results import HooksAnswer
from ..domain.models import EventFigures
from .options import EXIT_CODES, make_client, monitor_options, preformatted
from .queries import decode
from .views.text import printable

_HEAD = ("PLUGIN", "HOOK", "CALLS", "ERRORS", "OVERRAN", "TOTAL ms", "LONGEST ms", "SOURCE")
_LEFT_JUSTIFIED = (0, 1, 7)


@click.command(epilog=preformatted(EXIT_CODES))
@click.option("--json", "as_json", is_flag=True, help="Print the answer of GET /hooks.")
@monitor_options
def hooks(url: str | None, token_file: str | None, as_json: bool) -> None:
    """List the plugins of a running monitor, and statistics of their hooks.

    Shows the source of each plugin and the hooks that it implements; for each hook the number of
    calls, of errors and of calls that exceeded the time limit, and the time that the calls took.
    The lines below the table name the plugins that are or were behind with their events.
    """
    client = make_client(url, token_file)
    answer = client.get("/hooks")
    table = hooks_table(decode(client, answer, HooksAnswer))
    click.echo(json.dumps(answer, indent=2) if as_json else table)


def hooks_table(answer: HooksAnswer) -> str:
    """Return a table with a line per hook of each plugin.

    Lines below it name the plugins that are or were behind with their events, and disabled plugins.
    """
    rows: list[tuple[str, ...]] = [_HEAD]
    for plugin in answer.plugins:
        name, source = printable(plugin.name), printable(plugin.source)
        for hook in plugin.hooks:
            counts = (str(count) for count in (hook.calls, hook.errors, hook.overruns))
            times = (f"{each * 1000:.1f}" for each in (hook.seconds_total, hook.seconds_max))
            rows.append((name, printable(hook.name), *counts, *times, source))
        if not plugin.hooks:
            rows.append((name, "-", "-", "-", "-", "-", "-", source))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if place in _LEFT_JUSTIFIED else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    if not answer.plugins:
        lines = ["no plugin is loaded"]
    for plugin in answer.plugins:
        if plugin.events and plugin.events != EventFigures():
            lines.append(_lag_line(plugin.name, plugin.events))
    if answer.disabled:
        lines.append(f"left out: {', '.join(map(printable, answer.disabled))}")
    return "\n".join(lines)


def _lag_line(name: str, events: EventFigures) -> str:
    waiting = f"{events.waiting} events wait"
    if events.waiting:
        waiting += f", the oldest for {events.oldest_seconds:.1f} s"
    return f"{printable(name)}: {waiting}; {events.coalesced} coalesced, {events.dropped} dropped"
