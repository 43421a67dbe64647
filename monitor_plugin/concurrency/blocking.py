"""Reports threads that wait, so that other threads can take their work."""

from __future__ import annotations

from collections.abc import Callable


class BlockingObserver:
    """A context manager that a thread enters while it waits, for another process or for an event.

    Waits may be nested.
    """

    def __init__(self) -> None:
        self._notify: Callable[[int], object] | None = None

    def subscribe(self, notify: Callable[[int], object]) -> None:
        """Call `notify(1)` in each thread that begins to wait, and `notify(-1)` after the wait."""
        self._notify = notify

    def __enter__(self) -> None:
        if self._notify:
            self._notify(1)

    def __exit__(self, *error: object) -> None:
        if self._notify:
            self._notify(-1)
