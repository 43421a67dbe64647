"""How many of the process's file descriptors each part of the monitor may take: most are others'.

The limit itself, RLIMIT_NOFILE, is the host's to set, and is never changed.
"""

from __future__ import annotations

import resource
import sys


def _share(divisor: int) -> int:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]  # at each call: a host may raise it
    return sys.maxsize if limit == resource.RLIM_INFINITY else limit // divisor


def most_pidfds() -> int:
    """How many processes may be watched by a descriptor; the others are polled."""
    return _share(8)


def most_channels() -> int:
    """How many gRPC channels may be open at once."""
    return _share(8)


def most_connections() -> int:
    """How many HTTP connections may be open at once; further ones wait to be accepted."""
    return min(1000, max(1, _share(2)))
