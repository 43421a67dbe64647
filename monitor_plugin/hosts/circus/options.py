"""The options of the plugin's section in circus.ini: settings, and which programs are backends."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import msgspec

from ...config.settings import Settings, parse_setting
from ...domain.errors import MonitorError, SettingsError
from ..discovery import Rule, parse_rule

# Whoever reaches circus reads a plugin's options by `circusctl options`, and `ps` shows them.
_SECRET = "token"  # noqa: S105 - the name of a setting
_RULES = "backend"


def parse_options(
    options: Mapping[str, str], circus_options: Collection[str], environ: Mapping[str, str]
) -> tuple[Settings, list[Rule]]:
    """Turn the section into settings, over those of the environment, and rules.

    Args:
        options: the section's options by name.
        circus_options: names that are circus' own, and left alone.
        environ: pass `os.environ`.

    Raises:
        MonitorError: an option is not known, or has a value that cannot be used.
    """
    names = [each.name for each in msgspec.structs.fields(Settings) if each.name != _SECRET]
    given: dict[str, Any] = {}
    rules: list[Rule] = []
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
            given[name] = parse_setting(name, text, source=f"option {name}")
        elif name not in circus_options:
            raise SettingsError(
                name, f"unknown option {name!r}; there are {_RULES}, {', '.join(names)}"
            )
    return msgspec.structs.replace(Settings.from_environment(environ), **given), rules


def check_arguments(arguments: Sequence[str]) -> None:
    """See whether circus lost options on their way to the plugin's command line.

    It joins `name:value` by `:::`, and so drops without a word what is empty, or begins or ends
    with a colon.

    Args:
        arguments: pass `sys.argv`.

    Raises:
        MonitorError: it did.
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
