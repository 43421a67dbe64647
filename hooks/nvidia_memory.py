"""GPU memory of each backend's process tree, by NVIDIA device, through NVML.

Adds `vram:nvidia0`, `vram:nvidia1`... to `memory.breakdown`: bytes, by NVML's index of the device
(of all its MIG instances together). A device is left out where no process of the tree uses it, and
where NVML does not know how much one of them uses. Each device is asked once for all backends.
NVML's PIDs must be the monitor's: a monitor in a container needs the host's (`--pid=host`).

Needs a driver, and `pip install monitor-plugin[nvidia]`. Where something is missing or fails, that
is logged once and left out, and tried again later.

To enable it: a copy of, or a link to, this file in the folder of the monitor's setting `hooks_dir`,
and, where need be, environment variables MONITOR_HOOK_NVIDIA_MEMORY_...

    SHARE_SECONDS   how long an answer serves all backends, in seconds (1)
    RETRY_SECONDS   how long until what failed is tried again, in seconds (60)
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
