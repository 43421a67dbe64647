"""Whether one more backend of a model fits into the memory that is free."""

from __future__ import annotations

import msgspec

from .models import Bytes
from .peaks import ModelPeaks


class MemoryNeed(msgspec.Struct, frozen=True, kw_only=True):
    """How much of one memory a model needs. Sizes in bytes; None: not known.

    Attributes:
        needed: the most of this memory that one backend of the model held.
        free: how much of this memory is free now.
    """

    needed: Bytes | None
    free: Bytes | None

    @property
    def missing(self) -> int | None:
        """How much more than `free` is needed; 0 if there is enough."""
        if self.needed is None or self.free is None:
            return None
        return max(0, self.needed - self.free)


class GpuNeed(MemoryNeed, frozen=True, kw_only=True):
    """How much memory of one GPU a model needs.

    Attributes:
        component: the name of the GPU in `memory.breakdown`; `gtt:...` for system memory that is
            used through a GPU.
        uuid: identifies the GPU; None if it is not known.
        others: the components of other GPUs of the same vendor that have as much memory free, and
            that the model does not use itself.
    """

    component: str
    uuid: str | None = None
    others: tuple[str, ...] = ()


class IdleModel(msgspec.Struct, frozen=True, kw_only=True):
    """A loaded model whose backends are all idle, and the memory that its shutdown would free.

    Attributes:
        model: the model.
        idle_seconds: how long all of its backends have been idle.
        memory: bytes of the machine's memory, without file pages, which count as free already.
        gpus: bytes by component.
    """

    model: str
    idle_seconds: float
    memory: Bytes
    gpus: dict[str, Bytes]


class Fit(msgspec.Struct, frozen=True, kw_only=True):
    """Whether one more backend of a model fits.

    Attributes:
        model: the model.
        fits: whether its peaks fit into what is free now; None if that is not known.
        reason: why it does not fit, or what is not known; None if it fits.
        loaded: how many backends the model has now.
        peaks: the peaks of the model; None if the monitor has never seen one of its backends.
        memory: how much of the machine's memory the model needs.
        gpus: the needs on each GPU of the machine, then on needed GPUs that are not seen now.
        unload: the idle models that would have to be shut down, longest idle first. Empty if the
            model fits. None if a figure that matters is not known, or if the idle models hold too
            little.
    """

    model: str
    fits: bool | None
    reason: str | None
    loaded: int
    peaks: ModelPeaks | None
    memory: MemoryNeed
    gpus: tuple[GpuNeed, ...]
    unload: tuple[IdleModel, ...] | None
