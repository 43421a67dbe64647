"""The options of the plugin's section in circus.ini: settings, and rules for backends."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import msgspec

from ...config.settings import Settings, parse_setting
from ...domain.errors import MonitorError, SettingsError
from ..discovery import BackendRule, parse_rule

# `circusctl options` shows the options of a plugin to all clients of circus, and `ps` to all users.
_SECRET = "token"  # noqa: S105 - the name of a setting
_RULES = "backend"


def parse_options(
    options: Mapping[str, str], circus_options: Collection[str], environ: Mapping[str, str]
) -> tuple[Settings, list[BackendRule]]:
    """Parse the options. They take precedence over the variables of `environ`.

    Args:
        options: the options of the section, by name.
        circus_options: the names of circus' own options, which are ignored.
        environ: pass `os.environ`.

    Returns:
        The settings of the monitor, and the rules for backends.

    Raises:
        MonitorError: an option is unknown, or has an invalid value.
    """
    names = [each.name for each in msgspec.structs.fields(Settings) if each.name != _SECRET]
    values: dict[str, Any] = {}
    rules: list[BackendRule] = []
    for name, text in options.items():
        if name == _SECRET:
            raise SettingsError(
                name,
                "token is no option, as `circusctl options` and `ps` show options: use token_file, "
                "or the variable MONITOR_TOKEN in circusd's environment",
            )
        if name == _RULES:
            rules += [parse_rule(rule.strip()) for rule in re.split(r"[,\n]", text) if rule.strip()]
        elif name in names:
            values[name] = parse_setting(name, text, source=f"option {name}")
        elif name not in circus_options:
            raise SettingsError(
                name, f"unknown option {name!r}; there are {_RULES}, {', '.join(names)}"
            )
    return msgspec.structs.replace(Settings.from_environment(environ), **values), rules


def check_arguments(arguments: Sequence[str]) -> None:
    """Check that circus passed all options on the plugin's command line.

    It joins `name:value` with `:::`. So it silently drops values that are empty, or that begin or
    end with a colon.

    Args:
        arguments: pass `sys.argv`.

    Raises:
        MonitorError: an option was lost.
    """
    if "--config" not in arguments[:-1]:
        return
    config = arguments[arguments.index("--config") + 1]
    for part in config.split(":::"):
        name, colon, _ = part.partition(":")
        if not (name and colon):
            raise MonitorError(
                f"circus lost options at {part!r}: it passes no value that is empty, or begins or "
                "ends with a colon (::1 is also 0:0:0:0:0:0:0:1)"
            )
