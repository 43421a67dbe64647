"""`monitor-plugin systemd`."""

from __future__ import annotations

from typing import Any

import click

from ..domain.errors import MonitorError
from ..telemetry.log_lines import configure_logging
from .options import SETTINGS_HELP, parse_settings, preformatted, settings_options


@click.command(epilog=preformatted(SETTINGS_HELP))
@click.option(
    "--backend",
    "backends",
    multiple=True,
    metavar="UNIT=MODEL[@ADDRESS]",
    help="Services that are backends, besides those with --addr or MONITOR_ADDRESS; * in UNIT "
    "matches any text, and in MODEL and ADDRESS is replaced by what the first * matched.",
)
@click.option(
    "--user/--system",
    "user",
    default=False,
    help="The services of the user's own systemd, or those of the system (the default).",
)
@settings_options
def systemd(backends: tuple[str, ...], user: bool, log_format: str, **flags: Any) -> int:
    """Monitor the backends that are services of systemd, as a service of systemd itself.

    Start this from a unit; examples/systemd has one.
    """
    configure_logging(log_format)
    settings = parse_settings(flags)
    try:
        from ..hosts.systemd import service  # needs the extra [systemd]
    except ImportError as error:
        raise MonitorError(f"{error}: pip install monitor-plugin[systemd]") from None
    from ..hosts.discovery import parse_rule

    return service.run(settings, [parse_rule(text) for text in backends], user=user)
