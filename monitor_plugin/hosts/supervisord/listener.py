"""The event listener of supervisord, which runs the monitor and polls supervisord at each event."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TextIO

from supervisor import childutils

from ...concurrency.signals import Signals
from ...config.settings import Settings
from ...domain.errors import MonitorError
from ...monitor import Monitor
from ..discovery import BackendRule
from .adapter import Adapter
from .client import SupervisordClient, SupervisordError

_NO_SERVER = (
    "supervisord has no HTTP server by which it could be asked what runs: its configuration must "
    "have [unix_http_server] with file=/run/supervisor.sock, and [rpcinterface:supervisor] with "
    "supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface (outside "
    "supervisord, --server-url says where its server is)"
)


class EventProtocol:
    """supervisord's event protocol.

    Args:
        events: the stream of events.
        answers: the stream of acknowledgements.
    """

    def __init__(self, events: TextIO, answers: TextIO) -> None:
        self._events = events
        self._answers = answers

    @classmethod
    def claim(cls) -> EventProtocol:
        """Reserve standard input and output for the protocol.

        After one line that does not belong to the protocol, supervisord would send no more events.
        So all other output goes to standard error, in child processes too.
        """
        events, answers = os.dup(0), os.dup(1)
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.close(nothing)
        os.dup2(2, 1)
        sys.stdout = sys.stderr
        # Lengths of payloads are in bytes; in Latin-1 a character is a byte.
        return cls(
            open(events, encoding="latin-1", newline="\n"),
            open(answers, "w", encoding="latin-1", newline="\n"),
        )

    def run(self, on_event: Callable[[], None]) -> None:
        """Acknowledge each event, then call `on_event`; return when supervisord closes a stream."""
        try:
            while True:
                childutils.listener.ready(self._answers)
                header = self._events.readline()
                if not header:
                    return
                self._events.read(int(childutils.get_headers(header)["len"]))
                childutils.listener.ok(self._answers)
                on_event()
        except BrokenPipeError:  # nobody reads the acknowledgements any more
            with contextlib.suppress(BrokenPipeError):
                self._answers.close()


def run(
    settings: Settings,
    rules: Sequence[BackendRule],
    server_url: str | None,
    environ: Mapping[str, str],
) -> int:
    """Run a monitor as supervisord's event listener, until its input ends, SIGTERM or SIGINT.

    Args:
        settings: the settings of the monitor.
        rules: the programs that are backends, besides those that declare it themselves.
        server_url: the URL of supervisord's HTTP server; None: SUPERVISOR_SERVER_URL.
        environ: has SUPERVISOR_SERVER_URL, which supervisord sets, and SUPERVISOR_USERNAME and
            SUPERVISOR_PASSWORD, which the operator sets (pass `os.environ`).

    Returns:
        The exit code.

    Raises:
        MonitorError: a setting or supervisord's configuration cannot be used.
    """
    protocol = EventProtocol.claim()
    url = server_url or environ.get("SUPERVISOR_SERVER_URL")
    if not url:
        raise MonitorError(_NO_SERVER)
    credentials = environ.get("SUPERVISOR_USERNAME"), environ.get("SUPERVISOR_PASSWORD")
    supervisord = SupervisordClient(url, *credentials)
    try:
        supervisord.call("getState")
    except SupervisordError as error:
        if error.is_permanent:
            raise MonitorError(str(error)) from None
    adapter = Adapter(supervisord, rules, settings.hook_timeout_seconds)
    signals = Signals()

    def serve_events() -> None:
        try:
            protocol.run(adapter.poll_soon)
        finally:
            signals.end()

    with Monitor(settings, [adapter]) as monitor:
        threading.Thread(target=serve_events, name="monitor-events", daemon=True).start()
        signals.wait(monitor.reload_tokens)
    return 0
