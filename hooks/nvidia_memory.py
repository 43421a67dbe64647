"""GPU memory of each backend's process tree, by NVIDIA device, through NVML.

Adds `vram:nvidia0`, `vram:nvidia1`... to `memory.breakdown`: bytes, by NVML's index of the device
(of all its MIG instances together). A device is left out where no process of the tree uses it, and
where NVML does not know how much one of them uses. Each device is asked once for all backends.
NVML's PIDs must be the monitor's: a monitor in a container needs the host's (`--pid=host`).

Needs a driver, and `pip install monitor-plugin[nvidia]`. Where something is missing or fails, that
is logged once and left out, and tried again later.

To enable it: a copy of, or a link to, this file in the folder of the monitor's setting `hooks_dir`.

MONITOR_HOOK_NVIDIA_MEMORY_SHARE_SECONDS: seconds for which an answer serves all backends (1).
MONITOR_HOOK_NVIDIA_MEMORY_RETRY_SECONDS: seconds until what failed is tried again (60).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence

from monitor_plugin import Backend, hookimpl
from monitor_plugin.nvml import Nvml

SHARE_SECONDS = float(os.environ.get("MONITOR_HOOK_NVIDIA_MEMORY_SHARE_SECONDS") or "1")
RETRY_SECONDS = float(os.environ.get("MONITOR_HOOK_NVIDIA_MEMORY_RETRY_SECONDS") or "60")

_nvml = Nvml(SHARE_SECONDS, RETRY_SECONDS, logging.getLogger(__name__))


@hookimpl
def monitor_memory_components(backend: Backend, pids: Sequence[int]) -> Mapping[str, int]:
    """Give the bytes that the tree holds, by device."""
    components = {}
    for index, usage in _nvml.usages().items():
        amounts = [amount for (pid, _), amount in usage.items() if pid in pids]
        known = [amount for amount in amounts if amount is not None]
        if known and len(known) == len(amounts):
            components[f"vram:nvidia{index}"] = sum(known)
    return components


@hookimpl
def monitor_closing() -> None:
    """Let go of the driver."""
    _nvml.close()
