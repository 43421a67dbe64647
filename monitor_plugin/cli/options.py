"""Flags, exit codes and error texts that several commands share."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click
import msgspec
from click.shell_completion import CompletionItem

from ..client import Client, client_of
from ..config.cluster import validate_node
from ..config.settings import ENVIRONMENT_PREFIX, Settings, parse_setting, setting_text
from ..domain.errors import InvalidRequest, MonitorError, RequestFailed
from ..domain.model_name import validate_model_name
from .queries import fetch_backends
from .views.text import printable

PROGRAM = "monitor-plugin"
COMPLETION_VARIABLE = "_MONITOR_PLUGIN_COMPLETE"  # the name that click derives from PROGRAM

# 2 is the exit code of `click.UsageError`.
FINE, FAILED, _, UNREACHABLE, NOT_LOADED = range(5)
EXIT_CODES = """\
Exit codes:
  0    fine; with stop: all are stopped; with start and restart: the model is ready
  1    the monitor answered with an error; with stop: a model was not stopped;
       with start and restart: the model is not ready; with doctor: something is wrong
  2    the command line cannot be used, or there is no terminal to ask on
  3    no monitor answers at that URL
  4    the model is not loaded
  130  ended by Ctrl-C (143: by SIGTERM)"""

# The values of flags can be seen by everyone on the machine.
_WITHOUT_FLAG = ("token",)
SETTINGS_HELP = f"Settings are also read from the environment: {ENVIRONMENT_PREFIX}<SETTING>."

_COMPLETION_SECONDS = 2.0

Function = TypeVar("Function", bound=Callable[..., Any])


class FilePath(click.Path):
    """A path that shells complete. The code that reads the file reports its errors."""

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """Return the path unchecked; `click.Path` raises ValueError for a path with a NUL."""
        return value


def preformatted(*texts: str) -> str:
    r"""Join paragraphs; `\b` makes click print them with their line breaks."""
    return "\n\n".join(f"\b\n{text}" for text in texts)


def monitor_options(function: Function) -> Function:
    """Add --url and --token-file."""
    function = click.option(
        "--token-file",
        type=FilePath(),
        help="A file with the token to send: alone, or as in the monitor's own token file. "
        "[default: the token in MONITOR_TOKEN, or the file that MONITOR_TOKEN_FILE names]",
    )(function)
    return click.option(
        "--url",
        help="The monitor: http://HOST:PORT, https://HOST:PORT or unix:/PATH. "
        "[default: MONITOR_URL, or http://127.0.0.1:8080]",
    )(function)


def settings_options(function: Function) -> Function:
    """Add --log-format, and a flag for each setting."""
    for field in reversed(msgspec.structs.fields(Settings)):
        if field.name in _WITHOUT_FLAG:
            continue
        several = field.type == tuple[str, ...]
        default = "none; may be repeated" if several else setting_text(field.name, field.default)
        if field.type is bool:
            default = "no"
        function = click.option(
            _flag(field.name),
            is_flag=field.type is bool,
            type=FilePath() if field.name.endswith(("_file", "_dir")) else None,
            multiple=several,
            help=f"default: {default}",
        )(function)
    return click.option(
        "--log-format",
        type=click.Choice(["text", "json"]),
        envvar=f"{ENVIRONMENT_PREFIX}LOG_FORMAT",
        default="text",
        help="The form of the log, on stderr (default: MONITOR_LOG_FORMAT, or text).",
    )(function)


def parse_settings(flags: Mapping[str, Any]) -> Settings:
    """Make the settings from the environment and the flags; a flag takes precedence.

    Args:
        flags: the value of each flag by the setting's name; None, False or () for an absent flag.

    Raises:
        SettingsError: a value cannot be used.
    """
    settings = Settings.from_environment(os.environ)
    changes = {}
    for name, value in flags.items():
        if value in (None, False, ()):
            continue
        text = ",".join(value) if isinstance(value, tuple) else str(value)
        changes[name] = parse_setting(name, text, source=_flag(name))
    return msgspec.structs.replace(settings, **changes)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def make_client(url: str | None, token_file: str | None) -> Client:
    """Make a client from the flags and the environment; raises `click.UsageError`."""
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
    return UNREACHABLE if error.type is None else FAILED  # a monitor's errors have types


def explain(error: MonitorError) -> str:
    """Return the message of an error, escaped; with advice for a missing or wrong token."""
    text = printable(str(error))
    if isinstance(error, RequestFailed) and error.type == "start_failed":
        first, *output = str(error).split("\n")  # the last output of the process, if it is known
        text = "\n".join([printable(first), *(f"  {printable(each)}" for each in output)])
    if isinstance(error, RequestFailed) and error.status == 401:
        text += " (MONITOR_TOKEN, or --token-file, gives the token)"
    return text


class NodeName(click.types.StringParamType):
    """The name of a node of a cluster."""

    name = "node"

    def convert(self, value: Any, parameter: Any, context: Any) -> str:
        """Validate a name; calls `fail` if it is invalid."""
        try:
            return validate_node(super().convert(value, parameter, context))
        except ValueError as error:
            self.fail(printable(str(error)), parameter, context)


class ModelName(click.types.StringParamType):
    """The name of a model. Shells complete it with the names of known models.

    Args:
        loaded: complete it with the names of loaded models alone.
    """

    name = "model"

    def __init__(self, *, loaded: bool = False) -> None:
        self._loaded = loaded

    def convert(self, value: Any, parameter: Any, context: Any) -> str:
        """Validate a name; calls `fail` if it is invalid."""
        try:
            return validate_model_name(super().convert(value, parameter, context))
        except InvalidRequest as error:
            self.fail(printable(str(error)), parameter, context)

    def shell_complete(
        self, context: click.Context, parameter: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Return the models that begin with `incomplete`; none without an answer in 2 s."""
        try:
            client = client_of(
                os.environ, context.params.get("url"), context.params.get("token_file")
            )
            answer, _ = fetch_backends(client, fresh=False, timeout_seconds=_COMPLETION_SECONDS)
        except MonitorError:
            return []
        typed = context.params.get(parameter.name or "") or ()  # earlier ones of `stop MODEL...`
        found = {item.model for item in answer.backends}
        if not self._loaded:
            found |= {each.model for each in answer.models}
            found |= {each.model for each in answer.ended}
        models = sorted(found.difference(typed))
        return [CompletionItem(model) for model in models if model.startswith(incomplete)]
