"""Tells whether a model fits into the free memory, and which idle models would have to be stopped.

A model needs as much memory as its peaks, on the GPUs on which it reached its peak. The monitor
does not know on which GPU the host would start it.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from msgspec.structs import replace

from ..backends.registry import Registry
from ..domain.byte_sizes import format_bytes
from ..domain.fits import Fit, GpuNeed, IdleModel, MemoryNeed
from ..domain.gpus import (
    Gpu,
    divided_uuids,
    gpus_without_uses,
    gtt_component,
    is_gpu_component,
)
from ..domain.models import Observation, State
from ..domain.peaks import GpuPeak, ModelPeaks
from ..gpu.reader import GpuReader
from ..processes.limits import LimitsReader
from ..telemetry.peaks import PeakStore
from .sweeper import Sweeper

_MEMORY = "memory"  # the name of the machine's memory, beside the components of GPUs


class FitChecker:
    """Compares the peaks of a model with the free memory. Safe to call from any thread.

    Args:
        registry: the registered backends.
        sweeper: provides the last sweep, and the idle backends.
        peaks: the peaks of models.
        limits_reader: reads the limits of the monitor itself.
        gpu_reader: reads the GPUs of the machine.
    """

    def __init__(
        self,
        registry: Registry,
        sweeper: Sweeper,
        peaks: PeakStore,
        limits_reader: LimitsReader,
        gpu_reader: GpuReader,
    ) -> None:
        self._registry = registry
        self._sweeper = sweeper
        self._peaks = peaks
        self._limits_reader = limits_reader
        self._gpu_reader = gpu_reader

    def check(self, model: str) -> Fit:
        """Tell whether one more backend of a model fits; waits at most 1 s for a driver."""
        reading = self._gpu_reader.read()
        gpus = [_without_free(each) if reading.is_stale(each) else each for each in reading.gpus]
        peaks = next(iter(self._peaks.read(model)), None)
        gpu_needs = _gpu_needs(peaks, gpus)
        free = self._limits_reader.own().memory_available
        memory = MemoryNeed(needed=_needed_memory(peaks), free=free)
        missing = {each.component: each.missing for each in gpu_needs if each.missing}
        if memory.missing:
            missing[_MEMORY] = memory.missing
        unknown = _unknown(model, peaks, memory, gpu_needs, gpus)
        if peaks and math.isinf(reading.taken_at):
            unknown.append("a driver has not listed its GPUs yet")
        fits = False if missing else None if unknown else True
        reasons = [_describe_shortage(_MEMORY, memory)] if memory.missing else []
        reasons += [_describe_shortage(each.component, each) for each in gpu_needs if each.missing]
        unload: Sequence[IdleModel] | None = None if unknown else ()
        if missing and not unknown:
            unload = _choose(self._idle_models(model), missing)
            if unload is None:
                reasons.append("the models that are known to be idle hold too little")
        return Fit(
            model=model,
            fits=fits,
            reason="; ".join([*reasons, *unknown]) or None,
            loaded=len(self._registry.records(model)),
            peaks=peaks,
            memory=memory,
            gpus=gpu_needs,
            unload=None if unload is None else tuple(unload),
        )

    def _idle_models(self, wanted: str) -> list[IdleModel]:
        """List the models whose backends are all idle, longest idle first."""
        idle = self._sweeper.idle_seconds
        leaving = {each.backend for each in self._registry.records() if each.in_shutdown}
        by_model: dict[str, list[Observation]] = defaultdict(list)
        for observation in self._sweeper.last_sweep():
            by_model[observation.backend.model].append(observation)
        found = []
        for model, observations in by_model.items():
            seconds = [idle.get(each.backend, 0.0) for each in observations]
            is_leaving = any(each.backend in leaving for each in observations)
            is_ready = all(each.state == State.READY for each in observations)
            if model != wanted and is_ready and not is_leaving and all(seconds):
                found.append(_idle_model(model, min(seconds), observations))
        return sorted(found, key=lambda each: -each.idle_seconds)


def _without_free(gpu: Gpu) -> Gpu:
    """Return a GPU without its free memory, for a driver whose last answer is too old."""
    return replace(gpu, free=None, gtt_used=None)


def _idle_model(model: str, seconds: float, observations: Sequence[Observation]) -> IdleModel:
    memory, gpus = 0, defaultdict[str, int](int)
    for observation in observations:
        breakdown = observation.memory.breakdown if observation.memory else {}
        for name, amount in breakdown.items():
            if is_gpu_component(name):
                gpus[name] += amount
                memory += amount if name.startswith("gtt") else 0
        memory += _unreclaimable(observation)
    return IdleModel(model=model, idle_seconds=seconds, memory=memory, gpus=dict(gpus))


def _unreclaimable(observation: Observation) -> int:
    """Return the bytes of memory that a shutdown frees, without file pages.

    The kernel can drop file pages, so they count as available already.
    """
    tree = observation.tree
    if tree is None:
        return 0
    if tree.anonymous is not None and tree.shared is not None:
        return tree.anonymous + tree.shared
    return tree.pss or 0


def _choose(idle: Iterable[IdleModel], missing: Mapping[str, int]) -> Sequence[IdleModel] | None:
    """Choose the idle models whose shutdown frees what is missing.

    Models that have been idle for longest are preferred, and no chosen model is superfluous.

    Args:
        idle: the idle models, longest idle first.
        missing: bytes by component, and of `_MEMORY`.

    Returns:
        None if all idle models together hold too little.
    """
    short = dict(missing)  # what the chosen models do not free; negative: what they free in excess
    chosen: list[IdleModel] = []
    for candidate in idle:
        if any(short[name] > 0 and _freed(candidate, name) for name in short):
            chosen.append(candidate)
            for name in short:
                short[name] -= _freed(candidate, name)
    if any(amount > 0 for amount in short.values()):
        return None
    needed = []
    for candidate in reversed(chosen):
        without = {name: amount + _freed(candidate, name) for name, amount in short.items()}
        if any(amount > 0 for amount in without.values()):
            needed.append(candidate)
        else:
            short = without
    return needed[::-1]


def _freed(idle: IdleModel, name: str) -> int:
    return idle.memory if name == _MEMORY else idle.gpus.get(name, 0)


def _needed_memory(peaks: ModelPeaks | None) -> int | None:
    if peaks is None or peaks.tree_memory is None:
        return None
    gtt = sum(each.part_of_largest_sum for each in peaks.gpus if each.component.startswith("gtt:"))
    return peaks.tree_memory + gtt


def _gpu_needs(peaks: ModelPeaks | None, gpus: Sequence[Gpu]) -> tuple[GpuNeed, ...]:
    """Return the needs on each GPU of the machine, then on needed GPUs that are not seen now."""
    free: dict[str, int | None] = {}
    for gpu in gpus:
        free[gpu.component] = gpu.free
        if gpu.gtt_total is not None and gpu.gtt_used is not None:
            free[gtt_component(gpu)] = max(0, gpu.gtt_total - gpu.gtt_used)
    uuids = {gpu.component: gpu.uuid for gpu in gpus}
    needed = dict.fromkeys(uuids, None if peaks is None else 0)
    for each in peaks.gpus if peaks else ():
        if each.part_of_largest_sum:
            component = _component_now(each, gpus)
            needed[component], uuids[component] = each.part_of_largest_sum, each.uuid
    return tuple(
        GpuNeed(
            component=component,
            uuid=uuids[component],
            needed=amount,
            free=free.get(component),
            others=_others(component, needed, gpus),
        )
        for component, amount in needed.items()
    )


def _component_now(peak: GpuPeak, gpus: Sequence[Gpu]) -> str:
    """Return the present component of a peak's GPU, whose index may have changed since."""
    for gpu in gpus:
        if peak.uuid is not None and gpu.uuid == peak.uuid:
            return gtt_component(gpu) if peak.component.startswith("gtt:") else gpu.component
    return peak.key


def _others(
    component: str, needed: Mapping[str, int | None], gpus: Sequence[Gpu]
) -> tuple[str, ...]:
    """List the other GPUs of the same vendor that have as much free as is needed on a GPU."""
    amount = needed[component]
    vendors = {gpu.vendor for gpu in gpus if gpu.component == component}
    divided = divided_uuids(gpus)
    return tuple(
        gpu.component
        for gpu in gpus
        if amount and not needed[gpu.component] and gpu.vendor in vendors
        if gpu.uuid not in divided and (gpu.free or 0) >= amount
    )


def _unknown(
    model: str,
    peaks: ModelPeaks | None,
    memory: MemoryNeed,
    gpu_needs: Sequence[GpuNeed],
    gpus: Sequence[Gpu],
) -> list[str]:
    """Describe the unknown figures because of which it is not known whether the model fits."""
    if peaks is None:
        return [f"the monitor has seen no backend of model {model!r}, so its peaks are not known"]
    unknown = []
    if memory.needed is None:
        unknown.append("the memory of its process tree was never known")
    if memory.free is None:
        unknown.append("the free memory of the machine is not known")
    for each in gpu_needs:
        if each.needed and each.free is None:
            unknown.append(f"the free memory of {each.component} is not known")
    if not any(each.needed for each in gpu_needs):
        for gpu in gpus_without_uses(gpus):
            why = gpu.note or "the driver does not tell which processes use it"
            unknown.append(f"it is not known whether it needs {gpu.component}: {why}")
    return unknown


def _describe_shortage(name: str, need: MemoryNeed) -> str:
    return f"{name}: {format_bytes(need.needed or 0)} needed, {format_bytes(need.free or 0)} free"
