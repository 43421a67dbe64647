"""GPUs of AMD and Intel, from the kernel's sysfs and procfs."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from ..domain.gpus import Gpu
from ..processes.kernel_files import read_number
from .drm_clients import DrmClientReader, DrmUsage

_logger = logging.getLogger(__name__)

_VENDORS = {"amdgpu": "amd", "i915": "intel", "xe": "intel"}


class _Card(NamedTuple):
    """A GPU: N of /sys/class/drm/cardN, the path of that folder, the driver, the PCI address."""

    number: int
    folder: str
    driver: str
    address: str


class DrmProvider:
    """Reads the GPUs of the drivers amdgpu, i915 and xe, and the processes that use them.

    A figure is None if its file is missing or cannot be read. While a device is suspended, the
    files that would wake it are not read. `index` is N of /dev/dri/cardN. `uuid` is amdgpu's
    `unique_id` (which ROCm's tools show with "GPU-" in front), else the PCI address.

    amdgpu reports all figures. An APU has two kinds of memory: the system memory that the firmware
    reserves for it (`vram`), and the other system memory that it may use (`gtt`). i915 and xe
    report neither the memory in use nor the utilization. They report the total of a discrete GPU
    only where the driver has `lmem_total_bytes` or `physical_vram_size_bytes`, or the kernel has
    the control group file `dmem.capacity` (6.14 or newer). Integrated GPUs of Intel have only
    system memory, which counts as `gtt`.

    The temperature is from the sensor of the edge, or else of the junction (amdgpu), or from the
    sensor of the package (i915, xe). The power of an APU includes the power of its CPU. i915 and xe
    count energy, so their power is the average since the last reading.

    Sources: Documentation/gpu/amdgpu/ and Documentation/ABI/testing/sysfs-driver-intel-*-hwmon of
    the kernel. The provider was tested with recorded files, not on a device.

    Args:
        is_required: whether the operator asked for these GPUs. If so, their absence is logged once.
        proc, sysfs: mount points of these file systems.
    """

    def __init__(
        self,
        *,
        is_required: bool = False,
        proc: Path = Path("/proc"),
        sysfs: Path = Path("/sys"),
    ) -> None:
        self._may_warn = is_required
        self._sysfs = sysfs
        self._clients = DrmClientReader(proc)
        self._energy: dict[str, tuple[int, float]] = {}

    def read(self) -> Sequence[Gpu]:
        """Read all devices. Procfs is read only if there is a device."""
        cards = list(self._find_cards())
        if not cards:
            if self._may_warn:
                self._may_warn = False
                _logger.warning(
                    "%s/class/drm has no GPU of the drivers %s (logged once)",
                    self._sysfs,
                    ", ".join(_VENDORS),
                )
            return []
        try:
            usage = self._clients.read()
        except OSError:
            usage = None
        return [self._read_card(card, usage) for card in cards]

    def close(self) -> None:
        """Do nothing: no file is kept open."""

    def _find_cards(self) -> Iterator[_Card]:
        root = f"{self._sysfs}/class/drm"
        # The connectors of a card, such as card0-DP-1, have folders there as well.
        matches = (re.fullmatch(r"card(\d+)", name) for name in _list(root))
        for number in sorted(int(match[1]) for match in matches if match):
            folder = f"{root}/card{number}"
            fields = dict(
                line.split("=", 1)
                for line in (_read(f"{folder}/device/uevent") or "").splitlines()
                if "=" in line
            )
            driver = _link_name(f"{folder}/device/driver") or fields.get("DRIVER")
            address = fields.get("PCI_SLOT_NAME") or _link_name(f"{folder}/device")
            if driver in _VENDORS and address:
                yield _Card(number, folder, driver, address)

    def _read_card(self, card: _Card, usage: DrmUsage | None) -> Gpu:
        device = f"{card.folder}/device"
        memory = {
            name: read_number(f"{device}/mem_info_{name}")
            for name in ("vram_total", "vram_used", "gtt_total", "gtt_used")
        }
        total, used = memory["vram_total"], memory["vram_used"]
        if card.driver != "amdgpu":
            total = self._read_intel_total(card)
        is_asleep = _read(f"{device}/power/runtime_status") == "suspended"
        hwmon = None if is_asleep else _find_hwmon(card)
        temperature = _first_number(hwmon, "temp1_input", "temp2_input")
        return Gpu(
            component=f"vram:{card.driver}:{card.address}",
            vendor=_VENDORS[card.driver],
            uuid=_read_unique_id(device) or card.address,
            index=card.number,
            name=_read(f"{device}/product_name"),
            total=total,
            used=used,
            free=None if total is None or used is None else max(0, total - used),
            gtt_total=memory["gtt_total"],
            gtt_used=memory["gtt_used"],
            utilization_percent=None if is_asleep else read_number(f"{device}/gpu_busy_percent"),
            temperature_celsius=None if temperature is None else temperature / 1000,
            power_watts=self._read_power(card, hwmon),
            uses=None if usage is None else usage.uses.get(card.address, []),
            unread=frozenset() if usage is None else usage.unread,
            note=_describe_unread(usage),
        )

    def _read_intel_total(self, card: _Card) -> int | None:
        """Return the bytes of memory on all tiles of a discrete GPU; None if not known."""
        if (total := read_number(f"{card.folder}/lmem_total_bytes")) is not None:
            return total
        device = f"{card.folder}/device"
        sizes = [
            read_number(f"{device}/{name}/physical_vram_size_bytes")
            for name in _list(device)
            if name.startswith("tile")
        ]
        known = [size for size in sizes if size is not None]
        if known and len(known) == len(sizes):
            return sum(known)
        # Such as `drm/0000:03:00.0/vram0 8514437120`: Documentation/admin-guide/cgroup-v2.rst.
        regions = re.findall(
            rf"^drm/{re.escape(card.address)}/vram\d* (\d+)$",
            _read(f"{self._sysfs}/fs/cgroup/dmem.capacity") or "",
            re.MULTILINE,
        )
        return sum(map(int, regions)) if regions else None

    def _read_power(self, card: _Card, hwmon: str | None) -> float | None:
        if card.driver == "amdgpu":
            microwatts = _first_number(hwmon, "power1_average", "power1_input")
            return None if microwatts is None else microwatts / 1e6
        # The energy of the card, or else of the package.
        microjoules = _first_number(hwmon, "energy1_input", "energy2_input")
        if microjoules is None:
            return None
        now = time.monotonic()
        before, read_at = self._energy.get(card.address, (microjoules, now))
        self._energy[card.address] = (microjoules, now)
        if now <= read_at or microjoules < before:
            return None
        return (microjoules - before) / 1e6 / (now - read_at)


def _describe_unread(usage: DrmUsage | None) -> str | None:
    if usage is None:
        return "Processes cannot be listed, so it is not known which use the GPU."
    if usage.error is None:
        return None
    return (
        f"Some processes cannot be read ({usage.error}), so their use of the GPU is not known. "
        "Run the monitor as root, in a container with the capability SYS_PTRACE."
    )


def _find_hwmon(card: _Card) -> str | None:
    """Return the folder of the device's sensors; i915 has more folders, for parts of the device."""
    root = f"{card.folder}/device/hwmon"
    folders = (f"{root}/{name}" for name in sorted(_list(root)))
    return next((each for each in folders if _read(f"{each}/name") in {card.driver, None}), None)


def _read_unique_id(device: str) -> str | None:
    text = _read(f"{device}/unique_id")
    return text if text and text.strip("0") else None


def _first_number(folder: str | None, *names: str) -> int | None:
    """Read files of a folder in this order, until a file has a number; None if none has."""
    if folder is None:
        return None
    numbers = (read_number(f"{folder}/{name}") for name in names)
    return next((number for number in numbers if number is not None), None)


def _read(path: str) -> str | None:
    """Read a file of sysfs; None if it is empty, missing, or the driver refuses to read it."""
    try:
        return Path(path).read_text(errors="replace").strip() or None
    except OSError:
        return None


def _list(folder: str) -> list[str]:
    """List a folder; empty if it is missing or cannot be read."""
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _link_name(path: str) -> str | None:
    try:
        return Path(path).readlink().name
    except OSError:
        return None
