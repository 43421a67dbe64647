"""GPU memory of each backend's process tree, by AMD and Intel device, from /proc/PID/fdinfo.

Adds `vram:DRIVER:DEVICE` to `memory.breakdown`, `vram:amdgpu:0000:03:00.0` say: the bytes that are
on the device: the regions `vram` (amdgpu), `vram0`... (xe), `local0`... and `stolen-local0`...
(i915). What the GPU uses of the system's memory (`gtt`, `cpu`, `system`, `stolen`) is not counted,
nor anything but `vram` of amdgpu's own figures (`visible-vram` is a part of it). What a driver
calls `vram` of a GPU that has no memory of its own is carved out of the system's. Counted is what
is resident (`drm-resident-`, in older kernels `drm-memory-`; `drm-total-` where it says neither),
once per DRM client, though that may be open several times, and in several processes of the tree.

A device is left out where the tree has none of its memory open, and all of them where a process of
the tree may not be read: the monitor must run as root or as the backends' user. That is logged
once. Source: the kernel's Documentation/gpu/drm-usage-stats.rst.

To enable it: a copy of, or a link to, this file in the folder of the monitor's setting `hooks_dir`,
and, where need be, environment variables MONITOR_HOOK_DRM_MEMORY_...

    PROC   path where procfs is mounted (/proc)
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from monitor_plugin import Backend, hookimpl
from monitor_plugin.hook_support.settings import HookSettings


def _folder(text: str) -> str:
    if not Path(text).is_dir():
        raise ValueError("there is no such folder")
    return text


PROC = HookSettings(__name__).get("PROC", _folder, "a path, as /proc", "/proc")
KINDS = ("resident", "memory", "total")  # the first that is there counts
ON_DEVICE = re.compile(rf"drm-(?:{'|'.join(KINDS)})-(vram\d*|(?:stolen-)?local\d+)")
UNITS = {"": 1, "KiB": 1024, "MiB": 1024**2}

_logger = logging.getLogger(__name__)
_said: set[type] = set()


def device_memory(text: str) -> tuple[str, str, int] | None:
    """Read one fdinfo file.

    Returns:
        The component's name, the client's id, and the bytes that it holds on the device; None
        where it is no DRM client, or one of a driver that tells of no memory on a device.

    Raises:
        ValueError: an amount is none.
    """
    fields = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        fields[key.strip()] = value.strip()
    regions = {found[1] for key in fields if (found := ON_DEVICE.fullmatch(key))}
    client = fields.get("drm-client-id")
    if client is None or not regions:
        return None
    names = ("vram", fields.get("drm-driver"), fields.get("drm-pdev"))
    total = 0
    for region in regions:
        kinds = (f"drm-{kind}-{region}" for kind in KINDS)
        number, _, unit = next(fields[key] for key in kinds if key in fields).partition(" ")
        if unit.strip() not in UNITS:
            raise ValueError(f"{unit!r} is no unit of memory")
        total += int(number) * UNITS[unit.strip()]
    return ":".join(filter(None, names)), client, total


def read_clients(process: str) -> Iterator[str]:
    """Read what a process's folder in procfs has on each file that it has open on a GPU.

    Raises:
        PermissionError: it may not be read.
    """
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended
        # The names are those in `fd`, which may not be listed of a zombie: it has none open.
        for number in os.listdir(f"{process}/fdinfo"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it was closed
                if "/dri/" in os.readlink(f"{process}/fd/{number}"):  # noqa: PTH115 - of thousands
                    yield Path(f"{process}/fdinfo/{number}").read_text()


@hookimpl
def monitor_memory_components(backend: Backend, pids: Sequence[int]) -> Mapping[str, int]:
    """Give the bytes that the tree holds, by device."""
    clients: dict[tuple[str, str], int] = {}
    try:
        for pid in pids:
            for text in read_clients(f"{PROC}/{pid}"):
                if found := device_memory(text):
                    component, client, amount = found
                    clients[component, client] = amount
    except (PermissionError, ValueError) as error:
        if type(error) not in _said:
            _said.add(type(error))
            _logger.warning("no GPU memory of model %r: %s (said once)", backend.model, error)
        return {}
    components: dict[str, int] = {}
    for (component, _), amount in clients.items():
        components[component] = components.get(component, 0) + amount
    return components
