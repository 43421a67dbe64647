"""The program `monitor-plugin`: the group of all commands, and the exit codes of errors."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from importlib import import_module

import click

from ..domain.errors import MonitorError
from .options import COMPLETION_VARIABLE, FAILED, PROGRAM, exit_code_of, explain
from .views.text import printable

# The names of modules, and of the command in each.
_COMMANDS = (
    *("demo", "supervisord", "systemd", "ps", "status", "top", "start", "stop", "restart"),
    *("logs", "events", "ended", "gpus", "hooks", "doctor", "completion"),
)

# What to do if the system has no more of a resource, by the error's number.
_ADVICE = {
    errno.EMFILE: ": raise the limit of open files (ulimit -n, minfds of supervisord)",
    errno.ENFILE: ": raise the machine's limit of open files (sysctl fs.file-max)",
    errno.EAGAIN: ": raise the limit of threads (ulimit -u, or pids.max of the control group)",
}
_NO_THREAD = "can't start new thread"  # the message of `threading`'s RuntimeError


class _Commands(click.Group):
    """Imports the module of a command when the command is used, so that `ps` starts quickly."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module = import_module(f".{cmd_name}", __package__)
        command: click.Command = getattr(module, cmd_name)
        return command


def _print_version(context: click.Context, parameter: click.Parameter, wanted: bool) -> None:
    if wanted and not context.resilient_parsing:
        from ..domain.version import package_version  # `importlib.metadata` takes long to import

        click.echo(f"{PROGRAM} {package_version()}")
        context.exit()


@click.group(
    cls=_Commands,
    no_args_is_help=False,  # an error, in each version of click
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.option(
    "--version",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_print_version,
    help="Show the version and exit.",
)
def program() -> None:
    """Monitors, starts and stops the backends of a model-serving host."""


def run(arguments: Sequence[str]) -> int | None:
    """Run a command; returns its exit code, or None if a signal or Ctrl-D has ended it."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # escape what the terminal's encoding lacks
            stream.reconfigure(errors="backslashreplace")
    if instruction := os.environ.get(COMPLETION_VARIABLE):
        from .completion import answer_shell

        return answer_shell(program, instruction)
    return _run_command(arguments)


def _run_command(arguments: Sequence[str]) -> int | None:
    try:
        return int(program.main(list(arguments), PROGRAM, standalone_mode=False) or 0)
    except click.ClickException as error:
        if isinstance(error, click.NoSuchOption) and error.option_name == "--token":
            message = (
                "--token: a flag's value can be seen by everyone on this machine; "
                "set MONITOR_TOKEN, or use --token-file"
            )
            error = click.UsageError(message, error.ctx)
        error.show()
        return error.exit_code
    except MonitorError as error:
        click.echo(f"{PROGRAM}: {explain(error)}", err=True)
        return exit_code_of(error)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "rich":
            raise
        click.echo(f"{PROGRAM}: {error}: pip install 'monitor-plugin[cli]'", err=True)
        return FAILED
    except click.Abort as error:  # Ctrl-D; or a signal: click turns KeyboardInterrupt into Abort
        click.echo(str(error), err=True)
        return None
    except BrokenPipeError:  # of stdout, as in `ps | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except (OSError, RuntimeError) as error:
        number = errno.EAGAIN if str(error) == _NO_THREAD else getattr(error, "errno", None)
        if number is None:
            raise
        click.echo(f"{PROGRAM}: {printable(str(error))}{_ADVICE.get(number, '')}", err=True)
        return FAILED
