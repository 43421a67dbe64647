"""The commands `ps`, `top`, `status`, `stop` and `completion`."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence

import click

from ..domain.errors import MonitorError
from . import options
from .answers import ask_backends
from .completion import SHELLS, script
from .options import ModelName, client_for, explain, monitor_options
from .stop import stop_models
from .top import run_top
from .views.details import details_view
from .views.tables import ago, backends_view, console
from .views.text import printable, shown

PROGRAM = "monitor-plugin"

EXIT_CODES = """\
Exit codes:
  0    fine; with stop: all are stopped
  1    the monitor answered with an error; with stop: a model was not stopped
  2    the command line cannot be used, or there is no terminal to ask on
  3    no monitor answers at that URL
  4    the model is not loaded
  130  ended by Ctrl-C (143: by SIGTERM)"""
_PS = """\
Examples:
  monitor-plugin ps
  monitor-plugin ps --url unix:/run/monitor.sock --model llama
  monitor-plugin ps --json | jq '.backends[].memory.total'"""
_STATUS = """\
Examples:
  monitor-plugin status llama
  monitor-plugin status llama >/dev/null || echo "llama is not loaded"\
"""
_STOP = """\
Examples:
  monitor-plugin stop llama
  monitor-plugin stop --yes --force llama 'org/big model'
  monitor-plugin stop --all"""
_TOP = """\
Keys:
  m c n u    sort by memory, CPU, name, uptime
  up down    move the selection (k and j, Home and End too)
  s          stop the selected one; asks first: y yes, f yes and by force, n no
  q          quit"""
_COMPLETION = """\
Examples:
  eval "$(monitor-plugin completion bash)"     # in ~/.bashrc
  eval "$(monitor-plugin completion zsh)"      # in ~/.zshrc, after compinit
  monitor-plugin completion fish | source      # in ~/.config/fish/config.fish"""


def _kept(*texts: str) -> str:
    """Have click leave paragraphs as they are written."""
    return "\n\n".join(f"\b\n{text}" for text in texts)


def run(arguments: Sequence[str]) -> int:
    """Run a command; returns its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # what the terminal's encoding lacks appears escaped
            stream.reconfigure(errors="backslashreplace")
    try:
        return int(program.main(list(arguments), PROGRAM, standalone_mode=False) or 0)
    except click.NoSuchOption as error:
        (_token_refused(error) if error.option_name == "--token" else error).show()
        return options.MISUSED
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except MonitorError as error:
        click.echo(f"{PROGRAM}: {explain(error)}", err=True)
        return options.exit_code_of(error)
    except (click.Abort, KeyboardInterrupt):
        click.echo(err=True)
        return options.INTERRUPTED
    except BrokenPipeError:  # whoever read has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return options.FAILED


def _token_refused(error: click.NoSuchOption) -> click.UsageError:
    return click.UsageError(
        "--token: a flag's value can be seen by everyone on this machine; "
        "set MONITOR_TOKEN, or use --token-file",
        error.ctx,
    )


@click.group(epilog=_kept(EXIT_CODES), context_settings={"help_option_names": ["-h", "--help"]})
def program() -> None:
    """Ask and command a running monitor."""


@program.command(epilog=_kept(_PS, EXIT_CODES))
@click.option("--model", type=ModelName(), metavar="NAME", help="Show this model alone.")
@click.option("--json", "as_json", is_flag=True, help="Print the answer of GET /backends.")
@click.option("--node", metavar="NAME", help="Of a cluster, show this node alone.")
@monitor_options
def ps(
    url: str | None, token_file: str | None, model: str | None, as_json: bool, node: str | None
) -> None:
    """List the backends: how they are, and who holds the memory.

    Those that hold most come first. A "!" marks what somebody should look at: an error, or a
    backend that gives no answer (which can be busy). Below stand those that ended lately, and why.
    """
    answer, said = ask_backends(client_for(url, token_file), model, node=node)
    if as_json:
        click.echo(json.dumps(said))
    else:
        output = console()
        output.print(backends_view(answer, model, output.width))


@program.command(epilog=_kept(_STATUS, EXIT_CODES))
@click.argument("model", type=ModelName())
@click.option("--json", "as_json", is_flag=True, help="Print the answer of GET /backends?model=.")
@monitor_options
def status(url: str | None, token_file: str | None, model: str, as_json: bool) -> int:
    """Show all that is known of one model: each replica, its memory by component, its last ends."""
    answer, said = ask_backends(client_for(url, token_file), model)
    if as_json:
        click.echo(json.dumps(said))
    elif answer.backends:
        output = console()
        output.print(details_view(answer, model, output.width))
    for each in answer.missing():
        click.echo(f"{PROGRAM}: {printable(each)}", err=True)
    if answer.backends:
        return options.FINE
    last = answer.ended[0] if answer.ended else None
    how = f": its process {last.pid} {printable(last.description)} {ago(last)}" if last else ""
    click.echo(f"{PROGRAM}: model '{shown(model)}' {answer.absent()}{how}", err=True)
    return options.FAILED if answer.missing() else options.NOT_LOADED


@program.command(epilog=_kept(_STOP, EXIT_CODES))
@click.argument("models", nargs=-1, type=ModelName(), metavar="MODEL...")
@click.option("--all", "every", is_flag=True, help="Stop every model that is loaded.")
@click.option("--force", is_flag=True, help="Do not wait for a busy one to finish its work.")
@click.option("--yes", is_flag=True, help="Do not ask first.")
@click.option("--node", metavar="NAME", help="Of a cluster, stop them on this node alone.")
@monitor_options
def stop(
    url: str | None,
    token_file: str | None,
    models: tuple[str, ...],
    every: bool,
    force: bool,
    yes: bool,
    node: str | None,
) -> int:
    """Stop models, for good: whole process trees, through the host's own books.

    Asks first. Waits until a busy one has done its work, then until all of it is gone. Several
    are stopped at the same time, up to four. Ctrl-C ends the waiting, not a shutdown that has
    begun.
    """
    if bool(models) == every:
        raise click.UsageError("name the models to stop, or say --all")
    if not yes and not sys.stdin.isatty():
        raise click.UsageError("there is no terminal on which to ask; --yes stops without asking")
    client = client_for(url, token_file)
    return stop_models(client, dict.fromkeys(models), force=force, yes=yes, node=node)


@program.command(epilog=_kept(_TOP, EXIT_CODES))
@click.option(
    "--sort",
    type=click.Choice(["memory", "cpu", "name", "uptime"]),
    default="memory",
    show_default=True,
    help="What comes first: most memory, most CPU, by name, or youngest.",
)
@click.option(
    "--interval",
    type=click.FloatRange(0.2, 20),
    default=2.0,
    show_default=True,
    metavar="SECONDS",
    help="How often to look; what happens is shown at once.",
)
@monitor_options
def top(url: str | None, token_file: str | None, sort: str, interval: float) -> int:
    """Watch the backends, live; stop one with two keys.

    Of a model with several replicas the selected one alone is stopped.
    """
    if not (sys.stdin.isatty() and sys.stdout.isatty()) or console().is_dumb_terminal:
        raise click.UsageError(
            "top needs a terminal on which it can move about; `monitor-plugin ps` does not"
        )
    return run_top(client_for(url, token_file), sort, interval)


@program.command(epilog=_kept(_COMPLETION))
@click.argument("shell", type=click.Choice(SHELLS))
def completion(shell: str) -> None:
    """Print what makes a shell complete commands, flags and names of loaded models."""
    click.echo(script(program, PROGRAM, shell), nl=False)
