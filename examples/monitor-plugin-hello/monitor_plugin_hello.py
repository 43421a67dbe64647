"""Greets each backend, and reports its swapped-out memory."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from monitor_plugin import Backend, hookimpls

_logger = logging.getLogger(__name__)


@hookimpls.monitor_backend_registered
def monitor_backend_registered(backend: Backend) -> None:
    """Log a greeting."""
    _logger.info("hello, %s", backend.model)


@hookimpls.monitor_memory_components
def monitor_memory_components(backend: Backend, pids: Sequence[int]) -> Mapping[str, int]:
    """Return the swapped-out bytes of the process tree."""
    return {"swap": sum(map(swapped_bytes, pids))}


def swapped_bytes(pid: int) -> int:
    """Return the swapped-out bytes of a process; 0 if the process has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    found = re.search(r"^VmSwap:\s+(\d+) kB$", status, re.MULTILINE)
    return int(found[1]) * 1024 if found else 0
