"""The command line: `monitor-plugin`, a module for each command."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code (`options.EXIT_CODES` has the list)."""
    from .program import run  # late: importing this package imports no click

    return run(sys.argv[1:] if arguments is None else arguments)
