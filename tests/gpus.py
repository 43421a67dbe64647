"""GPUs for tests, read from a JSON file that a test may change at any time.

In the test's process, pass a `GpuFile` as a plugin of a monitor, or as a provider of a `GpuReader`.
A monitor process of its own loads this file by its setting `hook`, and finds the JSON file by the
environment variable MONITOR_TEST_GPUS.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from monitor_plugin import Gpu, GpuUse, hookimpl

VARIABLE = "MONITOR_TEST_GPUS"
# The path of this file, for the setting `hook`.
HOOK = str(Path(__file__).resolve())


class _Content(msgspec.Struct):
    gpus: list[Gpu] = []
    fault: str | None = None


class GpuFile:
    """The file.

    Args:
        path: the path of the file. While there is no file, there is no GPU.

    Attributes:
        reads: how often the devices were read.
        closes: how often the driver was released.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.reads = self.closes = 0

    def write(self, *gpus: Gpu, fault: str | None = None) -> None:
        """Replace the devices.

        Args:
            gpus: the devices.
            fault: `hang`: a read does not return while the file has this fault; `raise`: it raises;
                `rubbish`: it returns what no hook should.
        """
        draft = self.path.with_suffix(".draft")
        draft.write_bytes(msgspec.json.encode(_Content(list(gpus), fault)))
        draft.replace(self.path)

    def read(self) -> Sequence[Gpu]:
        """Read the devices, with the fault."""
        self.reads += 1
        while (content := self._content()).fault == "hang":
            time.sleep(0.01)
        if content.fault == "raise":
            raise RuntimeError("the driver is not loaded")
        return "rubbish" if content.fault == "rubbish" else content.gpus  # type: ignore[return-value]

    def close(self) -> None:
        """Count the call."""
        self.closes += 1

    def _content(self) -> _Content:
        try:
            return msgspec.json.decode(self.path.read_bytes(), type=_Content)
        except FileNotFoundError:
            return _Content()

    @hookimpl
    def monitor_list_gpus(self) -> Sequence[Gpu]:
        """List the devices."""
        return self.read()


def make_gpu(uses: Mapping[int, int | None] | None = None, **fields: Any) -> Gpu:
    """Make a GPU of 1000 bytes, of which 600 are used.

    Args:
        uses: the bytes that each process uses, by PID.
        fields: other values of the fields of `Gpu`.
    """
    common = {
        "component": "vram:test0",
        "vendor": "test",
        "uuid": "GPU-0",
        "index": 0,
        "name": "Test GPU",
        "total": 1000,
        "used": 600,
        "free": 400,
        "uses": None if uses is None else [GpuUse(pid, memory) for pid, memory in uses.items()],
    }
    return Gpu(**{**common, **fields})


@hookimpl
def monitor_list_gpus() -> Sequence[Gpu]:
    """List the devices of the file that the environment variable names."""
    return GpuFile(os.environ[VARIABLE]).read()


class OneGpu:
    """A plugin with one GPU, of which a test sets the figures."""

    def __init__(self, utilization_percent: float | None, *pids: int) -> None:
        self.utilization_percent = utilization_percent
        self.pids = pids

    @hookimpl
    def monitor_list_gpus(self) -> Sequence[Gpu]:
        """List the GPU."""
        uses = [GpuUse(pid, 2**20) for pid in self.pids]
        percent = self.utilization_percent
        return [Gpu(component="vram:0", vendor="acme", utilization_percent=percent, uses=uses)]
