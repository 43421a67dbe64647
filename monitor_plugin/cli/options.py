"""What the commands share: flags, exit codes, the text of their help and of errors."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

from ..client import Client, client_of
from ..domain.errors import InvalidRequest, MonitorError, RequestFailed
from ..domain.model_name import validate_model_name
from .queries import fetch_backends
from .views.text import printable

PROGRAM = "monitor-plugin"

FINE, FAILED, MISUSED, UNREACHABLE, NOT_LOADED = range(5)
INTERRUPTED = 130
EXIT_CODES = """\
Exit codes:
  0    fine; with stop: all are stopped
  1    the monitor answered with an error; with stop: a model was not stopped
  2    the command line cannot be used, or there is no terminal to ask on
  3    no monitor answers at that URL
  4    the model is not loaded
  130  ended by Ctrl-C (143: by SIGTERM)"""

_COMPLETION_SECONDS = 2.0

Function = TypeVar("Function", bound=Callable[..., Any])


def preformatted(*texts: str) -> str:
    """Mark paragraphs so that click prints them as they are written."""
    return "\n\n".join(f"\b\n{text}" for text in texts)


def monitor_options(function: Function) -> Function:
    """Add --url and --token-file."""
    for option in (
        click.option(
            "--token-file",
            type=click.Path(dir_okay=False),
            help="A file with the token to send: alone, or as in the monitor's own token file. "
            "[default: the token in MONITOR_TOKEN, or the file that MONITOR_TOKEN_FILE names]",
        ),
        click.option(
            "--url",
            help="The monitor: http://HOST:PORT, https://HOST:PORT or unix:/PATH. "
            "[default: MONITOR_URL, or http://127.0.0.1:8080]",
        ),
    ):
        function = option(function)
    return function


def make_client(url: str | None, token_file: str | None) -> Client:
    """Make the client that the flags and the environment ask for.

    Raises:
        click.UsageError: they cannot be used.
    """
    try:
        return client_of(os.environ, url, token_file)
    except MonitorError as error:
        raise click.UsageError(printable(str(error))) from None


def exit_code_of(error: MonitorError) -> int:
    """Return the exit code for an error."""
    if not isinstance(error, RequestFailed):
        return FAILED
    if error.type == "model_not_loaded":
        return NOT_LOADED
    return UNREACHABLE if error.type is None else FAILED  # without a type it is not a monitor's


def explain(error: MonitorError) -> str:
    """Say what went wrong, and what to do about it if that is known."""
    text = printable(str(error))
    if isinstance(error, RequestFailed) and error.status == 401:
        text += " (MONITOR_TOKEN, or --token-file, gives the token)"
    return text


class ModelName(click.types.StringParamType):
    """The name of a model. Shells complete it with the names of the loaded models."""

    name = "model"

    def convert(self, value: Any, parameter: Any, context: Any) -> str:
        """Validate a name."""
        try:
            return validate_model_name(super().convert(value, parameter, context))
        except InvalidRequest as error:
            self.fail(printable(str(error)), parameter, context)

    def shell_complete(
        self, context: click.Context, parameter: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """List the loaded models whose names begin so; none if the monitor does not answer."""
        try:
            client = client_of(
                os.environ, context.params.get("url"), context.params.get("token_file")
            )
            answer, _ = fetch_backends(client, fresh=False, timeout_seconds=_COMPLETION_SECONDS)
        except MonitorError:
            return []
        given = context.params.get(parameter.name or "") or ()
        models = sorted({item.model for item in answer.backends} - set(given))
        return [CompletionItem(model) for model in models if model.startswith(incomplete)]
