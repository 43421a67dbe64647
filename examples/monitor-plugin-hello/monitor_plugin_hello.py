"""Says hello to each backend, and tells how much of it is swapped out."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from monitor_plugin import Backend, hookimpls

_logger = logging.getLogger(__name__)


@hookimpls.monitor_backend_registered
def monitor_backend_registered(backend: Backend) -> None:
    """Say hello."""
    _logger.info("hello, %s", backend.model)


@hookimpls.monitor_memory_components
def monitor_memory_components(backend: Backend, pids: Sequence[int]) -> Mapping[str, int]:
    """Give what the process tree has in swap, in bytes."""
    return {"swap": sum(map(swapped, pids))}


def swapped(pid: int) -> int:
    """Give what a process has in swap, in bytes; 0 for one that has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    found = re.search(r"^VmSwap:\s+(\d+) kB$", status, re.MULTILINE)
    return int(found[1]) * 1024 if found else 0
