"""The command line: `monitor-plugin`, a module for each command."""

from __future__ import annotations

from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0, 1 for what went wrong, 2 for a bad command line."""
    from .main import main as run  # here, so that importing the package imports no command

    return run(arguments)
