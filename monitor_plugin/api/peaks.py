"""Makes the answers of `/models/peaks` and `/fits`."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from msgspec.structs import asdict

from ..domain.fits import Fit
from ..domain.models import utc_datetime
from ..domain.peaks import GpuPeak, ModelPeaks
from .schemas import (
    FitsAnswer,
    GpuNeedItem,
    GpuPeakItem,
    IdleModelItem,
    MemoryNeedItem,
    PeaksAnswer,
    PeaksItem,
)


def peaks_answer(peaks: Iterable[ModelPeaks]) -> PeaksAnswer:
    """Make the answer of `/models/peaks`."""
    return PeaksAnswer([_peaks_item(each) for each in sorted(peaks, key=lambda each: each.model)])


def fits_answer(fit: Fit) -> FitsAnswer:
    """Make the answer of `/fits`."""
    return FitsAnswer(
        model=fit.model,
        fits=fit.fits,
        reason=fit.reason,
        loaded=fit.loaded,
        peaks=None if fit.peaks is None else _peaks_item(fit.peaks),
        memory=MemoryNeedItem(**asdict(fit.memory), missing=fit.memory.missing),
        gpus=[
            GpuNeedItem(
                component=each.component,
                uuid=each.uuid,
                needed=each.needed,
                free=each.free,
                missing=each.missing,
                others=list(each.others),
            )
            for each in fit.gpus
        ],
        unload=None
        if fit.unload is None
        else [IdleModelItem(**asdict(each)) for each in fit.unload],
    )


def _peaks_item(peaks: ModelPeaks) -> PeaksItem:
    return PeaksItem(
        model=peaks.model,
        memory=peaks.memory,
        memory_at=_datetime(peaks.memory_at),
        tree_memory=peaks.tree_memory,
        tree_memory_at=_datetime(peaks.tree_memory_at),
        gpus=[_gpu_peak_item(each) for each in peaks.gpus],
        ready_seconds=peaks.ready_seconds,
        ready_at=_datetime(peaks.ready_at),
        longest_ready_seconds=peaks.longest_ready_seconds,
        since=utc_datetime(peaks.since),
        last_seen_at=utc_datetime(peaks.last_seen_at),
    )


def _gpu_peak_item(peak: GpuPeak) -> GpuPeakItem:
    return GpuPeakItem(
        component=peak.component,
        uuid=peak.uuid,
        memory=peak.memory,
        memory_at=utc_datetime(peak.memory_at),
        part_of_largest_sum=peak.part_of_largest_sum,
    )


def _datetime(seconds: float | None) -> datetime | None:
    return None if seconds is None else utc_datetime(seconds)
