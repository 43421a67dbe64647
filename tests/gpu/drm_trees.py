"""Files of sysfs and procfs as the drivers amdgpu, i915 and xe write them.

Sources: the kernel's Documentation/gpu/drm-usage-stats.rst, Documentation/gpu/amdgpu/, its
Documentation/ABI/testing/sysfs-driver-intel-*-hwmon, and the examples in the drivers' own comments.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

KIB, MIB, GIB = 1024, 1024**2, 1024**3

AMDGPU = """pos:\t0
flags:\t02100002
mnt_id:\t24
ino:\t1239
drm-driver:\tamdgpu
drm-client-id:\t4
drm-pdev:\t0000:04:00.0
pasid:\t32771
drm-total-cpu:\t0
drm-shared-cpu:\t0
drm-active-cpu:\t0
drm-resident-cpu:\t0
drm-purgeable-cpu:\t0
drm-total-gtt:\t2392 KiB
drm-shared-gtt:\t0
drm-active-gtt:\t0
drm-resident-gtt:\t2392 KiB
drm-purgeable-gtt:\t0
drm-total-vram:\t50000 KiB
drm-shared-vram:\t31952 KiB
drm-active-vram:\t0
drm-resident-vram:\t44564 KiB
drm-purgeable-vram:\t0
drm-memory-vram:\t44564 KiB
drm-memory-gtt: \t2392 KiB
drm-memory-cpu: \t0 KiB
amd-memory-visible-vram:\t44564 KiB
amd-evicted-vram:\t0 KiB
amd-requested-vram:\t44564 KiB
drm-engine-compute:\t46464671 ns
"""
# Of kernels before 6.13. A model of 25 GB on an APU.
APU = """pasid:\t32770
drm-driver:\tamdgpu
drm-pdev:\t0000:c4:00.0
drm-client-id:\t27
drm-memory-vram:\t5348 KiB
drm-memory-gtt: \t25258000 KiB
drm-memory-cpu: \t7 KiB
amd-memory-visible-vram:\t5348 KiB
drm-engine-gfx:\t1000 ns
"""
# A card with two tiles; of the kernel's drivers/gpu/drm/xe/xe_drm_client.c, but for the second.
XE = """pos:    0
drm-driver:     xe
drm-client-id:  3
drm-pdev:       0000:03:00.0
drm-total-system:       0
drm-resident-system:    0
drm-purgeable-system:   0
drm-total-gtt:  192 KiB
drm-resident-gtt:       192 KiB
drm-total-vram0:        23992 KiB
drm-shared-vram0:       16 MiB
drm-active-vram0:       0
drm-resident-vram0:     23992 KiB
drm-total-vram1:        2 MiB
drm-resident-vram1:     1048576
drm-resident-stolen:    8 MiB
drm-cycles-rcs: 28257900
drm-total-cycles-rcs:   7655183225
drm-engine-capacity-vcs:        2
"""
I915 = """drm-driver:\ti915
drm-client-id:\t11
drm-pdev:\t0000:05:00.0
drm-total-system0:\t2048 KiB
drm-resident-system0:\t2048 KiB
drm-total-local0:\t600 MiB
drm-shared-local0:\t0
drm-resident-local0:\t512 MiB
drm-resident-stolen-local0:\t8 MiB
drm-resident-stolen-system0:\t4 MiB
drm-engine-render:\t500 ns
"""
I915_INTEGRATED = """drm-driver: i915
drm-client-id: 39
drm-pdev: 0000:00:02.0
drm-total-system0: 6044 KiB
drm-resident-system0: 6044 KiB
drm-total-stolen-system0: 0
drm-engine-render: 346249 ns
"""
# Of kernels that report no memory.
OLD_I915 = (
    "drm-driver:\ti915\ndrm-pdev:\t0000:05:00.0\ndrm-client-id:\t7\ndrm-engine-render:\t9 ns\n"
)
XE_INTEGRATED = """drm-driver:     xe
drm-client-id:  8
drm-pdev:       0000:00:02.0
drm-resident-system:    64 KiB
drm-resident-gtt:       3 MiB
drm-resident-stolen:    0
"""
NO_DEVICE = "pos:\t0\nflags:\t02\nmnt_id:\t9\ninotify wd:1 ino:2 sdev:3 mask:4\n"


def write_process(proc: Path, pid: int, *texts: str, file: str = "/dev/dri/renderD128") -> None:
    """Write the procfs files of a process: another file, and files on a GPU with their fdinfo."""
    for folder in ("fd", "fdinfo"):
        (proc / str(pid) / folder).mkdir(parents=True, exist_ok=True)
    other = XE.replace("drm-client-id:  3", "drm-client-id:  77")
    links = ["/dev/null", *[file] * len(texts)]
    for number, (link, text) in enumerate(zip(links, [other, *texts], strict=True)):
        (proc / str(pid) / "fd" / str(number)).symlink_to(link)
        (proc / str(pid) / "fdinfo" / str(number)).write_text(text)


def write_card(
    sysfs: Path, number: int, driver: str, address: str, files: Mapping[str, str | int]
) -> Path:
    """Write the sysfs files of a PCI device with its card, a connector and a render node.

    Returns:
        The folder of the device.
    """
    device = sysfs / "devices/pci0000:00" / address
    drivers, drm_class = sysfs / "bus/pci/drivers" / driver, sysfs / "class/drm"
    for folder in (drivers, drm_class):
        folder.mkdir(parents=True, exist_ok=True)
    render = f"renderD{128 + number}"
    for name in (f"card{number}", f"card{number}/card{number}-DP-1", render):
        (device / "drm" / name).mkdir(parents=True)
        (drm_class / Path(name).name).symlink_to(f"../../devices/pci0000:00/{address}/drm/{name}")
        (device / "drm" / name / "device").symlink_to("../../../" + address)
    (device / "driver").symlink_to(f"../../../bus/pci/drivers/{driver}")
    uevent = f"DRIVER={driver}\nPCI_CLASS=30000\nPCI_SLOT_NAME={address}\nMODALIAS=pci:v\n"
    for name, content in {"uevent": uevent, "power/runtime_status": "active", **files}.items():
        (device / name).parent.mkdir(parents=True, exist_ok=True)
        (device / name).write_text(f"{content}\n")
    return device


def write_amd(
    sysfs: Path, number: int = 0, address: str = "0000:04:00.0", **files: str | int
) -> Path:
    """Write a discrete GPU of AMD."""
    figures: dict[str, str | int] = {
        "unique_id": "1f9de0957d137942",
        "product_name": "Instinct MI210",
        "mem_info_vram_total": 16 * GIB,
        "mem_info_vram_used": 3 * GIB,
        "mem_info_gtt_total": 8 * GIB,
        "mem_info_gtt_used": 64 * MIB,
        "gpu_busy_percent": 37,
        "hwmon/hwmon5/name": "amdgpu",
        "hwmon/hwmon5/temp1_label": "edge",
        "hwmon/hwmon5/temp1_input": 51000,
        "hwmon/hwmon5/temp2_input": 63000,
        "hwmon/hwmon5/power1_average": 88_500_000,
    }
    return write_card(sysfs, number, "amdgpu", address, {**figures, **files})


def write_apu(sysfs: Path, number: int = 0, address: str = "0000:c4:00.0") -> Path:
    """Write an APU of AMD, whose firmware has reserved 512 MiB."""
    figures: dict[str, str | int] = {
        "mem_info_vram_total": 512 * MIB,
        "mem_info_vram_used": 400 * MIB,
        "mem_info_gtt_total": 48 * GIB,
        "mem_info_gtt_used": 25 * GIB,
        "gpu_busy_percent": 99,
        "hwmon/hwmon3/name": "amdgpu",
        "hwmon/hwmon3/temp1_input": 45500,
        "hwmon/hwmon3/power1_input": 28_000_000,
    }
    return write_card(sysfs, number, "amdgpu", address, figures)


def write_xe(sysfs: Path, number: int = 0, address: str = "0000:03:00.0") -> Path:
    """Write a discrete GPU of Intel with two tiles."""
    figures: dict[str, str | int] = {
        "tile0/physical_vram_size_bytes": 8 * GIB,
        "tile1/physical_vram_size_bytes": 8 * GIB,
        "tile0/gt0/freq0/cur_freq": 1300,
        "hwmon/hwmon4/name": "xe",
        "hwmon/hwmon4/temp2_input": 48000,
        "hwmon/hwmon4/temp3_input": 55000,
        "hwmon/hwmon4/energy1_input": 7_000_000,
    }
    return write_card(sysfs, number, "xe", address, figures)


def write_i915(sysfs: Path, number: int = 0, address: str = "0000:05:00.0") -> Path:
    """Write a discrete GPU of Intel, with a further folder of sensors for a part of it."""
    figures: dict[str, str | int] = {
        "hwmon/hwmon1/name": "i915_gt0",
        "hwmon/hwmon1/energy1_input": 1,
        "hwmon/hwmon1/temp1_input": 1,
        "hwmon/hwmon2/name": "i915",
        "hwmon/hwmon2/energy1_input": 9_000_000,
        "hwmon/hwmon2/temp1_input": 47000,
    }
    return write_card(sysfs, number, "i915", address, figures)


def write_integrated(sysfs: Path, driver: str, number: int = 0) -> Path:
    """Write an integrated GPU of Intel."""
    return write_card(sysfs, number, driver, "0000:00:02.0", {})
