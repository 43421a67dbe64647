"""`monitor-plugin top`."""

from __future__ import annotations

import sys

import click

from .options import EXIT_CODES, make_client, monitor_options, preformatted

_KEYS = """\
Keys:
  m c n u    sort by memory, CPU, name, uptime
  up down    move the selection (k and j, Home and End too)
  s          stop the selected backend; asks first: y yes, f yes and by force, n no
  q          quit"""


@click.command(epilog=preformatted(_KEYS, EXIT_CODES))
@click.option(
    "--sort",
    type=click.Choice(["memory", "cpu", "name", "uptime"]),
    default="memory",
    show_default=True,
    help="The order: most memory first, most CPU first, by name, or youngest first.",
)
@click.option(
    "--interval",
    type=click.FloatRange(0.2, 20),
    default=2.0,
    show_default=True,
    metavar="SECONDS",
    help="Time between two requests for the figures; events are shown immediately.",
)
@monitor_options
def top(url: str | None, token_file: str | None, sort: str, interval: float) -> int:
    """Watch the backends live; stop the selected one with two keys.

    The other replicas of its model go on.
    """
    from .live import run_top  # needs rich
    from .views.tables import console

    if not (sys.stdin.isatty() and sys.stdout.isatty()) or console().is_dumb_terminal:
        raise click.UsageError(
            "top needs a terminal on which it can move about; `monitor-plugin ps` does not"
        )
    return run_top(make_client(url, token_file), sort, interval)
