"""Whether one more backend of a model fits into the memory that is free."""

from __future__ import annotations

import msgspec

from .models import Bytes
from .peaks import ModelPeaks


class MemoryNeed(msgspec.Struct, frozen=True, kw_only=True):
    """What a model needs of one memory. Sizes in bytes; None: not known.

    Attributes:
        needed: the most that one backend of the model held there.
        free: what is free now.
    """

    needed: Bytes | None
    free: Bytes | None

    @property
    def missing(self) -> int | None:
        """How much more than `free` is needed; 0 if it fits."""
        if self.needed is None or self.free is None:
            return None
        return max(0, self.needed - self.free)


class GpuNeed(MemoryNeed, frozen=True, kw_only=True):
    """What a model needs of one GPU.

    Attributes:
        component: the name of the GPU in `memory.breakdown`; `gtt:...` for system memory that is
            used through a GPU.
        uuid: identifies the GPU; None if it is not known.
        others: the components of other GPUs of the same vendor which have as much free, and of
            which the model needs nothing.
    """

    component: str
    uuid: str | None = None
    others: tuple[str, ...] = ()


class IdleModel(msgspec.Struct, frozen=True, kw_only=True):
    """A loaded model whose backends are all idle, and what its shutdown would free.

    Attributes:
        model: the model.
        idle_seconds: how long all of its backends have been idle.
        memory: bytes of the machine's memory, without file pages, which the kernel can drop anyway.
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
        memory: what it needs of the machine's memory.
        gpus: each GPU of the machine, and what the model needs of it.
        unload: the idle models that would have to go, longest idle first: empty if it fits, None if
            `fits` is None or the idle models together hold too little.
    """

    model: str
    fits: bool | None
    reason: str | None
    loaded: int
    peaks: ModelPeaks | None
    memory: MemoryNeed
    gpus: tuple[GpuNeed, ...]
    unload: tuple[IdleModel, ...] | None
