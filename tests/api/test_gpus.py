"""The list of GPUs: the users of each GPU's memory, with sums that agree."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest

from monitor_plugin import Backend, Gpu, GpuUse
from monitor_plugin.api.gpus import GpuLister
from monitor_plugin.api.schemas import GpuItem, GpuModelItem, GpuProcessItem, NodeGpuItem
from monitor_plugin.gpu.reader import GpuReader
from monitor_plugin.gpu.reading import STALE_SECONDS, DeviceReading, GpuProcess, GpuReading
from monitor_plugin.processes.members import Members

from ..gpus import make_gpu

# The members of three backends, as PIDs of processes with the start time 1. Two share a member.
MEMBERS = {"a": [10, 11], "b": [20, 11], "idle": [30]}


class FakeRecord:
    def __init__(self, model: str, pids: list[int]) -> None:
        self.backend = Backend(model, pids[0], "", 1.0)
        self.members = Members((pids[0], 1.0), [(pid, 1.0) for pid in pids[1:]])


RECORDS = [FakeRecord(model, pids) for model, pids in MEMBERS.items()]


def list_gpus(*gpus: Gpu, age: float = 0.0, node: str | None = None) -> list[GpuItem]:
    """List GPUs of a reading in which PIDs below 1000 run, with the start time 1."""
    taken_at = time.monotonic() - age
    processes = {
        use.pid: GpuProcess(1.0, f"name{use.pid}", "alice")
        for gpu in gpus
        for use in gpu.uses or ()
        if use.pid < 1000
    }
    device = DeviceReading(taken_at, processes)
    registry: Any = SimpleNamespace(records=lambda: RECORDS)
    reading = GpuReading(gpus, taken_at, {gpu.component: device for gpu in gpus})
    table: Any = SimpleNamespace(identities=lambda members: members.identities())
    return GpuLister(registry, table, GpuReader(), node).list(reading)


def sums(item: GpuItem) -> tuple[int | None, int | None, int | None]:
    return item.ours, item.others, item.unexplained


def test_used_memory_is_divided_by_holder() -> None:
    """A process of two backends counts for each of them, and once in the sum."""
    (item,) = list_gpus(make_gpu({10: 100, 11: 50, 20: 200, 40: 7, 1001: 3}))
    assert item.models == [GpuModelItem("a", 10, 150), GpuModelItem("b", 20, 250)]
    assert item.processes == [
        GpuProcessItem(40, "name40", "alice", 7),
        GpuProcessItem(1001, None, None, 3),  # it has ended, and the driver still lists it
    ]
    assert sums(item) == (350, 10, 240)
    assert sum(each or 0 for each in sums(item)) == item.used == 600
    assert (item.free, item.total, item.note) == (400, 1000, None)


def test_device_that_nobody_uses_is_unexplained() -> None:
    """The driver itself uses some memory."""
    (item,) = list_gpus(make_gpu({}))
    assert sums(item) == (0, 0, 600)


@pytest.mark.parametrize(
    ("gpu", "expected", "words"),
    [
        (make_gpu(None), (None, None, None), "the driver does not list them"),
        (make_gpu(None, note="Use --pid=host."), (None, None, None), "Use --pid=host."),
        (make_gpu({10: None, 40: 5}), (None, 5, None), "PID 10. Not known therefore: ours, unexpl"),
        (make_gpu({10: 5, 40: None}), (5, None, None), "others, unexplained"),
        (make_gpu({10: None}, total=None, used=None), (None, 0, None), "the memory of PID 10."),
        (make_gpu(dict.fromkeys(range(40, 50))), (0, None, None), "44 and 5 others"),
        (make_gpu({10: 5, 40: 6}, used=None), (5, 6, None), "the memory in use. Not known"),
        (make_gpu({10: 500, 40: 101}), (500, 101, None), "1 bytes more"),
        (
            make_gpu({10: 5, 40: 6}, unread=frozenset({11})),
            (None, 6, None),
            "Processes of a, b",
        ),
        (make_gpu({10: 5, 40: 6}, unread=frozenset({41})), (5, 6, 589), None),
    ],
)
def test_note_says_which_part_is_not_known(
    gpu: Gpu, expected: tuple[int | None, ...], words: str | None
) -> None:
    """No part is negative, or a guess."""
    (item,) = list_gpus(gpu)
    assert sums(item) == expected
    assert item.note is None if words is None else words in (item.note or "")
    if gpu.note:
        assert item.note == gpu.note


def test_memory_of_a_model_is_unknown_if_the_memory_of_a_member_is() -> None:
    (item,) = list_gpus(make_gpu({10: 5, 11: None, 20: 7}))
    assert item.models == [GpuModelItem("a", 10, None), GpuModelItem("b", 20, None)]


def test_memory_of_a_model_with_an_unread_process_is_unknown() -> None:
    """The sum of its other processes would be too small."""
    (item,) = list_gpus(make_gpu({20: 5, 10: 7}, unread=frozenset({21, 30, 10})))
    assert item.models == [GpuModelItem("b", 20, 5), GpuModelItem("a", 10, None)]
    (item,) = list_gpus(make_gpu({}, unread=frozenset({11})))
    assert "Processes of a, b cannot be read" in (item.note or "")


def test_device_without_memory_of_its_own_has_system_memory() -> None:
    """The figures of the memory on the device are unknown, and the note says why."""
    uses = [GpuUse(10, None, 50), GpuUse(40, None, 7)]
    gpu = Gpu(component="vram:i915:0", vendor="intel", gtt_total=1000, uses=uses)
    (item,) = list_gpus(gpu)
    assert item.models == [GpuModelItem("a", 10, None, 50)]
    assert [each.gtt for each in item.processes] == [7]
    assert sums(item) == (None, None, None)
    assert "system memory (gtt) alone" in (item.note or "")


def test_item_has_the_age_of_its_device() -> None:
    (item,) = list_gpus(make_gpu({}), age=3)
    assert item.age_seconds == pytest.approx(3, abs=2)
    assert item.note is None
    (item,) = list_gpus(make_gpu({}), age=STALE_SECONDS + 1)
    assert "has not answered for 3" in (item.note or "")


def test_items_of_a_node_have_its_name() -> None:
    (item,) = list_gpus(make_gpu({}), node="n")
    assert isinstance(item, NodeGpuItem)
    assert item.node == "n"
