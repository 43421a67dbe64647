"""The HTTP server: waitress, in a thread of its own."""

from __future__ import annotations

import errno
import logging
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import waitress.server
import waitress.wasyncore

from ..descriptors import most_connections
from ..errors import ListenError
from ..settings import parse_listen
from .dispatcher import Dispatcher

_logger = logging.getLogger(__name__)

# A backstop: the application refuses 64 KiB already, with an answer of its own.
_MAX_BODY_BYTES = 16 * 1024 * 1024
# How often it is looked whether requests wait because others are held up.
_FIT_SECONDS = 0.05
_CLOSE_SECONDS = 5


class Server:
    """Serves a WSGI application over HTTP, from its construction on.

    Args:
        app: the application.
        listen: `HOST:PORT`; port 0 takes any free one.
        threads: how many requests are answered at once; more while some are held up.

    Attributes:
        url: where it serves, without a slash at the end.

    Raises:
        ListenError: it cannot listen there.
    """

    def __init__(self, app: Any, listen: str, threads: int) -> None:
        listener = _bind(listen)
        host, port = listener.getsockname()[:2]
        self.url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        self._dispatcher = Dispatcher(threads)
        self._map: dict[int, Any] = {}
        self._server: Any = waitress.server.create_server(
            app,
            map=self._map,
            sockets=[listener],
            threads=threads,
            connection_limit=most_connections(),
            max_request_body_size=_MAX_BODY_BYTES,
            asyncore_use_poll=True,  # select() takes no descriptor over 1,023
            ident=None,
            clear_untrusted_proxy_headers=True,
            _dispatcher=self._dispatcher,
        )
        server: Any = self._server
        server.accept = _patient(server.accept, listen)
        self._dispatcher.start()
        self._closing = False
        self._flush_until = 0.0
        self._thread = threading.Thread(target=self._run, name="monitor-http", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._closing or self._writes_answers():
            seconds = _FIT_SECONDS if self._dispatcher.fit() else 1
            waitress.wasyncore.loop(timeout=seconds, use_poll=True, map=self._map, count=1)

    def _writes_answers(self) -> bool:
        return time.monotonic() < self._flush_until and any(
            channel.total_outbufs_len for channel in self._server.active_channels.values()
        )

    def close(self) -> None:
        """Take no more requests, let those under way finish within bounds, and end the threads."""
        self._server.accepting = False
        self._dispatcher.close()
        self._flush_until = time.monotonic() + _CLOSE_SECONDS
        self._closing = True
        self._server.pull_trigger()
        self._thread.join()
        waitress.wasyncore.close_all(self._map)


def _patient(accept: Callable[[], Any], listen: str) -> Callable[[], Any]:
    """Make accepting pause where the process has no descriptor left, or the loop would spin."""
    said = False

    def patient() -> Any:
        nonlocal said
        try:
            accepted, said = accept(), False
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
            if not said:
                _logger.warning("no connection is accepted on %s for now: %s", listen, error)
            said, accepted = True, None
            time.sleep(_FIT_SECONDS)
        return accepted

    return patient


def _bind(listen: str) -> socket.socket:
    _, host, port = parse_listen(listen)
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        # Where a name has both, IPv4 is what clients of `localhost` fall back to.
        family, kind, protocol, _, address = min(found, key=lambda each: each[0] != socket.AF_INET)
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen()
        except BaseException:
            listener.close()
            raise
    except OSError as error:
        raise ListenError(
            listen,
            f"cannot listen on {listen}: {error.strerror or error}; free it, or set another "
            "address (Settings(listen=...), MONITOR_LISTEN, --listen; port 0 takes any free one)",
        ) from error
    return listener
