"""The command line: `monitor-plugin`, a module for each command."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code (`options.EXIT_CODES` has the list)."""
    # The imports are here because importing this package must import little, and no click.
    from ..concurrency.signals import Interruptible

    code = None
    with Interruptible() as signals:
        try:
            # Inside the `with` statement, because a signal may arrive during this slow import.
            from .program import run

            code = run(sys.argv[1:] if arguments is None else arguments)
        except KeyboardInterrupt as error:
            print(error, file=sys.stderr)  # an empty line after the terminal's ^C
        return 128 + (signals.ended_by or signal.SIGINT) if code is None else code
