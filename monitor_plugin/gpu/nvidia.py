"""NVIDIA's GPUs and their MIG instances, through NVML and nvidia-ml-py (extra `[nvidia]`).

The names and meanings of NVML's functions are those of NVIDIA's NVML API Reference Guide.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import logging
import math
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from ..domain.figures import sum_known
from ..domain.gpus import Gpu, GpuUse
from .pid_namespace import DriverPids

_logger = logging.getLogger(__name__)

# NVML's error codes for a figure that the driver or the device does not have, or that the user may
# not read: INVALID_ARGUMENT, NOT_SUPPORTED, NO_PERMISSION, NOT_FOUND, FUNCTION_NOT_FOUND, NO_DATA,
# ARGUMENT_VERSION_MISMATCH, DEPRECATED and NOT_READY. They are numbers here, because older bindings
# do not have all of these names.
_NOT_REPORTED = frozenset({2, 3, 4, 6, 13, 21, 25, 26, 27})
_FUNCTION_NOT_FOUND = 13
_LIBRARY_NOT_FOUND = 12
_NOT_AVAILABLE = 2**64 - 1  # NVML_VALUE_NOT_AVAILABLE
_NO_MIG_INSTANCE = 0xFFFFFFFF  # the ID of the MIG instance of a process that uses none
_TEMPERATURE_OF_GPU = 0  # NVML_TEMPERATURE_GPU
# Tried where NVML does not tell how many instances a GPU can have. NVIDIA's GPUs have up to 7.
_MAX_MIG_INSTANCES = 8


class NvidiaProvider:
    """Reads NVIDIA's GPUs. Implements `GpuProvider`.

    A device or library that fails is logged once, left out, and tried again after `retry_seconds`.
    A figure that the driver does not report is None, and nothing is logged. If the driver lists
    PIDs of another PID namespace (`DriverPids`), `uses` of all devices is None.

    Args:
        is_required: whether the operator asked for NVIDIA's GPUs. If not, a missing library or
            package is logged only where device files of NVIDIA exist.
        retry_seconds: the time between a failure and the next try.
        device_folder: where the device files are.
    """

    def __init__(
        self, *, is_required: bool, retry_seconds: float = 60.0, device_folder: str = "/dev"
    ) -> None:
        self._is_required = is_required
        self._retry_seconds = retry_seconds
        self._device_folder = Path(device_folder)
        self._pynvml: Any = None
        self._failed: set[str] = set()  # devices that are not tried before `_retry_at`
        self._retry_at = math.inf
        self._logged: dict[str, str] = {}  # the last logged error of each device that fails
        self._driver_pids = DriverPids()
        self._has_warned_of_pids = False

    def read(self) -> Sequence[Gpu]:
        """Read all GPUs. A GPU that has MIG instances is replaced by its instances."""
        if self._failed and time.monotonic() >= self._retry_at:
            self._failed.clear()
            self.close()  # the driver may have been reloaded
        count = self._try("NVIDIA's GPUs", self._count)
        gpus: list[Gpu] = []
        for index in range(count or 0):
            gpus += self._try(f"NVIDIA GPU {index}", partial(self._read_gpu, index)) or ()
        objection = self._driver_pids.objection({use.pid for gpu in gpus for use in gpu.uses or ()})
        if not objection:
            return gpus
        if not self._has_warned_of_pids:
            self._has_warned_of_pids = True
            _logger.warning("%s (logged once)", objection)
        return [msgspec.structs.replace(gpu, uses=None, note=objection) for gpu in gpus]

    def close(self) -> None:
        """Release the driver."""
        pynvml, self._pynvml = self._pynvml, None
        if pynvml:
            with contextlib.suppress(Exception):  # the driver may be gone
                pynvml.nvmlShutdown()

    def _count(self) -> int:
        """Count the GPUs; load and initialize the library first if it is not loaded."""
        self._pynvml = self._pynvml or _load()
        count: int = self._pynvml.nvmlDeviceGetCount()
        if self._is_required and not count:
            raise RuntimeError("the driver lists none")
        return count

    def _read_gpu(self, index: int) -> list[Gpu]:
        """Read one GPU, or its MIG instances if it has any."""
        nvml = self._pynvml
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        component = f"vram:nvidia{index}"
        has_mig, instances = _find_mig_instances(nvml, handle)
        if not instances:
            note = "MIG is enabled, and there is no MIG instance to use." if has_mig else None
            identity = Gpu(component=component, vendor="nvidia", index=index, note=note)
            return [_read_device(nvml, handle, identity)]
        parent = _figure(nvml, "nvmlDeviceGetUUID", handle)
        gpus = []
        for number, instance in instances.items():
            identity = Gpu(
                component=f"{component}:mig{number}", vendor="nvidia", index=number, parent=parent
            )
            device = f"MIG instance {number} of NVIDIA GPU {index}"
            if gpu := self._try(device, partial(_read_device, nvml, instance, identity)):
                gpus.append(gpu)
        return gpus

    def _try(self, device: str, read: Callable[[], Any]) -> Any:
        """Return the result of `read`; None if it fails, or if the retry of `device` is not due.

        Raises:
            OSError: no file descriptor is free, so nothing is known of the device.
        """
        if device in self._failed:
            return None
        try:
            value = read()
        except OSError:
            raise
        except Exception as error:  # the driver's bindings may raise anything
            seconds = self._retry_seconds
            if self._logged.get(device) != str(error) and self._is_worth_a_warning(error):
                self._logged[device] = str(error)
                _logger.warning(
                    "%s cannot be read, tried again every %g s: %s", device, seconds, error
                )
            self._failed.add(device)
            self._retry_at = time.monotonic() + seconds
            return None
        self._logged.pop(device, None)
        return value

    def _is_worth_a_warning(self, error: Exception) -> bool:
        """Whether the operator should know of an error. A machine without NVIDIA's GPUs is normal.

        Without the library or the package, only device files show that the machine has such a GPU.
        """
        is_missing = isinstance(error, ImportError) or _code(error) == _LIBRARY_NOT_FOUND
        return not is_missing or self._is_required or any(self._device_folder.glob("nvidia*"))


def _load() -> Any:
    try:
        pynvml = importlib.import_module("pynvml")
    except ImportError:
        message = "nvidia-ml-py is not installed: pip install 'monitor-plugin[nvidia]'"
        raise ImportError(message) from None
    pynvml.nvmlInit()
    return pynvml


def _code(error: Exception) -> int | None:
    """Return NVML's error code; for a function that the bindings lack, FUNCTION_NOT_FOUND."""
    return (
        _FUNCTION_NOT_FOUND if isinstance(error, AttributeError) else getattr(error, "value", None)
    )


def _figure(nvml: Any, function: str, *arguments: Any) -> Any:
    """Return the result of a function of NVML; None if it fails.

    The function gives a figure without which the device can still be used.
    """
    try:
        return getattr(nvml, function)(*arguments)
    except Exception:  # the driver's bindings may raise anything
        return None


def _find_mig_instances(nvml: Any, handle: Any) -> tuple[bool, dict[int, Any]]:
    """Return whether MIG is known to be enabled, and the handles of the GPU's instances by index.

    In a container the driver may refuse every call for the GPU (NO_PERMISSION), and still answer
    calls for its instances. For an index without an instance, NVML fails with NOT_FOUND.
    """
    mode = _figure(nvml, "nvmlDeviceGetMigMode", handle)  # the mode now, and after the next reset
    if mode and not mode[0]:
        return False, {}
    count = _figure(nvml, "nvmlDeviceGetMaxMigDeviceCount", handle)
    instances = {
        number: instance
        for number in range(_MAX_MIG_INSTANCES if count is None else count)
        if (instance := _figure(nvml, "nvmlDeviceGetMigDeviceHandleByIndex", handle, number))
    }
    return bool(mode), instances


def _read_device(nvml: Any, handle: Any, identity: Gpu) -> Gpu:
    """Read a GPU or a MIG instance; `identity` has the fields that do not come from its handle."""
    total, used, free = _read_memory(nvml, handle)
    uses, note = _read_uses(nvml, handle)
    utilization = _figure(nvml, "nvmlDeviceGetUtilizationRates", handle)
    power = _figure(nvml, "nvmlDeviceGetPowerUsage", handle)  # milliwatts
    return msgspec.structs.replace(
        identity,
        uuid=_figure(nvml, "nvmlDeviceGetUUID", handle),
        name=_figure(nvml, "nvmlDeviceGetName", handle),
        total=total,
        used=used,
        free=free,
        utilization_percent=None if utilization is None else float(utilization.gpu),
        temperature_celsius=_read_temperature(nvml, handle),
        power_watts=None if power is None else power / 1000,
        uses=uses,
        note=identity.note or note,
    )


def _read_memory(nvml: Any, handle: Any) -> tuple[int | None, int | None, int | None]:
    """Read the total, used and free bytes.

    Used and free bytes do not add up to the total: the difference is what the driver and the
    firmware reserve, and belongs to no process. Drivers before 510 do not report the reserved
    bytes; there, the used bytes include them. (NVML's guide for 525 says that the used bytes
    include the reserved ones. Newer guides do not say so, and nvidia-smi adds the three up.)
    """
    info = None
    with contextlib.suppress(Exception):  # under WSL2 this version fails with an unknown error
        info = nvml.nvmlDeviceGetMemoryInfo(handle, nvml.nvmlMemory_v2)
    try:
        info = info or nvml.nvmlDeviceGetMemoryInfo(handle)
    except Exception as error:
        if _code(error) in _NOT_REPORTED:  # such as a GPU that shares the machine's memory
            return None, None, None
        raise
    if not info.total or _NOT_AVAILABLE in (info.total, info.used, info.free):
        return None, None, None
    reserved = getattr(info, "reserved", 0)
    return info.total, max(0, min(info.used, info.total - info.free - reserved)), info.free


def _read_temperature(nvml: Any, handle: Any) -> float | None:
    """Read the temperature by the function that all drivers have, else by its successor."""
    for name in ("nvmlDeviceGetTemperature", "nvmlDeviceGetTemperatureV"):
        celsius = _figure(nvml, name, handle, _TEMPERATURE_OF_GPU)
        if celsius is not None:
            return float(celsius)
    return None


def _read_uses(nvml: Any, handle: Any) -> tuple[Sequence[GpuUse] | None, str | None]:
    """Read the processes that use a device, each process once.

    A process that is in several lists counts once. A process that uses several MIG instances of the
    device counts with the sum over the instances.

    Returns:
        The processes and None, or None and the reason why they are not known.
    """
    try:
        found = list(_list_processes(nvml, "nvmlDeviceGetComputeRunningProcesses", handle))
    except Exception as error:
        if _code(error) in _NOT_REPORTED:
            return None, f"The driver does not list the processes that use this device: {error}."
        raise
    for name in (
        "nvmlDeviceGetGraphicsRunningProcesses",
        "nvmlDeviceGetMPSComputeRunningProcesses",
    ):
        try:
            found += _list_processes(nvml, name, handle)
        except Exception as error:  # a device without graphics, or a driver without MPS
            if _code(error) not in _NOT_REPORTED:
                raise
    amounts: dict[int, dict[int, int | None]] = {}
    for process in found:
        by_instance = amounts.setdefault(process.pid, {})
        instance = getattr(process, "gpuInstanceId", _NO_MIG_INSTANCE)
        if by_instance.get(instance) is None:
            amount = process.usedGpuMemory
            by_instance[instance] = None if amount == _NOT_AVAILABLE else amount
    return [GpuUse(pid, sum_known(each.values())) for pid, each in amounts.items()], None


def _list_processes(nvml: Any, name: str, handle: Any) -> Iterable[Any]:
    """List processes with the newest version of a function that the driver supports."""
    for version in ("_v3", "_v2"):
        try:
            found: Iterable[Any] = getattr(nvml, name + version)(handle)
        except Exception as error:
            if _code(error) != _FUNCTION_NOT_FOUND:
                raise
        else:
            return found
    processes, count = (_OldProcess * 1024)(), ctypes.c_uint(1024)
    if code := getattr(nvml.nvmlLib, name)(handle, ctypes.byref(count), processes):
        raise nvml.NVMLError(code)
    return processes[: count.value]


class _OldProcess(ctypes.Structure):
    """A process in the format of drivers before 450. The bindings no longer define that format."""

    _fields_ = (("pid", ctypes.c_uint), ("usedGpuMemory", ctypes.c_ulonglong))
