"""GPU memory of each backend's process tree, by AMD and Intel device, from /proc/PID/fdinfo.

Adds `vram:DRIVER:DEVICE` to `memory.breakdown`, such as `vram:amdgpu:0000:03:00.0`: the bytes on
the device. These are the regions `vram` (amdgpu), `vram0`... (xe), `local0`... and
`stolen-local0`... (i915). System memory that the GPU uses (`gtt`, `cpu`, `system`, `stolen`) does
not count. Of amdgpu's figures only `vram` counts, which includes `visible-vram`. The `vram` of a
GPU without its own memory is a reserved part of the system memory. The resident bytes count
(`drm-resident-`, in older kernels `drm-memory-`; `drm-total-` if there is neither), once per DRM
client, although several processes of the tree may have the client open.

Devices whose memory the tree does not use are omitted. All devices are omitted if a process of the
tree cannot be read: the monitor must run as root or as the backends' user. This is logged once.
Source: the kernel's Documentation/gpu/drm-usage-stats.rst.

To enable it, copy or link this file into the folder of the monitor's setting `hooks_dir`. Optional
environment variables: MONITOR_HOOK_DRM_MEMORY_...

    PROC   the path at which procfs is mounted (/proc)
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
        raise ValueError("the folder does not exist")
    return text


PROC = HookSettings(__name__).get("PROC", _folder, "a path, as /proc", "/proc")
KINDS = ("resident", "memory", "total")  # the first kind that the kernel reports counts
ON_DEVICE = re.compile(rf"drm-(?:{'|'.join(KINDS)})-(vram\d*|(?:stolen-)?local\d+)")
UNITS = {"": 1, "KiB": 1024, "MiB": 1024**2}

_logger = logging.getLogger(__name__)
_logged: set[type] = set()


def device_memory(text: str) -> tuple[str, str, int] | None:
    """Read one fdinfo file.

    Returns:
        The component's name, the client's id, and its bytes on the device; None if the file is
        not a DRM client's, or if its driver reports no memory on a device.

    Raises:
        ValueError: an amount cannot be parsed.
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
            raise ValueError(f"{unit!r} is not a unit of memory")
        total += int(number) * UNITS[unit.strip()]
    return ":".join(filter(None, names)), client, total


def read_clients(process: str) -> Iterator[str]:
    """Read the fdinfo of each GPU file that a process (its folder in procfs) has open.

    Raises:
        PermissionError: the folder may not be read.
    """
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # the process has ended
        # `fdinfo` has the same names as `fd`, but can be listed for a zombie as well.
        for number in os.listdir(f"{process}/fdinfo"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # the file was closed
                if "/dri/" in os.readlink(f"{process}/fd/{number}"):  # noqa: PTH115 - of thousands
                    yield Path(f"{process}/fdinfo/{number}").read_text()


@hookimpl
def monitor_memory_components(backend: Backend, pids: Sequence[int]) -> Mapping[str, int]:
    """Return the bytes of the process tree by device."""
    clients: dict[tuple[str, str], int] = {}
    try:
        for pid in pids:
            for text in read_clients(f"{PROC}/{pid}"):
                if found := device_memory(text):
                    component, client, amount = found
                    clients[component, client] = amount
    except (PermissionError, ValueError) as error:
        if type(error) not in _logged:
            _logged.add(type(error))
            _logger.warning("no GPU memory for %r: %s (logged once)", backend.model, error)
        return {}
    components: dict[str, int] = {}
    for (component, _), amount in clients.items():
        components[component] = components.get(component, 0) + amount
    return components
