"""Closes several parts, also if one of them fails to close."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable

_logger = logging.getLogger(__name__)


def close_all(*closers: Callable[[], object]) -> None:
    """Call each function, in order. If one raises, log the exception and call the later ones.

    A KeyboardInterrupt, or another exception that is no `Exception`, is raised after all calls.
    """
    with contextlib.ExitStack() as stack:
        for closer in reversed(closers):
            stack.callback(_close, closer)


def _close(closer: Callable[[], object]) -> None:
    try:
        closer()
    except Exception:
        name = getattr(closer, "__qualname__", repr(closer))
        _logger.exception("%s failed; the other parts are closed nevertheless", name)
