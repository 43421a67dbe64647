"""The flags of the commands that run a monitor: one for each setting."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click
import msgspec

from ..config.settings import ENVIRONMENT_PREFIX, Settings, parse_setting, setting_text

# The values of flags can be seen by everyone on the machine.
_WITHOUT_FLAG = ("token",)
SETTINGS_HELP = f"Settings are also read from the environment: {ENVIRONMENT_PREFIX}<SETTING>."

Function = TypeVar("Function", bound=Callable[..., Any])


def settings_options(function: Function) -> Function:
    """Add --log-format, and a flag for each setting."""
    for field in reversed(msgspec.structs.fields(Settings)):
        if field.name not in _WITHOUT_FLAG:
            function = _option(field)(function)
    return click.option(
        "--log-format",
        type=click.Choice(["text", "json"]),
        envvar=f"{ENVIRONMENT_PREFIX}LOG_FORMAT",
        default="text",
        help="The form of the log, on stderr (default: MONITOR_LOG_FORMAT, or text).",
    )(function)


def parse_settings(flags: Mapping[str, Any]) -> Settings:
    """Make the settings that the environment and the flags give; a flag takes precedence.

    Args:
        flags: the value of each flag by the setting's name; None, False or () if it was not given.

    Raises:
        SettingsError: a value cannot be used.
    """
    settings = Settings.from_environment(os.environ)
    given = {}
    for name, value in flags.items():
        if value in (None, False, ()):
            continue
        if value is True:
            value = "true"
        elif isinstance(value, tuple):
            value = ",".join(value)
        given[name] = parse_setting(name, value, source=_flag(name))
    return msgspec.structs.replace(settings, **given)


def _option(field: msgspec.structs.FieldInfo) -> Callable[[Function], Function]:
    if field.type is bool:
        return click.option(_flag(field.name), is_flag=True, help="default: no")
    path = field.name.endswith(("_file", "_dir"))
    several = field.type == tuple[str, ...]
    default = "none; may be repeated" if several else setting_text(field.name, field.default)
    return click.option(
        _flag(field.name),
        type=click.Path() if path else None,
        multiple=several,
        help=f"default: {default}",
    )


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
