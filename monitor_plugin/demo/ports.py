"""Ports for servers that are told where to listen."""

from __future__ import annotations

import errno
import random
import socket


def free_port(host: str = "127.0.0.1") -> int:
    """Find a port on which nobody listens, and which the system gives to nobody who asks for any.

    Of those that it does give, one that is free now may be the end of a connection a moment later.
    """
    while True:
        port = random.SystemRandom().randint(10_000, 32_000)
        try:
            with socket.create_server((host, port)):
                return port
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
