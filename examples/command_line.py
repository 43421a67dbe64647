"""The command line that the examples share; your own host does not need it."""

from __future__ import annotations

import argparse
import secrets
import shlex
import sys
from collections.abc import Sequence

from monitor_plugin import Monitor
from monitor_plugin.demo.calls import Call

_DEMO = f"{shlex.quote(sys.executable)} -m monitor_plugin.demo.backend --end-with-parent"
_DEFAULT = (
    f"my-model={_DEMO} --addr {{address}}",
    f"no-status={_DEMO} --addr {{address}} --no-status",
)


def commands_by_model(description: str | None) -> dict[str, list[str]]:
    """Read the arguments `MODEL=COMMAND`; the default is two demo backends.

    `{address}` in a command stands for the gRPC address at which the backend is to serve.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("programs", nargs="*", default=_DEFAULT, metavar="MODEL=COMMAND")
    commands = {}
    for program in parser.parse_args().programs:
        model, _, command = program.partition("=")
        if not model or "{address}" not in command:
            parser.error(f"{program!r} is not MODEL=COMMAND with {{address}} in the command")
        commands[model] = shlex.split(command)
    return commands


def with_new_address(command: Sequence[str], folder: str) -> tuple[list[str], str]:
    """Replace `{address}` in a command by a new unix socket; return the command and the address.

    Another process could take a free port first, but not a socket in the host's own folder.
    """
    address = f"unix:{folder}/{secrets.token_hex(8)}"
    return [part.replace("{address}", address) for part in command], address


def print_curl_commands(monitor: Monitor, models: Sequence[str]) -> None:
    """Print commands with which to try the monitor."""
    print(f"The monitor answers on {monitor.url}. Ctrl-C ends everything. Try:\n")
    for path, shows_post in (("/backend/monitor", False), ("/backend/shutdown", True)):
        for model in models:
            print(Call(path, {"model": model}, shows_post, 200).curl(monitor.url))
    print(flush=True)
