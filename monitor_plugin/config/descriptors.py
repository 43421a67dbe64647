"""Limits the file descriptors that each part of the monitor may use: most belong to the host.

The limit of the process, RLIMIT_NOFILE, is the host's to set. The monitor never changes it.
"""

from __future__ import annotations

import resource
import sys


def _share(divisor: int) -> int:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]  # not cached: a host may raise it
    return sys.maxsize if limit == resource.RLIM_INFINITY else limit // divisor


def max_pidfds() -> int:
    """Return the maximum number of pidfds; processes beyond it are polled."""
    return _share(8)


def max_member_pidfds() -> int:
    """Return the maximum number of pidfds by which the causes of members' ends are known."""
    return min(64, _share(16))


def max_output_files() -> int:
    """Return the maximum number of files with the output of backends that are held open."""
    return _share(8)


def max_channels() -> int:
    """Return the maximum number of open gRPC channels."""
    return _share(8)


def max_connections() -> int:
    """Return the maximum number of open HTTP connections; further ones wait to be accepted."""
    return min(1000, max(1, _share(2)))
