"""`monitor-plugin logs`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial

import click

from ..api.schemas import LogAnswer
from ..client import Client
from ..domain.logs import STREAMS
from .follow import RETRY_SECONDS, Follower, pause
from .options import EXIT_CODES, PROGRAM, ModelName, make_client, monitor_options, preformatted
from .queries import fetch_log
from .views.text import printable_line

_EXAMPLES = """\
Examples:
  monitor-plugin logs llama
  monitor-plugin logs -f -n 20 llama
  monitor-plugin logs --stream stdout --raw llama | less -R"""
_BYTES = 64 * 1024
# With more bytes for each request, fewer are missing while a backend writes a lot.
_MAX_BYTES = 1024 * 1024


@click.command(epilog=preformatted(_EXAMPLES, EXIT_CODES))
@click.argument("model", type=ModelName())
@click.option("-f", "--follow", is_flag=True, help="Go on with new output until Ctrl-C.")
@click.option(
    "-n",
    "--lines",
    type=click.IntRange(min=0),
    metavar="LINES",
    help="Print so many lines at first. [default: those of the last 64 KiB]",
)
@click.option(
    "--stream",
    type=click.Choice(STREAMS),
    default="stderr",
    show_default=True,
    help="Which output of the process to print.",
)
@click.option(
    "--pid",
    type=click.IntRange(min=1),
    metavar="PID",
    help="Print the output of this backend of the model, which may have ended.",
)
@click.option("--raw", is_flag=True, help="Do not escape control characters.")
@monitor_options
def logs(
    url: str | None,
    token_file: str | None,
    model: str,
    follow: bool,
    lines: int | None,
    stream: str,
    pid: int | None,
    raw: bool,
) -> None:
    """Print the last output of a model's backend; needs an admin's token.

    Control characters are escaped, so that no output acts on the terminal. With -f the command goes
    on while the backend or the monitor is restarted. A line on stderr says where output is missing.
    """
    client = make_client(url, token_file)
    follower = Follower()
    printer = _Printer(raw)
    fetch = partial(fetch_log, client, model, stream, pid)
    answer: LogAnswer | None = follower.ask(lambda: _fetch_end(client, model, stream, pid, lines))
    assert answer is not None  # the first failure of a follower is an error
    printer.print("".join(last_lines(answer, lines)))
    while follow:
        pause(answer.poll_after_seconds)
        found = follower.ask(partial(fetch, max_bytes=_MAX_BYTES, after=answer.next))
        if found is None:
            pause(RETRY_SECONDS)
            continue
        if found.pid is not None and found.pid != answer.pid:
            printer.end_line()
            click.echo(f"{PROGRAM}: the output of process {found.pid} follows", err=True)
        if found.gap:
            printer.end_line()
            click.echo(f"{PROGRAM}: some output is missing", err=True)
        printer.print(found.text)
        answer = found
    printer.end_line()


def _fetch_end(
    client: Client, model: str, stream: str, pid: int | None, lines: int | None
) -> LogAnswer:
    """Request the end of a stream, with at least so many lines if there are so many."""
    size = _BYTES
    while True:
        answer = fetch_log(client, model, stream, pid, max_bytes=size)
        enough = lines is None or answer.start == 0 or answer.text.count("\n") > lines
        if enough or size >= _MAX_BYTES:
            return answer
        size *= 4


def last_lines(answer: LogAnswer, count: int | None) -> Sequence[str]:
    """Return the last lines of an answer, with their ends; None: all. The first may be cut off."""
    lines = re.findall(r"[^\n]*\n|[^\n]+", answer.text)
    if answer.start > 0 and len(lines) > 1:
        del lines[0]  # its beginning is missing
    return lines if count is None else lines[len(lines) - min(count, len(lines)) :]


class _Printer:
    """Prints text that comes in parts, escaped unless it is `raw`."""

    def __init__(self, raw: bool) -> None:
        self._raw = raw
        self._held = ""  # a carriage return, of which it is not known yet whether it ends a line
        self._is_within_line = False

    def print(self, text: str) -> None:
        """Print a part, and flush."""
        if not self._raw:
            text = self._held + text
            self._held = "\r" if text.endswith("\r") else ""
            text = text.removesuffix("\r")
            text = "\n".join(map(printable_line, text.split("\n")))
        if text:
            self._is_within_line = not text.endswith("\n")
            click.echo(text, nl=False, color=True)  # without `color` click removes sequences

    def end_line(self) -> None:
        """End the line that is being printed, if there is one; not in raw output."""
        if self._is_within_line and not self._raw:
            click.echo()
            self._is_within_line = False
