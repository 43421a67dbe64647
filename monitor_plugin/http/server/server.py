"""The HTTP server: waitress in a thread of its own."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import time
from typing import Any

import waitress.server
import waitress.wasyncore

from ...concurrency.blocking import BlockingObserver
from ...concurrency.closing import close_all
from ...config.origins import ip_address
from ...config.settings import Settings
from .connections import Connections
from .dispatcher import Dispatcher
from .listener import open_listener, plain_address

# A backstop: the application refuses bodies over 64 KiB itself, with its own error.
_MAX_BODY_BYTES = 2 * 1024 * 1024 + 1  # waitress also refuses a body of exactly this size
_MAX_HEADER_BYTES = 32 * 1024  # including the request line
# Longer than most scrape intervals, so that a scraper keeps its connection.
_IDLE_SECONDS = 120.0
_CLOSE_SECONDS = 5
_RETRY_SECONDS = 0.1
_DESCRIPTORS = 3  # of waitress's trigger: a pipe's two, and a copy of one

_logger = logging.getLogger(__name__)


class Server:
    """Serves a WSGI application over HTTP as soon as it is constructed.

    Args:
        app: the application.
        listen: `HOST:PORT`, with port 0 for any free one, or `unix:/PATH`.
        settings: `insecure` and the tokens decide which addresses are allowed. `http_threads` is
            the number of threads; there are more while requests are blocked.
        blocking: notifies the dispatcher when a request thread blocks on an RPC.
        idle_seconds: after how long a quiet connection is closed.

    Attributes:
        url: the address of the server, without a slash at the end; `unix:/PATH` for a unix socket.

    Raises:
        ListenError: the address cannot be bound, or listening there requires a token.
        OSError, RuntimeError: the system has no descriptor or no thread left. Whatever is raised,
            nothing is bound, and no thread runs.
    """

    def __init__(
        self,
        app: Any,
        listen: str,
        settings: Settings,
        blocking: BlockingObserver,
        *,
        idle_seconds: float = _IDLE_SECONDS,
    ) -> None:
        self._dispatcher = Dispatcher(settings.http_threads)
        self._map: dict[int, Any] = {}
        self._closing = False
        self._flush_until = 0.0
        self._thread = threading.Thread(target=self._run, name="monitor-http", daemon=True)
        self._listener = open_listener(listen, settings)
        self.url = self._listener.url
        try:
            self._check_descriptors()
            self._server: Any = waitress.server.create_server(
                app,
                map=self._map,
                sockets=[self._listener.socket],
                threads=settings.http_threads,
                max_request_body_size=_MAX_BODY_BYTES,
                inbuf_overflow=sys.maxsize,  # in memory: files would take descriptors
                outbuf_overflow=sys.maxsize,
                max_request_header_size=_MAX_HEADER_BYTES,
                asyncore_use_poll=True,  # select() takes no descriptor above 1,023
                log_socket_errors=False,  # a client that disconnects is no error
                ident=None,
                clear_untrusted_proxy_headers=True,
                _dispatcher=self._dispatcher,
                **_proxy_options(settings.trusted_proxy),
            )
            self._adapt_to_addresses()
            self._connections = Connections(self._server, listen, idle_seconds)
            self._dispatcher.start()
            self._thread.start()
        except BaseException:
            self._closing = True  # after Ctrl-C in `Thread.start`, the thread may run
            close_all(self._dispatcher.close, self._listener.close, self._close_sockets)
            raise
        blocking.subscribe(self._dispatcher.count_blocked)

    def _check_descriptors(self) -> None:
        """Raise OSError unless waitress can open all descriptors of its trigger.

        Waitress leaves some descriptors open if it cannot open all of them.
        """
        with contextlib.ExitStack() as stack:
            for _ in range(_DESCRIPTORS):
                stack.callback(os.close, os.dup(self._listener.socket.fileno()))

    def _adapt_to_addresses(self) -> None:
        if self.url.startswith("unix:"):
            self._server.effective_port = 0  # SERVER_PORT has to be a number (PEP 3333), not a path
        else:
            self._server.fix_addr = lambda address: (plain_address(address[0]), *address[1:])

    def _run(self) -> None:
        is_failing = False
        while not self._closing or self._has_unread_answers():
            try:
                seconds = min(self._dispatcher.resize() or 1, self._connections.evict())
                waitress.wasyncore.loop(timeout=seconds, use_poll=True, map=self._map, count=1)
                is_failing = False
            except Exception:  # the thread must go on serving
                if not is_failing:
                    _logger.exception("the HTTP server failed; trying again")
                is_failing = True
                time.sleep(_RETRY_SECONDS)

    def _has_unread_answers(self) -> bool:
        return time.monotonic() < self._flush_until and any(
            channel.has_unread_answer for channel in self._server.active_channels.values()
        )

    def close(self) -> None:
        """Stop accepting, wait a limited time for requests and answers, and end the threads."""
        self._server.accepting = False
        close_all(
            self._listener.remove,
            self._dispatcher.close,
            self._end_loop,
            self._thread.join,
            self._connections.close,
            self._listener.close,
            self._close_sockets,
        )

    def _end_loop(self) -> None:
        self._flush_until = time.monotonic() + _CLOSE_SECONDS
        self._closing = True
        self._server.pull_trigger()

    def _close_sockets(self) -> None:
        waitress.wasyncore.close_all(self._map, ignore_all=True)


def _proxy_options(trusted_proxy: str | None) -> dict[str, Any]:
    """Return waitress's options to trust one proxy's `X-Forwarded-For`, and no other header."""
    if trusted_proxy is None:
        return {}
    # Waitress gives every client of a unix socket the address `localhost`.
    peer = "localhost" if trusted_proxy == "unix" else plain_address(str(ip_address(trusted_proxy)))
    return {
        "trusted_proxy": peer,
        "trusted_proxy_count": 1,
        "trusted_proxy_headers": {"x-forwarded-for"},
    }
