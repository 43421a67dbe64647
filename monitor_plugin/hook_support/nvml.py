"""GPU memory by process from NVIDIA's driver, through nvidia-ml-py (extra `[nvidia]`)."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import logging
import math
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

_NOT_AVAILABLE = 2**64 - 1

#: Bytes by PID and MIG instance; None if NVML does not know the amount.
Usage = dict[tuple[int, Any], "int | None"]


class Nvml:
    """Reads the GPU memory of processes, on all devices, from NVML. Thread-safe.

    A result is reused for `share_seconds`. A device or library that fails is logged once, skipped,
    and tried again after `retry_seconds`.
    """

    def __init__(self, share_seconds: float, retry_seconds: float, logger: logging.Logger) -> None:
        self._share_seconds = share_seconds
        self._retry_seconds = retry_seconds
        self._logger = logger
        self._lock = threading.Lock()  # one thread calls the driver; other threads wait
        self._pynvml: Any = None
        self._usages: dict[int, Usage] = {}
        self._fresh_until = self._retry_at = -math.inf
        self._faults: dict[str, str] = {}

    def usages(self) -> dict[int, Usage]:
        """Return the usage of each device in use, by NVML's index."""
        with self._lock:
            if time.monotonic() >= self._fresh_until:
                self._usages = self._read()
                self._fresh_until = time.monotonic() + self._share_seconds
            return self._usages

    def close(self) -> None:
        """Release the driver; later calls of `usages` return an empty dict."""
        with self._lock:
            self._usages, self._fresh_until = {}, math.inf
            self._shut_down()

    def _read(self) -> dict[int, Usage]:
        if self._faults and time.monotonic() >= self._retry_at:
            self._shut_down()  # the driver may have been reloaded
        self._pynvml = self._pynvml or self._try("NVML", _initialized)
        count = self._try("NVML", self._pynvml.nvmlDeviceGetCount) if self._pynvml else None
        usages = {
            index: self._try(f"GPU {index}", partial(_usage, self._pynvml, index))
            for index in range(count or 0)
        }
        return {index: usage for index, usage in usages.items() if usage}

    def _try(self, what: str, call: Callable[[], Any]) -> Any:
        """Return the result of `call`; None if it fails, or failed less than a retry time ago."""
        if what in self._faults and time.monotonic() < self._retry_at:
            return None
        try:
            value = call()
        except Exception as error:  # the driver's bindings may raise anything
            if self._faults.get(what) != str(error):
                self._logger.warning("%s: no GPU memory is available: %s", what, error)
            self._faults[what] = str(error)
            self._retry_at = time.monotonic() + self._retry_seconds
            return None
        self._faults.pop(what, None)
        return value

    def _shut_down(self) -> None:
        pynvml, self._pynvml = self._pynvml, None
        if pynvml:
            with contextlib.suppress(pynvml.NVMLError):  # the driver may be gone
                pynvml.nvmlShutdown()


def _initialized() -> Any:
    try:
        pynvml = importlib.import_module("pynvml")
    except ImportError:
        message = "nvidia-ml-py is not installed: pip install monitor-plugin[nvidia]"
        raise RuntimeError(message) from None
    pynvml.nvmlInit()
    return pynvml


def _usage(pynvml: Any, index: int) -> Usage:
    """Read a device's processes; a process that is in both of NVML's lists counts once."""
    device = pynvml.nvmlDeviceGetHandleByIndex(index)
    found = [*_processes(pynvml, "nvmlDeviceGetComputeRunningProcesses", device)]
    with contextlib.suppress(pynvml.NVMLError_NotSupported):  # a device without graphics
        found += _processes(pynvml, "nvmlDeviceGetGraphicsRunningProcesses", device)
    usage: Usage = {}
    for process in found:
        key = process.pid, getattr(process, "gpuInstanceId", None)
        if usage.get(key) is None:
            amount = process.usedGpuMemory
            usage[key] = None if amount == _NOT_AVAILABLE else amount
    return usage


def _processes(pynvml: Any, name: str, device: Any) -> Any:
    """List processes with the newest version of a call that the driver supports."""
    for version in ("_v3", "_v2"):
        with contextlib.suppress(AttributeError, pynvml.NVMLError_FunctionNotFound):
            return getattr(pynvml, name + version)(device)
    found, count = (_OldProcess * 1024)(), ctypes.c_uint(1024)
    if code := getattr(pynvml.nvmlLib, name)(device, ctypes.byref(count), found):
        raise pynvml.NVMLError(code)
    return found[: count.value]


class _OldProcess(ctypes.Structure):
    """A process in the format of drivers before 450, which the bindings no longer define."""

    _fields_ = (("pid", ctypes.c_uint), ("usedGpuMemory", ctypes.c_ulonglong))
