"""How the peaks of a model are combined: figures, GPUs and times to READY."""

from __future__ import annotations

from typing import Any

from monitor_plugin.domain.peaks import (
    MAX_DEVICES,
    SEEN_SECONDS,
    GpuPeak,
    ModelPeaks,
    merge_peaks,
)


def peaks(at: float = 1000.0, **fields: Any) -> ModelPeaks:
    times: dict[str, Any] = {
        f"{name}_at": at for name in ("memory", "tree_memory") if name in fields
    }
    return ModelPeaks(model="m", since=at, last_seen_at=at, **times, **fields)


def gpus(at: float = 1000.0, **amounts: int) -> ModelPeaks:
    """Return the memory that one backend holds at a time, on devices with these UUIDs."""
    found = [
        GpuPeak(
            component=f"vram:{uuid}",
            uuid=uuid,
            memory=amount,
            memory_at=at,
            part_of_largest_sum=amount,
        )
        for uuid, amount in amounts.items()
    ]
    return peaks(at, gpus=tuple(found))


def on_devices(found: ModelPeaks) -> dict[str | None, tuple[int, int]]:
    return {each.uuid: (each.memory, each.part_of_largest_sum) for each in found.gpus}


def test_higher_figure_replaces_a_lower_one_with_its_time() -> None:
    """A figure that is lower, equal or unknown changes nothing, and returns the same object."""
    old = peaks(memory=5, tree_memory=7)
    for new in (peaks(2000.0), peaks(2000.0, memory=5, tree_memory=6)):
        assert merge_peaks(old, new) is old
    found = merge_peaks(old, peaks(2000.0, memory=6, tree_memory=7))
    assert (found.memory, found.memory_at) == (6, 2000.0)
    assert (found.tree_memory, found.tree_memory_at) == (7, 1000.0)
    assert (found.since, found.last_seen_at) == (1000.0, 2000.0)


def test_time_of_the_last_observation_changes_hourly() -> None:
    """An observation without a peak changes the record only if the last change is an hour old."""
    old = peaks(memory=5)
    assert merge_peaks(old, peaks(1000.0 + SEEN_SECONDS - 1)) is old
    assert merge_peaks(old, peaks(1000.0 + SEEN_SECONDS)).last_seen_at == 1000.0 + SEEN_SECONDS
    assert merge_peaks(old, peaks(1.0, memory=6)).last_seen_at == 1000.0  # the clock was set back


def test_gpu_peaks_are_stored_by_device_and_for_the_highest_sum() -> None:
    """Each device has its own peak, and its part of the largest sum of one moment."""
    found = merge_peaks(gpus(a=5), gpus(2000.0, a=3, b=4))
    assert on_devices(found) == {"a": (5, 3), "b": (4, 4)}
    found = merge_peaks(found, gpus(3000.0, b=6))  # more on b alone, and less in all
    assert on_devices(found) == {"a": (5, 3), "b": (6, 4)}
    found = merge_peaks(found, gpus(4000.0, c=9))  # the host has moved the model
    assert on_devices(found) == {"a": (5, 0), "b": (6, 0), "c": (9, 9)}
    assert merge_peaks(found, gpus(5000.0, d=0)).gpus[-1].part_of_largest_sum == 0
    assert merge_peaks(found, gpus(5000.0, c=9)) is found


def test_gpu_keeps_its_peak_under_another_index() -> None:
    """The UUID identifies a device; without one, its component does."""
    first = GpuPeak(
        component="vram:nvidia0", uuid="A", memory=5, memory_at=1.0, part_of_largest_sum=5
    )
    second = GpuPeak(
        component="vram:nvidia1", uuid="A", memory=6, memory_at=2.0, part_of_largest_sum=6
    )
    found = merge_peaks(peaks(gpus=(first,)), peaks(gpus=(second,)))
    assert found.gpus == (second,)
    without = GpuPeak(component="vram", memory=7, memory_at=3.0)
    assert len(merge_peaks(found, peaks(gpus=(without,))).gpus) == 2


def test_model_keeps_a_bounded_number_of_devices() -> None:
    """Of very many components, the newest and those of the highest sum stay."""
    found = gpus(1.0, most=1000)
    for number in range(MAX_DEVICES + 10):
        found = merge_peaks(found, gpus(10.0 + number, **{f"d{number}": 5}))
    names = [each.uuid for each in found.gpus]
    assert len(names) == MAX_DEVICES
    assert names[0] == "most"
    assert names[-1] == f"d{MAX_DEVICES + 9}"


def ready(at: float, seconds: float, pid: int) -> ModelPeaks:
    return peaks(
        at, ready_seconds=seconds, ready_at=at, ready_pid=pid, longest_ready_seconds=seconds
    )


def test_last_and_longest_time_to_ready_are_stored() -> None:
    """Each backend counts once, even if a restarted monitor sees its READY later."""
    found = ready(1000.0, 20.0, 1)
    assert merge_peaks(found, ready(1600.0, 620.5, 1)) is found  # the same process, seen again
    found = merge_peaks(found, ready(2000.0, 10.0, 2))
    assert (found.ready_seconds, found.longest_ready_seconds) == (10.0, 20.0)
    assert merge_peaks(found, ready(1000.0, 20.0, 1)) is found  # a replica that was ready before
    found = merge_peaks(found, ready(3000.0, 30.0, 1))  # the PID was used again
    assert (found.ready_seconds, found.longest_ready_seconds, found.ready_at) == (
        30.0,
        30.0,
        3000.0,
    )
