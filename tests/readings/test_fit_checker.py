"""Whether a model fits: needs, free memory, unknown figures, and idle models to shut down."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from monitor_plugin.domain.fits import Fit
from monitor_plugin.domain.gpus import Gpu
from monitor_plugin.domain.models import (
    Backend,
    Limits,
    Memory,
    Observation,
    Reading,
    State,
    Status,
    TreeUsage,
)
from monitor_plugin.gpu.reading import STALE_SECONDS, GpuReading
from monitor_plugin.readings.fit_checker import FitChecker
from monitor_plugin.telemetry.peaks import PeakStore

from ..gpus import make_gpu

GIB = 1 << 30


class Machine:
    """A machine with some free memory, GPUs and loaded models."""

    def __init__(self, free: int | None, *gpus: Gpu, gpu_age: float = 0.0) -> None:
        self.free, self.gpus, self.gpu_age = free, gpus, gpu_age
        self.store = PeakStore(None)
        self.idle_seconds: dict[Backend, float] = {}
        self.records: list[Any] = []

    def had(self, model: str, memory: int | None, **gpus: int) -> None:
        """Let one backend of a model have held memory, and bytes on GPUs: `test0=5`."""
        backend = Backend(model, 1, "unix:/m", 1.0)
        held = None if memory is None else Memory(memory, components(gpus))
        self.store.add([Observation(backend=backend, memory=held, memory_source="pss")], self.gpus)

    def load(
        self,
        model: str,
        idle: float = 0.0,
        memory: int = 0,
        state: int = State.READY,
        in_shutdown: bool = False,
        tree: dict[str, int] | None = None,
        **gpus: int,
    ) -> None:
        """Load a backend of a model. `idle` is for how long it is known to be idle."""
        pid = 10 + len(self.records)
        backend = Backend(model, pid, f"unix:/{pid}", 1.0)
        held = Memory(memory, components(gpus))
        reading = Reading(backend, Status(state, held), None, "grpc", None, time.time())
        observation = Observation(
            backend=backend,
            reading=reading,
            memory=held,
            memory_source="pss",
            tree=TreeUsage(processes=1, **(tree or {"pss": memory})),
        )
        record = SimpleNamespace(backend=backend, in_shutdown=in_shutdown, observation=observation)
        self.records.append(record)
        if idle:
            self.idle_seconds[backend] = idle

    def check(self, model: str) -> Fit:
        taken_at = time.monotonic() - self.gpu_age
        registry: Any = SimpleNamespace(
            records=lambda model=None: [
                each for each in self.records if model in (None, each.backend.model)
            ]
        )
        sweeper: Any = SimpleNamespace(
            idle_seconds=self.idle_seconds,
            last_sweep=lambda: [each.observation for each in self.records],
        )
        limits: Any = SimpleNamespace(own=lambda: Limits(memory_available=self.free))
        gpus: Any = SimpleNamespace(read=lambda: GpuReading(self.gpus, taken_at))
        return FitChecker(registry, sweeper, self.store, limits, gpus).check(model)


def components(gpus: dict[str, int]) -> dict[str, int]:
    return {
        name.replace("__", ":") if "__" in name else f"vram:{name}": amount
        for name, amount in gpus.items()
    }


def proposed(fit: Fit) -> Sequence[str] | None:
    return None if fit.unload is None else [each.model for each in fit.unload]


def test_model_fits_into_the_free_memory() -> None:
    """Its peaks are compared with the free memory of the machine and of the GPU."""
    machine = Machine(5 * GIB, make_gpu({}, free=3 * GIB))
    machine.had("m", 4 * GIB, test0=3 * GIB)
    fit = machine.check("m")
    assert (fit.fits, fit.reason, fit.loaded, fit.unload) == (True, None, 0, ())
    assert (fit.memory.needed, fit.memory.free, fit.memory.missing) == (4 * GIB, 5 * GIB, 0)
    (gpu,) = fit.gpus
    assert (gpu.component, gpu.uuid) == ("vram:test0", "GPU-0")
    assert (gpu.needed, gpu.free, gpu.missing) == (3 * GIB, 3 * GIB, 0)
    assert fit.peaks
    assert fit.peaks.memory == 4 * GIB


def test_model_does_not_fit_where_one_memory_is_short() -> None:
    """The reason names each memory that is short, with both figures."""
    machine = Machine(2 * GIB, make_gpu({}, free=GIB))
    machine.had("m", 4 * GIB, test0=3 * GIB)
    fit = machine.check("m")
    assert (fit.fits, fit.unload) == (False, None)
    assert (fit.memory.missing, fit.gpus[0].missing) == (2 * GIB, 2 * GIB)
    assert fit.reason == (
        "memory: 4.0 GiB needed, 2.0 GiB free; vram:test0: 3.0 GiB needed, 1.0 GiB free; "
        "the models that are known to be idle hold too little"
    )


def test_model_without_peaks_is_unknown() -> None:
    """The free memory is reported nevertheless."""
    fit = Machine(5 * GIB, make_gpu({}, free=3 * GIB)).check("m")
    assert (fit.fits, fit.peaks, fit.unload) == (None, None, None)
    assert fit.reason == "the monitor has seen no backend of model 'm', so its peaks are not known"
    assert (fit.memory.needed, fit.memory.free, fit.memory.missing) == (None, 5 * GIB, None)
    assert (fit.gpus[0].needed, fit.gpus[0].free, fit.gpus[0].missing) == (None, 3 * GIB, None)


def test_unknown_figures_are_named() -> None:
    """Free memory, a GPU that is not there, a driver that hangs, and memory never read."""
    machine = Machine(None)
    machine.had("m", 4)
    assert machine.check("m").reason == "the free memory of the machine is not known"
    machine = Machine(5)
    machine.had("m", None)
    assert machine.check("m").reason == "the memory of its process tree was never known"
    machine = Machine(5)
    machine.had("m", 4, gone=1)
    fit = machine.check("m")
    assert (fit.fits, fit.reason) == (None, "the free memory of vram:gone is not known")
    machine = Machine(5, make_gpu({}, free=9), gpu_age=STALE_SECONDS + 1)
    machine.had("m", 4, test0=1)
    assert machine.check("m").reason == "the free memory of vram:test0 is not known"


def test_driver_that_never_answered_makes_the_needs_unknown() -> None:
    """The model may need the GPUs of that driver."""
    machine = Machine(5, gpu_age=math.inf)
    machine.had("m", 4)
    fit = machine.check("m")
    assert (fit.fits, fit.reason) == (None, "a driver has not listed its GPUs yet")


def test_certain_shortage_outweighs_unknown_figures() -> None:
    """The model does not fit, but it is not known which models would have to go."""
    machine = Machine(2, make_gpu({}, free=None))
    machine.had("m", 4, test0=1)
    machine.load("idle", idle=60.0, memory=4)
    fit = machine.check("m")
    assert (fit.fits, fit.unload) == (False, None)
    assert fit.reason == (
        "memory: 4 B needed, 2 B free; the free memory of vram:test0 is not known"
    )


def test_gpu_without_listed_uses_makes_the_need_unknown() -> None:
    """In a container without the PIDs of the host, a model seems to use no GPU."""
    machine = Machine(5, make_gpu(None, note="run the container with --pid=host"))
    machine.had("m", 4)
    assert machine.check("m").reason == (
        "it is not known whether it needs vram:test0: run the container with --pid=host"
    )
    machine.had("m", 4, test0=1)  # a hook knows
    assert machine.check("m").fits is True
    instance = make_gpu({}, component="vram:test0:mig1", uuid="MIG-1", parent="GPU-0", free=9)
    machine = Machine(5, make_gpu(None), instance)  # the instances of a divided GPU tell it
    machine.had("m", 4)
    assert machine.check("m").fits is True


def test_gpu_is_found_by_its_uuid() -> None:
    """After a restart of the machine the index may be that of another GPU."""
    machine = Machine(5, make_gpu({}, free=9))
    machine.had("m", 4, test0=7)
    machine.gpus = (
        make_gpu({}, uuid="GPU-1", free=1),
        make_gpu({}, component="vram:test1", free=8),
    )
    fit = machine.check("m")
    assert [(each.component, each.needed) for each in fit.gpus] == [
        ("vram:test0", 0),
        ("vram:test1", 7),
    ]
    assert fit.fits is True
    machine.gpus = (make_gpu({}, uuid="GPU-1", free=9),)
    assert machine.check("m").reason == "the free memory of vram:GPU-0 is not known"


def test_other_gpus_with_room_are_named_and_do_not_count() -> None:
    """The monitor does not know where the host would place the model."""
    different: list[dict[str, Any]] = [
        {"free": 1},
        {"free": 7},
        {"free": 6},
        {"free": 9, "vendor": "other"},
        {"free": 9},
        {"free": 8, "parent": "GPU-4"},
    ]
    gpus = [
        make_gpu({}, component=f"vram:test{number}", uuid=f"GPU-{number}", **fields)
        for number, fields in enumerate(different)
    ]
    machine = Machine(5, *gpus)
    machine.had("m", 4, test0=7)
    fit = machine.check("m")
    assert fit.fits is False
    assert fit.gpus[0].others == ("vram:test1", "vram:test5")


def test_needs_are_those_of_one_moment() -> None:
    """A model that the host has moved to another GPU does not need both."""
    machine = Machine(5, make_gpu({}, free=0), make_gpu({}, component="vram:b", uuid="B", free=9))
    machine.had("m", 4, test0=5)
    machine.had("m", 4, b=6)
    fit = machine.check("m")
    assert [each.needed for each in fit.gpus] == [0, 6]
    assert fit.fits is True


def test_system_memory_of_a_gpu_is_needed_twice() -> None:
    """GTT is memory of the machine, and limited by the driver."""
    gpu = make_gpu({}, component="vram:a", uuid="A", free=9, gtt_total=8, gtt_used=5)
    machine = Machine(9, gpu)
    machine.had("m", 4, vram__a=1, gtt__a=4)
    fit = machine.check("m")
    assert fit.memory.needed == 8
    assert [(each.component, each.needed, each.free) for each in fit.gpus] == [
        ("vram:a", 1, 9),
        ("gtt:a", 4, 3),
    ]
    assert fit.fits is False


def test_longest_idle_models_are_proposed() -> None:
    """Only needed models are proposed, and no model that frees nothing of the short memory."""
    machine = Machine(9, make_gpu({}, free=1))
    machine.had("m", 4, test0=7)
    machine.load("young", idle=10.0, test0=9)
    machine.load("middle", idle=700.0, test0=3)
    machine.load("old", idle=800.0, test0=3)
    machine.load("oldest", idle=900.0, memory=9)  # holds nothing on the GPU
    assert proposed(machine.check("m")) == ["old", "middle"]
    machine.had("m", 4, test0=8)
    fit = machine.check("m")
    assert proposed(fit) == ["young"]  # the others would not suffice without it, and are not needed
    assert fit.unload
    assert fit.unload[0].gpus == {"vram:test0": 9}


def test_models_are_proposed_for_the_machine_and_for_a_gpu() -> None:
    """Each memory that is short must be freed."""
    machine = Machine(2, make_gpu({}, free=1))
    machine.had("m", 4, test0=3)
    machine.load("cpu", idle=60.0, memory=2)
    machine.load("gpu", idle=50.0, test0=2)
    machine.load("both", idle=40.0, memory=9, test0=9)
    assert proposed(machine.check("m")) == ["cpu", "gpu"]


def test_only_models_that_are_known_to_be_idle_are_proposed() -> None:
    """All replicas must be idle; busy, unknown, leaving and the wanted model itself stay."""
    machine = Machine(2)
    machine.had("m", 4)
    machine.load("m", idle=900.0, memory=9)
    machine.load("unknown", memory=9)
    machine.load("busy", idle=60.0, memory=9, state=State.BUSY)  # since the last sweep
    machine.load("leaving", idle=60.0, memory=9, in_shutdown=True)
    machine.load("half", idle=60.0, memory=9)
    machine.load("half", memory=9)
    fit = machine.check("m")
    assert (fit.fits, fit.unload, fit.loaded) == (False, None, 1)
    machine.load("idle", idle=30.0, memory=1)
    machine.load("idle", idle=20.0, memory=1)
    fit = machine.check("m")
    assert fit.unload
    assert [(each.model, each.idle_seconds, each.memory) for each in fit.unload] == [
        ("idle", 20.0, 2)
    ]


def test_shutdown_frees_no_file_pages() -> None:
    """They count as available already, as the kernel can drop them."""
    machine = Machine(2)
    machine.had("m", 4)
    tree = {"pss": 9, "anonymous": 1, "shared": 0, "file": 8}
    machine.load("mapped", idle=60.0, memory=9, tree=tree)
    assert machine.check("m").unload is None
    machine.load("other", idle=50.0, memory=9, tree={**tree, "shared": 1})
    assert proposed(machine.check("m")) == ["other"]
