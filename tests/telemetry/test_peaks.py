"""The peaks of models in memory: what of an observation counts, and how many models are kept."""

from __future__ import annotations

from typing import Any

import pytest

from monitor_plugin.domain import peaks as records
from monitor_plugin.domain.gpus import Gpu
from monitor_plugin.domain.models import Backend, Memory, Observation, ProcessUsage, TreeUsage
from monitor_plugin.domain.peaks import MAX_DEVICES
from monitor_plugin.telemetry import peaks
from monitor_plugin.telemetry.peaks import PeakStore


def observed(model: str = "m", **fields: Any) -> Observation:
    return Observation(backend=Backend(model, 1, "unix:/m", 1.0), **fields)


def held(total: int, source: str | None = "pss", **components: int) -> dict[str, Any]:
    """Return the memory of an observation; `vram__x` stands for the component `vram:x`."""
    breakdown = {name.replace("__", ":"): amount for name, amount in components.items()}
    return {"memory": Memory(total, breakdown), "memory_source": source}


def peaks_of(*observations: Observation, gpus: tuple[Gpu, ...] = ()) -> records.ModelPeaks:
    store = PeakStore(None)
    for each in observations:
        store.add([each], gpus)
    (found,) = store.read()
    return found


def test_memory_is_the_highest_total_of_any_source() -> None:
    """The memory of the tree is PSS or RSS, also where the backend reports another total."""
    found = peaks_of(observed(**held(5)), observed(**held(7)), observed(**held(6)))
    assert (found.memory, found.tree_memory) == (7, 7)
    found = peaks_of(observed(**held(100, "backend"), tree=TreeUsage(processes=2, pss=8)))
    assert (found.memory, found.tree_memory) == (100, 8)
    found = peaks_of(observed(**held(100, "backend")))
    assert (found.memory, found.tree_memory) == (100, None)
    found = peaks_of(observed())
    assert (found.memory, found.memory_at, found.tree_memory_at) == (None, None, None)


def test_rss_of_several_processes_counts_only_where_pss_cannot_be_read() -> None:
    """They share pages, and the list shows their RSS until PSS is read."""
    for processes, awaits_pss, known in ((1, True, 7), (2, True, None), (2, False, 7)):
        tree = TreeUsage(processes=processes, rss=7)
        found = peaks_of(observed(**held(100, "backend"), tree=tree, awaits_pss=awaits_pss))
        assert found.tree_memory == known
    for processes, awaits_pss, expected in ((1, True, 9), (2, True, 5), (2, False, 9)):
        tree = TreeUsage(processes=processes)
        high = observed(**held(9, "rss"), tree=tree, awaits_pss=awaits_pss)
        found = peaks_of(high, observed(**held(5), tree=tree))
        assert (found.memory, found.tree_memory) == (expected, expected)


def test_peak_rss_of_the_registered_process_counts() -> None:
    """The kernel keeps what a process held between two sweeps. Without a total it is not enough."""
    process = ProcessUsage(peak_rss=9)
    tree = TreeUsage(processes=2, peak_rss=99)
    found = peaks_of(observed(**held(5), process=process, tree=tree))
    assert (found.memory, found.tree_memory) == (5, 9)
    found = peaks_of(observed(**held(5, "rss"), process=process, tree=tree, awaits_pss=True))
    assert (found.memory, found.tree_memory) == (None, None)


def test_peaks_of_replicas_are_not_added_up() -> None:
    """Two replicas are not added up."""
    assert peaks_of(observed(**held(5)), observed(**held(6))).memory == 6


def test_gpu_components_get_the_uuids_of_devices() -> None:
    """Memory on a device and system memory through it are apart; a plain `vram` is a sum."""
    device = Gpu(component="vram:amdgpu:0", vendor="amd", uuid="A")
    found = peaks_of(
        observed(**held(5, vram=9, vram__amdgpu__0=7, gtt__amdgpu__0=2, weights=4, vram__x=0)),
        gpus=(device,),
    )
    assert [(each.component, each.uuid, each.memory) for each in found.gpus] == [
        ("vram:amdgpu:0", "A", 7),
        ("gtt:amdgpu:0", "A", 2),
    ]
    (plain,) = peaks_of(observed(**held(5, vram=9))).gpus
    assert (plain.component, plain.uuid, plain.memory) == ("vram", None, 9)


def test_components_of_a_hostile_backend_are_bounded() -> None:
    """Names that cannot be kept are left out, and of very many the largest amounts are kept."""
    breakdown = {f"vram:{number}": number for number in range(1, 1000)}
    breakdown |= {"vram:\ud800": 10**6, "vram:" + "x" * 300: 10**6, "vram:\n": 10**6}
    found = peaks_of(observed(memory=Memory(1, breakdown), memory_source="backend"))
    assert len(found.gpus) == MAX_DEVICES
    assert max(each.memory for each in found.gpus) == 999


def test_time_to_ready_is_kept_when_it_is_known() -> None:
    """A backend that was READY before the monitor knew it gives no time."""
    found = peaks_of(observed(ready_at=50.0))
    assert (found.ready_seconds, found.longest_ready_seconds) == (None, None)
    found = peaks_of(observed(ready_at=50.0, ready_seconds=4.5))
    assert (found.ready_seconds, found.ready_at, found.ready_pid) == (4.5, 50.0, 1)


def test_store_drops_the_models_that_were_not_seen_for_longest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The number of models is bounded, in memory as well."""
    monkeypatch.setattr(peaks, "MAX_MODELS", 3)
    store = PeakStore(None)
    for name in ("a", "b", "c", "d"):
        store.add([observed(name, **held(5))], ())
    assert [each.model for each in store.read()] == ["b", "c", "d"]
    assert store.read("a") == []
    assert [each.model for each in store.read("c")] == ["c"]
