"""The interface of a provider of GPUs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from ..domain.gpus import Gpu


class GpuProvider(Protocol):
    """Reads the GPUs of one family of drivers. `GpuReader` calls it on one thread at a time."""

    def read(self) -> Sequence[Gpu]:
        """Read all devices. A device or library that fails is logged once, and left out.

        May block for as long as the driver does.
        """

    def close(self) -> None:
        """Release the driver."""
