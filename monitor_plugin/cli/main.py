"""The command line: `monitor-plugin`."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from importlib import metadata
from typing import Any

import msgspec

from ..client import DEFAULT_URL, client_of
from ..concurrency.signals import Signals
from ..config.settings import ENVIRONMENT_PREFIX, Settings, parse_setting, setting_text
from ..demo.calls import calls, make_calls
from ..demo.host import MODELS, demo
from ..domain.errors import MonitorError
from ..hosts.discovery import parse_rule
from ..telemetry.log_lines import configure_logging
from .views.hooks import hooks_table

# The commands that ask a running monitor; `commands/` has them, on top of the extra [cli].
_CLIENT_COMMANDS = {
    "ps": "list the backends of a running monitor: how they are, and who holds the memory",
    "top": "watch them, live, and stop them by a key",
    "status": "show all that is known of one model",
    "stop": "stop models, for good",
    "completion": "print what makes bash, zsh or fish complete all of this",
}
_COMPLETION = "_MONITOR_PLUGIN_COMPLETE"

# A flag's value can be seen by everyone on the machine, in `ps`.
_NO_FLAG = ("token",)


class _Parser(argparse.ArgumentParser):
    """Takes no flag by its beginning, nor do its commands: `--token` is not `--token-file`."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)


class _NoFlag(argparse.Action):
    """Refuses a flag without showing its value again."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        parser.error(
            f"{'/'.join(self.option_strings)}: a flag's value can be seen by everyone on this "
            f"machine; set {ENVIRONMENT_PREFIX}{self.dest.upper()}, or use --token-file"
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0, 1 for what went wrong, 2 for a bad command line."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if _COMPLETION in os.environ or (arguments and arguments[0] in _CLIENT_COMMANDS):
        return _ask_monitor(arguments)
    parser = _parser()
    options, unknown = parser.parse_known_args(arguments)
    if unknown:
        # Of a mistyped flag no value is shown, `--tok=...` say, as it might be a secret.
        words = [word.partition("=")[0] for word in unknown if word.startswith("-")]
        parser.error(f"unrecognized arguments: {' '.join(words or unknown)}")
    configure_logging(options.log_format)
    try:
        return int(options.command(options, _settings(options)))
    except MonitorError as error:
        print(f"monitor-plugin: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="monitor-plugin",
        description="Monitors and stops the backends of a model-serving host.",
    )
    version = f"%(prog)s {metadata.version('monitor-plugin')}"
    parser.add_argument("--version", action="version", version=version)
    commands = parser.add_subparsers(title="commands", required=True)
    demo = commands.add_parser(
        "demo",
        help="run a monitor, a small host and three real backends, until Ctrl-C",
        description="Runs a monitor, a small host and three real backends, until Ctrl-C.",
    )
    demo.add_argument(
        "--once",
        action="store_true",
        help="make the calls, print requests and answers, and exit; on a free port unless --listen",
    )
    _add_settings(demo)
    demo.set_defaults(command=_demo)
    supervisord = commands.add_parser(
        "supervisord",
        help="monitor the backends of the supervisord that runs this, as its event listener",
        description="Monitors the backends of the supervisord that runs this as its event listener "
        "(a section [eventlistener:...] of its configuration; see the README).",
    )
    supervisord.add_argument(
        "--backend",
        action="append",
        default=[],
        metavar="NAME=MODEL[@ADDRESS]",
        help="which programs are backends, besides those with --addr or MONITOR_ADDRESS; * in NAME "
        "stands for any text, in MODEL and ADDRESS for what the first of NAME stood for",
    )
    supervisord.add_argument(
        "--server-url",
        metavar="URL",
        help="supervisord's HTTP server, http://HOST:PORT or unix:///PATH (default: "
        "SUPERVISOR_SERVER_URL, which supervisord sets); the credentials for it are read from "
        "SUPERVISOR_USERNAME and SUPERVISOR_PASSWORD",
    )
    _add_settings(supervisord)
    supervisord.set_defaults(command=_supervisord)
    hooks = commands.add_parser(
        "hooks",
        help="list the plugins of a running monitor, and how their hooks fared",
        description="Asks a running monitor which plugins it has loaded, from where, which hooks "
        "each implements, and how often each was called, raised, was not back in time, and how "
        "long it took. The token for it is read from MONITOR_TOKEN.",
    )
    hooks.add_argument(
        "--url", help=f"http://HOST:PORT or unix:/PATH (default: MONITOR_URL, or {DEFAULT_URL})"
    )
    hooks.add_argument(
        "--token-file",
        dest="client_token_file",
        metavar="FILE",
        help="a file with the token, or the monitor's own token file",
    )
    hooks.add_argument("--token", action=_NoFlag, help=argparse.SUPPRESS)
    hooks.add_argument("--json", action="store_true", help="print JSON, for programs")
    hooks.set_defaults(command=_hooks, log_format="text")
    for name, help in _CLIENT_COMMANDS.items():
        commands.add_parser(name, help=help)
    return parser


def _ask_monitor(arguments: Sequence[str]) -> int:
    """Run a command of click's, or answer a shell that completes a command line."""
    try:
        from . import completion, program  # which need what is not always installed
    except ModuleNotFoundError as error:
        print(f"monitor-plugin: {error}: pip install 'monitor-plugin[cli]'", file=sys.stderr)
        return 1
    if _COMPLETION in os.environ:
        whole = completion.with_commands_of(_parser(), program.program)
        print(completion.answer(whole, program.PROGRAM, os.environ[_COMPLETION]))
        return 0
    return program.run(arguments)


def _log_format(text: str) -> str:
    if text not in ("text", "json"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither text nor json")
    return text


def _add_settings(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--log-format",
        type=_log_format,
        metavar="text|json",
        default=os.environ.get(f"{ENVIRONMENT_PREFIX}LOG_FORMAT") or "text",
        help="the form of the log, on stderr (default: MONITOR_LOG_FORMAT, or text)",
    )
    group = parser.add_argument_group(
        "settings", f"also read from the environment: {ENVIRONMENT_PREFIX}<SETTING>"
    )
    for field in msgspec.structs.fields(Settings):
        flag = "--" + field.name.replace("_", "-")
        if field.name in _NO_FLAG:
            group.add_argument(flag, dest=field.name, action=_NoFlag, help=argparse.SUPPRESS)
        elif field.type is bool:
            group.add_argument(
                flag, dest=field.name, action="store_const", const="true", help="default: no"
            )
        elif field.type == tuple[str, ...]:
            group.add_argument(
                flag, dest=field.name, action="append", help="default: none; may be repeated"
            )
        else:
            default = setting_text(field.name, field.default)
            group.add_argument(flag, dest=field.name, help=f"default: {default}")


def _settings(options: argparse.Namespace) -> Settings:
    settings = Settings.from_environment(os.environ)
    given: dict[str, Any] = {}
    for field in msgspec.structs.fields(Settings):
        text = getattr(options, field.name, None)
        if isinstance(text, list):
            text = ",".join(text)
        if text is not None:
            flag = "--" + field.name.replace("_", "-")
            given[field.name] = parse_setting(field.name, text, source=flag)
    return msgspec.structs.replace(settings, **given)


def _demo(options: argparse.Namespace, settings: Settings) -> int:
    if options.once and options.listen is None:
        settings = msgspec.structs.replace(settings, listen="127.0.0.1:0")
    if options.once and settings.token is None and settings.token_file is not None:
        raise MonitorError("demo --once makes its calls with the token in MONITOR_TOKEN; set it")
    signals = Signals()
    with demo(settings) as monitor:
        if options.once:
            good = True
            for text, as_expected in make_calls(monitor.url, settings.token):
                print(text, flush=True)
                good = good and as_expected
            return 0 if good else 1
        print(f"{len(MODELS)} backends run; the monitor answers at {monitor.url}. Try:\n")
        for call in calls():
            url = monitor.url.replace("//127.0.0.1:", "//localhost:")
            print(call.curl(url, settings.token is not None or settings.token_file is not None))
        if monitor.url.startswith("http:"):
            print(f"\nIn a browser: {monitor.url}")
        print("\nCtrl-C ends all of it.", flush=True)
        signals.wait(monitor.reload_tokens)
    return 0


def _supervisord(options: argparse.Namespace, settings: Settings) -> int:
    try:
        from ..hosts.supervisord import adapter  # which needs what is not always installed
    except ImportError as error:
        raise MonitorError(f"{error}: pip install monitor-plugin[supervisord]") from None
    rules = [parse_rule(text) for text in options.backend]
    return adapter.run(settings, rules, options.server_url, os.environ)


def _hooks(options: argparse.Namespace, settings: Settings) -> int:
    client = client_of(os.environ, options.url, options.client_token_file)
    answer = client.get("/hooks")
    if options.json:
        print(json.dumps(answer, indent=2))
    else:
        print(hooks_table(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main())
