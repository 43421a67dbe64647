"""Reports threads that block on another process, so that other threads can take their work."""

from __future__ import annotations

from collections.abc import Callable


class BlockingObserver:
    """A context that a thread enters while it waits for another process."""

    def __init__(self) -> None:
        self._notify: Callable[[int], object] | None = None

    def subscribe(self, notify: Callable[[int], object]) -> None:
        """Call `notify` with 1 in each thread that begins to wait, and with -1 when it goes on."""
        self._notify = notify

    def __enter__(self) -> None:
        if self._notify:
            self._notify(1)

    def __exit__(self, *error: object) -> None:
        if self._notify:
            self._notify(-1)
