"""What the examples share, and a host of your own need not copy: their command line."""

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
    """Read the command line's `MODEL=COMMAND` arguments; without any, those of two demo backends.

    Each command has one part, or more, in which `{address}` stands for the gRPC address at which
    the backend is to serve.
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
    """Give a command in which `{address}` is a unix socket in the folder, and that address.

    A new one for each process: nothing else can have it, as it could a port.
    """
    address = f"unix:{folder}/{secrets.token_hex(8)}"
    return [part.replace("{address}", address) for part in command], address


def print_curl_commands(monitor: Monitor, models: Sequence[str]) -> None:
    """Say with which commands the monitor can be tried."""
    print(f"The monitor answers on {monitor.url}. Ctrl-C ends everything. Try:\n")
    for path, says_post in (("/backend/monitor", False), ("/backend/shutdown", True)):
        for model in models:
            print(Call(path, {"model": model}, says_post, 200).curl(monitor.url))
    print(flush=True)
