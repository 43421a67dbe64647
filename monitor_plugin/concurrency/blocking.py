"""Who is told that a thread waits for another process: whoever has work for other threads."""

from __future__ import annotations

from collections.abc import Callable


class BlockingObserver:
    """Entered by threads while they wait for another process."""

    def __init__(self) -> None:
        self._told: Callable[[int], object] | None = None

    def tell(self, told: Callable[[int], object]) -> None:
        """Call this with 1 in each thread that begins to wait, and with -1 once it goes on."""
        self._told = told

    def __enter__(self) -> None:
        if self._told:
            self._told(1)

    def __exit__(self, *error: object) -> None:
        if self._told:
            self._told(-1)
