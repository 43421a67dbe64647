"""A reading that all who ask at about the same time share, and what was made of it for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import is_
from typing import Any

from ..concurrency.single_flight import SingleFlight
from ..domain.models import Backend, Reading


class SharedReading:
    """A reading, of which each thing that is made for those who ask is made once.

    Attributes:
        reading: the reading.
        answer: what the HTTP side made of it; None until then.
    """

    __slots__ = ("answer", "reading")

    def __init__(self, reading: Reading) -> None:
        self.reading = reading
        self.answer: Any = None


class KeptReading:
    """The last reading of a model's backend, or of all of them together; new where they change.

    Args:
        backends: all of the model's.
        max_age_seconds: how old a reading may be that is given again.
        read: reads anew.
    """

    def __init__(
        self, backends: Sequence[Backend], max_age_seconds: float, read: Callable[[], Reading]
    ) -> None:
        self._backends = backends
        self._shared = SingleFlight(max_age_seconds, lambda: SharedReading(read()))

    def is_of(self, backends: Sequence[Backend]) -> bool:
        """Whether these, and in this very registration, are still the model's backends."""
        return len(backends) == len(self._backends) and all(map(is_, backends, self._backends))

    def get(self, max_age_seconds: float | None = None) -> SharedReading:
        """Give the reading, joining who reads right now, or reading anew where it is too old.

        Args:
            max_age_seconds: another age than all others go by.
        """
        return self._shared.get(max_age_seconds)
