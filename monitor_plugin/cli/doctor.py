"""`monitor-plugin doctor`."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
from collections.abc import Sequence
from typing import Any

import click

from ..api.results import CheckItem, ReadyAnswer
from ..client import Client
from ..domain.errors import RequestFailed
from .options import EXIT_CODES, FAILED, FINE, make_client, monitor_options, preformatted
from .queries import decode
from .views.text import printable

_EXAMPLES = """\
Examples:
  monitor-plugin doctor
  monitor-plugin doctor --json | jq '.checks[] | select(.ok == false)'"""
_MARKS = {True: "ok", False: "!", None: "?"}
_GAP = "  "
_LEAST_WIDTH = 40
_PIPE_WIDTH = 100  # the width of the table if stdout is no terminal


@click.command(epilog=preformatted(_EXAMPLES, EXIT_CODES))
@click.option("--json", "as_json", is_flag=True, help="Print the answer of GET /readyz?verbose.")
@monitor_options
def doctor(url: str | None, token_file: str | None, as_json: bool) -> int:
    """Show what a running monitor cannot see or do on its machine, and what to do.

    A "!" marks what is wrong or missing, a "?" what cannot be found out. The exit code is 1 if
    there is a "!".
    """
    client = make_client(url, token_file)
    answer = client.get("/readyz", {"verbose": "true"})
    checks = _checks_of(client, answer)
    if as_json:
        click.echo(json.dumps(answer))
    else:
        is_terminal = sys.stdout.isatty()
        width = shutil.get_terminal_size().columns if is_terminal else _PIPE_WIDTH
        click.echo(checks_table(checks, max(width, _LEAST_WIDTH)))
    return FAILED if any(each.ok is False for each in checks) else FINE


def _checks_of(client: Client, answer: Any) -> list[CheckItem]:
    checks = decode(client, answer, ReadyAnswer).checks
    if checks is None:
        message = f"the monitor at {client.url} is older than this command and checks nothing"
        raise RequestFailed(client.url, f"{message}: update it", 200, "not_found")
    return checks


def checks_table(checks: Sequence[CheckItem], width: int) -> str:
    """Return a table of at most `width` columns: a mark, the check, what was found, what to do."""
    names = [printable(each.name) for each in checks]
    longest = max([0, *map(len, names)])
    indent = " " * (2 + len(_GAP) + longest + len(_GAP))
    lines = []
    for name, each in zip(names, checks, strict=True):
        head = f"{_MARKS[each.ok]:<2}{_GAP}{name:<{longest}}{_GAP}"
        lines += _wrap(printable(each.message), width, head, indent)
        if each.advice and each.ok is not True:
            lines += _wrap(printable(each.advice), width, f"{indent}-> ", f"{indent}   ")
    return "\n".join(lines)


def _wrap(text: str, width: int, first: str, others: str) -> list[str]:
    return textwrap.wrap(
        text, width, initial_indent=first, subsequent_indent=others, break_on_hyphens=False
    )
