"""GPU memory of each backend's process tree, by NVIDIA device, through NVML.

Adds `vram:nvidia0`, `vram:nvidia1`... to `memory.breakdown`: bytes, by NVML's index of the device
(of all its MIG instances together). A device is left out where no process of the tree uses it, and
where NVML does not know how much one of them uses. Each device is asked once for all backends.
NVML's PIDs must be the monitor's: a monitor in a container needs the host's (`--pid=host`).

Needs a driver, and `pip install monitor-plugin[nvidia]`. Where something is missing or fails, that
is logged once and left out, and tried again later.

To enable: put this file into the folder that the setting `hooks_dir` names.

MONITOR_HOOK_NVIDIA_MEMORY_SHARE_SECONDS: seconds for which an answer serves all backends (1).
MONITOR_HOOK_NVIDIA_MEMORY_RETRY_SECONDS: seconds until what failed is tried again (60).
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from monitor_plugin import Backend, hookimpl

try:
    import pynvml
except ImportError:  # said at the first reading
    pynvml = None

SHARE_SECONDS = float(os.environ.get("MONITOR_HOOK_NVIDIA_MEMORY_SHARE_SECONDS", "1"))
RETRY_SECONDS = float(os.environ.get("MONITOR_HOOK_NVIDIA_MEMORY_RETRY_SECONDS", "60"))
Usage = dict[tuple[int, Any], Any]  # bytes by PID and MIG instance; None where NVML does not know

NOT_AVAILABLE = 2**64 - 1

_logger = logging.getLogger(__name__)


class OldProcess(ctypes.Structure):
    """What drivers before 450 say of a process, which the bindings do not read any more."""

    _fields_ = (("pid", ctypes.c_uint), ("usedGpuMemory", ctypes.c_ulonglong))


class Driver:
    """What the driver says of all devices, for all who ask at about the same time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # one asks the driver, the others wait for its answer
        self._open = False
        self._usage: dict[str, Usage] = {}
        self._fresh_until = self._retry_at = -math.inf
        self._faults: dict[str, str] = {}

    def usage(self) -> dict[str, Usage]:
        """Give what processes use, by component, as it was SHARE_SECONDS ago or later."""
        with self._lock:
            if time.monotonic() >= self._fresh_until:
                self._usage = self._read()
                self._fresh_until = time.monotonic() + SHARE_SECONDS
            return self._usage

    def close(self) -> None:
        """Let go of the driver, and do not take it up again for who comes late."""
        with self._lock:
            self._usage, self._fresh_until = {}, math.inf
            self._shut_down()

    def _read(self) -> dict[str, Usage]:
        if self._faults and time.monotonic() >= self._retry_at:
            self._shut_down()  # and begin anew, as the driver may have been loaded anew
        self._open = self._open or bool(self._try("NVML", _initialize))
        count = self._try("NVML", pynvml.nvmlDeviceGetCount) if self._open else None
        usages = {i: self._try(f"GPU {i}", partial(_usage, i)) for i in range(count or 0)}
        return {f"vram:nvidia{index}": usage for index, usage in usages.items() if usage}

    def _try(self, what: str, call: Callable[[], Any]) -> Any:
        """Call, unless it failed a short while ago; where it fails, say so once and give None."""
        if what in self._faults and time.monotonic() < self._retry_at:
            return None
        try:
            value = call()
        except Exception as error:  # whatever driver and bindings raise, the others are asked
            if self._faults.get(what) != str(error):
                _logger.warning("no memory of %s: %s", what, error)
            self._faults[what] = str(error)
            self._retry_at = time.monotonic() + RETRY_SECONDS
            return None
        self._faults.pop(what, None)
        return value

    def _shut_down(self) -> None:
        if self._open:
            self._open = False
            with contextlib.suppress(pynvml.NVMLError):  # of a driver that is gone
                pynvml.nvmlShutdown()


def _initialize() -> bool:
    if pynvml is None:
        raise RuntimeError("nvidia-ml-py is not installed: pip install monitor-plugin[nvidia]")
    pynvml.nvmlInit()
    return True


def _usage(index: int) -> Usage:
    """Ask for a device's processes: each once, also where it is in both of NVML's lists."""
    device = pynvml.nvmlDeviceGetHandleByIndex(index)
    found = [*_processes("nvmlDeviceGetComputeRunningProcesses", device)]
    with contextlib.suppress(pynvml.NVMLError_NotSupported):  # by a device that does not draw
        found += _processes("nvmlDeviceGetGraphicsRunningProcesses", device)
    usage: Usage = {}
    for process in found:
        key = process.pid, getattr(process, "gpuInstanceId", None)
        if usage.get(key) is None:
            amount = process.usedGpuMemory
            usage[key] = None if amount == NOT_AVAILABLE else amount
    return usage


def _processes(name: str, device: Any) -> Any:
    """List processes by the newest of the calls that the driver has."""
    for version in ("_v3", "_v2"):
        with contextlib.suppress(AttributeError, pynvml.NVMLError_FunctionNotFound):
            return getattr(pynvml, name + version)(device)
    found, count = (OldProcess * 1024)(), ctypes.c_uint(1024)
    if code := getattr(pynvml.nvmlLib, name)(device, ctypes.byref(count), found):
        raise pynvml.NVMLError(code)
    return found[: count.value]


_driver = Driver()


@hookimpl
def monitor_memory_components(backend: Backend, pids: Sequence[int]) -> Mapping[str, int]:
    """Give the bytes that the tree holds, by device."""
    components = {}
    for component, usage in _driver.usage().items():
        amounts = [amount for (pid, _), amount in usage.items() if pid in pids]
        if amounts and None not in amounts:
            components[component] = sum(amounts)
    return components


@hookimpl
def monitor_closing() -> None:
    """Let go of the driver."""
    _driver.close()
