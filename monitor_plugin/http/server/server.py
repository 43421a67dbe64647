"""The HTTP server: waitress, in a thread of its own."""

from __future__ import annotations

import sys
import threading
import time
from typing import Any

import waitress.server
import waitress.wasyncore

from ...concurrency.blocking import BlockingObserver
from ...config.origins import ip_address
from ...config.settings import Settings
from .connections import Connections
from .dispatcher import Dispatcher
from .listener import open_listener, plain_address

# Backstops: the application refuses 64 KiB already, with an answer of its own.
_MAX_BODY_BYTES = 2 * 1024 * 1024 + 1  # waitress refuses what has as many
_MAX_HEADER_BYTES = 32 * 1024  # with the request line
# Longer than what scrapes at an interval waits between two requests on one connection, mostly.
_IDLE_SECONDS = 120.0
_CLOSE_SECONDS = 5


class Server:
    """Serves a WSGI application over HTTP, from its construction on.

    Args:
        app: the application.
        listen: `HOST:PORT`, port 0 for any free one, or `unix:/PATH`.
        settings: who may be let in, and how many requests are answered at once: `http_threads`,
            and more while some are held up.
        waits: through which those that answer say that they wait for another process.
        idle_seconds: after how long without an answer a connection is closed.

    Attributes:
        url: where it serves, without a slash at the end; `unix:/PATH` for a unix socket.

    Raises:
        ListenError: it cannot listen there, or it would let anybody in.
    """

    def __init__(
        self,
        app: Any,
        listen: str,
        settings: Settings,
        waits: BlockingObserver,
        *,
        idle_seconds: float = _IDLE_SECONDS,
    ) -> None:
        trusted = _trust(settings.trusted_proxy)
        self._listener = open_listener(listen, settings)
        self.url = self._listener.url
        try:
            self._dispatcher = Dispatcher(settings.http_threads)
            self._map: dict[int, Any] = {}
            self._server: Any = waitress.server.create_server(
                app,
                map=self._map,
                sockets=[self._listener.socket],
                threads=settings.http_threads,
                max_request_body_size=_MAX_BODY_BYTES,
                inbuf_overflow=sys.maxsize,  # no files, which would take descriptors
                outbuf_overflow=sys.maxsize,
                max_request_header_size=_MAX_HEADER_BYTES,
                asyncore_use_poll=True,  # select() takes no descriptor over 1,023
                log_socket_errors=False,  # with a traceback; clients may come and go
                ident=None,
                clear_untrusted_proxy_headers=True,
                _dispatcher=self._dispatcher,
                **trusted,
            )
            self._adapt_to_addresses()
            self._connections = Connections(self._server, listen, idle_seconds)
            self._dispatcher.start()
            waits.tell(self._dispatcher.note_wait)
            self._closing = False
            self._flush_until = 0.0
            self._thread = threading.Thread(target=self._run, name="monitor-http", daemon=True)
            self._thread.start()
        except BaseException:
            self._listener.close()
            raise

    def _adapt_to_addresses(self) -> None:
        if self.url.startswith("unix:"):
            self._server.effective_port = 0  # SERVER_PORT is a number (PEP 3333), and no path
        else:
            self._server.fix_addr = lambda address: (plain_address(address[0]), *address[1:])

    def _run(self) -> None:
        while not self._closing or self._writes_answers():
            seconds = min(self._dispatcher.fit() or 1, self._connections.tend())
            waitress.wasyncore.loop(timeout=seconds, use_poll=True, map=self._map, count=1)

    def _writes_answers(self) -> bool:
        return time.monotonic() < self._flush_until and any(
            channel.total_outbufs_len for channel in self._server.active_channels.values()
        )

    def close(self) -> None:
        """Take no more requests, let those under way finish within bounds, and end the threads."""
        self._server.accepting = False
        self._listener.remove()
        self._dispatcher.close()
        self._flush_until = time.monotonic() + _CLOSE_SECONDS
        self._closing = True
        self._server.pull_trigger()
        self._thread.join()
        self._connections.close()
        self._listener.close()
        waitress.wasyncore.close_all(self._map)


def _trust(proxy: str | None) -> dict[str, Any]:
    """Tell waitress whose `X-Forwarded-For` to believe; no other such header is, from anybody."""
    if proxy is None:
        return {}
    # Waitress calls whoever connects to a unix socket `localhost`.
    peer = "localhost" if proxy == "unix" else plain_address(str(ip_address(proxy)))
    return {
        "trusted_proxy": peer,
        "trusted_proxy_count": 1,
        "trusted_proxy_headers": {"x-forwarded-for"},
    }
