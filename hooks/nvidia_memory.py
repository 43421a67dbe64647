"""GPU memory of each backend's process tree, by NVIDIA device, through NVML.

Adds `vram:nvidia0`, `vram:nvidia1`... to `memory.breakdown`: bytes, by NVML's index of the device,
the sum of its MIG instances. Devices that no process of the tree uses are omitted, and devices on
which NVML does not know the usage of a process. Each device is read once for all backends. NVML and
the monitor must see the same PIDs: a monitor in a container needs those of the host (`--pid=host`).

The hook needs NVIDIA's driver, and the extra `nvidia` of monitor-plugin. A failure of a device or
of the library is logged once, and the device or library is tried again later.

To enable it, copy or link this file into the folder of the monitor's setting `hooks_dir`. Optional
environment variables: MONITOR_HOOK_NVIDIA_MEMORY_...

    SHARE_SECONDS   how long a result is reused for all backends, in seconds (1)
    RETRY_SECONDS   the time between a failure and the next try, in seconds (60)
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from monitor_plugin import Backend, hookimpl
from monitor_plugin.hook_support.nvml import Nvml
from monitor_plugin.hook_support.settings import HookSettings, seconds

_settings = HookSettings(__name__)
_nvml = Nvml(
    _settings.get("SHARE_SECONDS", seconds, "seconds over 0, as 1", 1.0),
    _settings.get("RETRY_SECONDS", seconds, "seconds over 0, as 60", 60.0),
    logging.getLogger(__name__),
)


@hookimpl
def monitor_memory_components(backend: Backend, pids: Sequence[int]) -> Mapping[str, int]:
    """Return the bytes of the process tree by device."""
    components = {}
    for index, usage in _nvml.usages().items():
        amounts = [amount for (pid, _), amount in usage.items() if pid in pids]
        known = [amount for amount in amounts if amount is not None]
        if known and len(known) == len(amounts):
            components[f"vram:nvidia{index}"] = sum(known)
    return components


@hookimpl
def monitor_closing() -> None:
    """Release the driver."""
    _nvml.close()
