"""Free ports for servers whose port must be known before they start."""

from __future__ import annotations

import errno
import random
import socket


def free_port(host: str = "127.0.0.1") -> int:
    """Return a port on which no process listens, outside the range of ephemeral ports.

    Any outgoing connection may take an ephemeral port before the server starts.
    """
    while True:
        port = random.SystemRandom().randint(10_000, 32_000)
        try:
            with socket.create_server((host, port)):
                return port
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
