"""`monitor-plugin demo`."""

from __future__ import annotations

from typing import Any

import click
import msgspec

from ..domain.errors import MonitorError
from ..telemetry.log_lines import configure_logging
from .options import (
    FAILED,
    FINE,
    SETTINGS_HELP,
    parse_settings,
    preformatted,
    settings_options,
)


@click.command(epilog=preformatted(SETTINGS_HELP))
@click.option(
    "--once",
    is_flag=True,
    help="Make the calls, print requests and answers, and exit; without --listen on a free port.",
)
@settings_options
def demo(once: bool, log_format: str, **flags: Any) -> int:
    """Run a monitor, a small host and three real backends, until Ctrl-C."""
    configure_logging(log_format)
    settings = parse_settings(flags)
    if once and flags["listen"] is None:
        settings = msgspec.structs.replace(settings, listen="127.0.0.1:0")
    if once and settings.token is None and settings.token_file is not None:
        raise MonitorError("demo --once makes its calls with the token in MONITOR_TOKEN; set it")

    from ..concurrency.signals import Signals
    from ..demo.calls import calls, make_calls
    from ..demo.host import MODELS, demo  # imports gRPC and Falcon

    # `Signals` would keep a signal for `wait`. Without it, a signal ends `--once` at any time.
    signals = None if once else Signals()
    with demo(settings) as monitor:
        if signals is None:
            code = FINE
            for text, as_expected in make_calls(monitor.url, settings.token):
                click.echo(text)
                if not as_expected:
                    code = FAILED
            return code
        click.echo(f"{len(MODELS)} backends run; the monitor answers at {monitor.url}. Try:\n")
        url = monitor.url.replace("//127.0.0.1:", "//localhost:")
        with_token = settings.token is not None or settings.token_file is not None
        for call in calls():
            click.echo(call.curl(url, with_token))
        if monitor.url.startswith("http:"):
            click.echo(f"\nIn a browser: {monitor.url}")
        click.echo("\nCtrl-C ends all of it.")
        signals.wait(monitor.reload_tokens)
    return FINE
