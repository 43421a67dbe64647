"""`monitor-plugin logs`."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial

import click
from msgspec.structs import replace

from ..api.schemas import LogAnswer
from ..domain.errors import RequestFailed
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
    fetch = partial(fetch_log, make_client(url, token_file), model, stream)
    printer = _Printer(raw)
    log = _Log(fetch, pid, printer)
    follower = Follower()
    follower.ask(lambda: log.print_end(lines))
    if not follow:
        printer.end_line()
    while follow:
        pause(log.poll_after_seconds)
        if follower.ask(log.print_rest) is None:
            pause(RETRY_SECONDS)


class _Log:
    """Prints the log of a model's newest backend, or of the one with a PID, in parts.

    Args:
        fetch: requests a part of the log: see `fetch_log`.
        pid: the PID; None: the newest backend, whichever that is.
        printer: prints the parts.

    Attributes:
        poll_after_seconds: when to print the next part, in seconds.
    """

    def __init__(self, fetch: Callable[..., LogAnswer], pid: int | None, printer: _Printer) -> None:
        self._fetch = fetch
        self._wanted_pid = pid
        self._printer = printer
        self.poll_after_seconds = 0.0
        self._pid: int | None = None  # whose output was printed last
        self._next = 0
        self._last: LogAnswer | None = None  # the last part that has text

    def print_end(self, lines: int | None) -> bool:
        """Print the end of the log, with so many lines if there are so many; returns True."""
        size = _BYTES
        while True:
            answer = self._fetch(self._wanted_pid, max_bytes=size)
            enough = lines is None or answer.start == 0 or answer.text.count("\n") > lines
            if enough or size >= _MAX_BYTES:
                break
            size *= 4
        self._print(answer, "".join(last_lines(answer, lines)))
        return True

    def print_rest(self) -> bool:
        """Print the output since the last call, also that of a newer backend; returns True."""
        answer = self._fetch(self._wanted_pid, max_bytes=_MAX_BYTES, after=self._next)
        if answer.pid is None or answer.pid == self._pid:
            self._print_next(answer)
        else:
            self._print_newer(answer)
        return True

    def _print_newer(self, answer: LogAnswer) -> None:
        """Print the rest of the log of a backend that was replaced, then that of the newer one.

        Both may write to one file, or the newer one to a file of its own: an offset in the one file
        means nothing in the other.
        """
        if answer.source == "file":
            with suppress(RequestFailed):  # the log of the ended backend may be closed
                self._print_next(self._fetch(self._pid, max_bytes=_MAX_BYTES, after=self._next))
            answer = self._find_rest(answer.pid)
        elif answer.gap and self._last and self._last.text in answer.text:
            # The host's log goes on, and its hook does not tell offsets.
            text = answer.text.rpartition(self._last.text)[2]
            answer = replace(answer, text=text, gap=False)
        self._printer.note(f"the output of process {answer.pid} follows")
        self._pid = answer.pid
        self._print_next(answer)

    def _find_rest(self, pid: int | None) -> LogAnswer:
        """Request what was not printed of the file of a newer backend."""
        last = self._last
        if last is not None:
            answer = self._fetch(pid, max_bytes=_MAX_BYTES, after=last.start)
            if answer.start == last.start and answer.text.startswith(last.text):
                text = answer.text.removeprefix(last.text)
                return replace(answer, text=text, start=last.next)
        return self._fetch(pid, max_bytes=_MAX_BYTES, after=0)

    def _print_next(self, answer: LogAnswer) -> None:
        if answer.gap:
            self._printer.note("some output is missing")
        self._print(answer, answer.text)

    def _print(self, answer: LogAnswer, text: str) -> None:
        self._printer.print(text)
        is_much = answer.next - answer.start > _MAX_BYTES // 2
        self.poll_after_seconds = 0.0 if is_much else answer.poll_after_seconds
        self._next = answer.next
        self._pid = self._pid or answer.pid
        if answer.text:
            self._last = answer


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
        self._pending = ""  # a carriage return, perhaps the first half of the end of a line
        self._is_within_line = False

    def print(self, text: str) -> None:
        """Print a part, and flush."""
        if not self._raw:
            text = self._pending + text
            self._pending = "\r" if text.endswith("\r") else ""
            text = text.removesuffix("\r")
            text = "\n".join(map(printable_line, text.split("\n")))
        if text:
            self._is_within_line = not text.endswith("\n")
            click.echo(text, nl=False, color=True)  # without `color` click removes sequences

    def end_line(self) -> None:
        """End a line that is not complete; not in raw output."""
        if self._is_within_line and not self._raw:
            click.echo()
            self._is_within_line = False

    def note(self, text: str) -> None:
        """Print a line on stderr, in a terminal not within a line of the log."""
        self.end_line()
        click.echo(f"{PROGRAM}: {text}", err=True)
