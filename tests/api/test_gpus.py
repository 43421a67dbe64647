"""Who uses the memory of GPUs, with devices that a file describes and real processes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from monitor_plugin import Gpu, GpuUse, Monitor

from ..gpus import GpuFile, make_gpu
from ..support import Client, Spawner, eventually, register

TREE = "sleep 1000 & echo $!; wait"


class Listed:
    """A monitor with the devices of a file, a backend of two processes, and another process."""

    def __init__(self, monitor: Monitor, file: GpuFile, spawner: Spawner) -> None:
        backend = spawner.process("sh", "-c", TREE)
        assert backend.stdout
        self.pid, self.child = backend.pid, int(backend.stdout.readline())
        self.other = spawner.sleeper().pid
        self.file = file
        self._client = Client(monitor.url or "")
        register(monitor, backend.pid)

    def read_one(self, gpu: Gpu) -> Any:
        """List one device, once its figures have been read."""
        self.file.write(gpu)
        found: list[Any] = []

        def is_listed() -> bool:
            self._client.request("GET", "/backends")  # finds the members
            found[:] = self._client.request("GET", "/gpus").json["gpus"]
            return [each["uuid"] for each in found] == [gpu.uuid]

        eventually(is_listed)
        return found[0]


@pytest.fixture
def listed(make_monitor: Callable[..., Monitor], tmp_path: Path, spawner: Spawner) -> Listed:
    file = GpuFile(tmp_path / "gpus.json")
    return Listed(make_monitor([file], gpu="off", listen="127.0.0.1:0"), file, spawner)


def test_used_memory_is_that_of_backends_of_others_and_unexplained(listed: Listed) -> None:
    """The sums agree, and there is no note."""
    gpu = listed.read_one(make_gpu({listed.pid: 100, listed.child: 50, listed.other: 30}))
    assert gpu["models"] == [{"model": "m", "pid": listed.pid, "memory": 150, "gtt": None}]
    (process,) = gpu["processes"]
    assert (process["pid"], process["memory"]) == (listed.other, 30)
    assert process["name"]
    assert process["user"]
    assert (gpu["ours"], gpu["others"], gpu["unexplained"]) == (150, 30, 420)
    assert gpu["note"] is None


def test_backend_with_an_unread_process_has_unknown_memory(listed: Listed) -> None:
    """What its other processes use would be too small a figure."""
    uses = {listed.pid: 100, listed.other: 30}
    gpu = listed.read_one(make_gpu(uses, uuid="a", unread=frozenset({listed.child})))
    assert gpu["models"] == [{"model": "m", "pid": listed.pid, "memory": None, "gtt": None}]
    assert (gpu["ours"], gpu["others"], gpu["unexplained"]) == (None, 30, None)
    assert gpu["note"] == "Processes of m cannot be read. Not known therefore: ours, unexplained."
    gpu = listed.read_one(make_gpu(uses, uuid="b", unread=frozenset({1})))
    assert (gpu["ours"], gpu["others"], gpu["unexplained"]) == (100, 30, 470)


def test_note_says_that_a_device_has_system_memory_alone(listed: Listed) -> None:
    """As an integrated GPU of Intel."""
    uses = [GpuUse(listed.pid, None, 70)]
    gpu = listed.read_one(Gpu(component="vram:i915:1", vendor="intel", uuid="a", uses=uses))
    assert gpu["models"] == [{"model": "m", "pid": listed.pid, "memory": None, "gtt": 70}]
    assert gpu["note"] == (
        "The driver reports system memory (gtt) alone. The driver does not report the memory in "
        "use. Not known therefore: ours, unexplained."
    )
