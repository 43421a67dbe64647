"""`monitor-plugin supervisord`."""

from __future__ import annotations

import os
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
    metavar="NAME=MODEL[@ADDRESS]",
    help="Programs that are backends, besides those with --addr or MONITOR_ADDRESS; * in NAME "
    "matches any text, and in MODEL and ADDRESS is replaced by what the first * matched.",
)
@click.option(
    "--server-url",
    metavar="URL",
    help="Supervisord's HTTP server, http://HOST:PORT or unix:///PATH (default: "
    "SUPERVISOR_SERVER_URL, which supervisord sets); the credentials for it are read from "
    "SUPERVISOR_USERNAME and SUPERVISOR_PASSWORD.",
)
@settings_options
def supervisord(
    backends: tuple[str, ...], server_url: str | None, log_format: str, **flags: Any
) -> int:
    """Monitor the backends of supervisord, as an event listener that supervisord runs.

    Start this from a section [eventlistener:...] of supervisord's configuration;
    examples/supervisord has one.
    """
    configure_logging(log_format)
    settings = parse_settings(flags)
    try:
        from ..hosts.supervisord import listener  # needs the extra [supervisord]
    except ImportError as error:
        raise MonitorError(f"{error}: pip install monitor-plugin[supervisord]") from None
    from ..hosts.discovery import parse_rule

    rules = [parse_rule(text) for text in backends]
    return listener.run(settings, rules, server_url, os.environ)
