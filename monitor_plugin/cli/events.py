"""`monitor-plugin events`."""

from __future__ import annotations

import json
from typing import Any

import click

from ..api.schemas import EventsAnswer
from ..client import Client
from .follow import RETRY_SECONDS, Follower, pause
from .options import EXIT_CODES, PROGRAM, ModelName, make_client, monitor_options, preformatted
from .queries import EventItem, decode, fetch_events
from .views.events import describe_event

_EXAMPLES = """\
Examples:
  monitor-plugin events
  monitor-plugin events -f --model llama
  monitor-plugin events --json | jq 'select(.type == "ended")'"""
# Of each request. A closed pipe is noticed between two requests.
_WAIT_SECONDS = 5.0


@click.command(epilog=preformatted(_EXAMPLES, EXIT_CODES))
@click.option("-f", "--follow", is_flag=True, help="Go on with new events until Ctrl-C.")
@click.option("--model", type=ModelName(), metavar="NAME", help="Show events of this model only.")
@click.option("--json", "as_json", is_flag=True, help="Print each event as JSON, a line each.")
@monitor_options
def events(
    url: str | None, token_file: str | None, follow: bool, model: str | None, as_json: bool
) -> None:
    """Print what happened to backends, the oldest event first.

    A monitor keeps the last 1000 events since its start. With -f the command goes on while the
    monitor is restarted.
    """
    client = make_client(url, token_file)
    follower = Follower()
    after: int | None = None
    while True:
        wait = _WAIT_SECONDS if follow and after is not None else 0.0
        answer = follower.ask(lambda: fetch_events(client, after, wait)[0])  # noqa: B023
        if answer is None:
            pause(RETRY_SECONDS)
            continue
        if answer.gap:
            click.echo(f"{PROGRAM}: some events are missing", err=True)
        _print(client, answer, model, as_json)
        if not follow:
            return
        after = answer.next
        pause(answer.poll_after_seconds)


def _print(client: Client, answer: EventsAnswer, model: str | None, as_json: bool) -> None:
    raw: list[Any] = answer.events
    for event, fields in zip(decode(client, raw, list[EventItem]), raw, strict=True):
        if model not in (None, event.model):
            continue
        at = f"{event.at.astimezone():%Y-%m-%d %H:%M:%S}" if event.at else ""
        click.echo(json.dumps(fields) if as_json else f"{at}  {describe_event(event)}")
