"""GPUs of AMD and Intel, from recorded files of sysfs and procfs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import pytest

from monitor_plugin import Gpu, GpuUse
from monitor_plugin.gpu.drm import DrmProvider
from monitor_plugin.gpu.reading import DeviceReading, GpuProcess, GpuReading, Held

from ..support import Client, Spawner, logged
from .drm_trees import (
    AMDGPU,
    APU,
    GIB,
    I915,
    I915_INTEGRATED,
    KIB,
    MIB,
    OLD_I915,
    XE,
    XE_INTEGRATED,
    write_amd,
    write_apu,
    write_card,
    write_i915,
    write_integrated,
    write_process,
    write_xe,
)
from .namespaces import in_namespace

# Reading this file fails with EIO, as reading the file of a device that was removed.
FAILING = Path("/proc/self/mem")


@pytest.fixture
def sysfs(tmp_path: Path) -> Path:
    return tmp_path / "sys"


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    (tmp_path / "proc").mkdir()
    return tmp_path / "proc"


@pytest.fixture
def provider(proc: Path, sysfs: Path) -> DrmProvider:
    return DrmProvider(proc=proc, sysfs=sysfs)


def read_one(provider: DrmProvider) -> Gpu:
    """Read the only device."""
    (gpu,) = provider.read()
    return gpu


def test_discrete_amd_gpu_has_all_figures(provider: DrmProvider, proc: Path, sysfs: Path) -> None:
    """Each figure comes in the units of `Gpu`."""
    write_amd(sysfs)
    write_process(proc, 5, AMDGPU)
    assert read_one(provider) == Gpu(
        component="vram:amdgpu:0000:04:00.0",
        vendor="amd",
        uuid="1f9de0957d137942",
        index=0,
        name="Instinct MI210",
        total=16 * GIB,
        used=3 * GIB,
        free=13 * GIB,
        gtt_total=8 * GIB,
        gtt_used=64 * MIB,
        utilization_percent=37,
        temperature_celsius=51,
        power_watts=88.5,
        uses=[GpuUse(5, 44564 * KIB, 2392 * KIB)],
    )


def test_amd_apu_holds_models_in_gtt(provider: DrmProvider, proc: Path, sysfs: Path) -> None:
    """`vram` and `gtt` are apart, for the device and for each process."""
    write_apu(sysfs, number=1)
    write_process(proc, 5, APU)
    gpu = read_one(provider)
    assert gpu.uses == [GpuUse(5, 5348 * KIB, 25258000 * KIB)]
    assert (gpu.total, gpu.used, gpu.free) == (512 * MIB, 400 * MIB, 112 * MIB)
    assert (gpu.gtt_total, gpu.gtt_used) == (48 * GIB, 25 * GIB)
    assert (gpu.index, gpu.name, gpu.uuid) == (1, None, "0000:c4:00.0")
    assert (gpu.temperature_celsius, gpu.power_watts) == (45.5, 28)


def test_xe_gpu_adds_its_tiles(provider: DrmProvider, proc: Path, sysfs: Path) -> None:
    """The memory is that of all tiles. What the driver does not report is None."""
    write_xe(sysfs)
    write_process(proc, 5, XE)
    assert read_one(provider) == Gpu(
        component="vram:xe:0000:03:00.0",
        vendor="intel",
        uuid="0000:03:00.0",
        index=0,
        total=16 * GIB,
        temperature_celsius=48,
        uses=[GpuUse(5, 23992 * KIB + MIB, 192 * KIB)],
    )


def test_total_of_a_gpu_of_intel_is_known_from_control_groups(
    provider: DrmProvider, sysfs: Path
) -> None:
    """`dmem.capacity` of the root group has the regions of all devices."""
    device = write_xe(sysfs)
    shutil.rmtree(device / "tile1")
    (device / "tile0/physical_vram_size_bytes").unlink()
    assert read_one(provider).total is None
    group = sysfs / "fs/cgroup"
    group.mkdir(parents=True)
    lines = ["03:00.0/vram0 8514437120", "03:00.0/vram1 1000", "03:00.0/stolen 5", "04:00.0/vram 7"]
    (group / "dmem.capacity").write_text("".join(f"drm/0000:{line}\n" for line in lines))
    assert read_one(provider).total == 8514438120


def test_i915_gpu_has_the_figures_of_the_whole_device(
    provider: DrmProvider, proc: Path, sysfs: Path
) -> None:
    """The sensors of a part of the device do not count; the total is that of Intel's own driver."""
    device = write_i915(sysfs)
    write_process(proc, 5, I915)
    gpu = read_one(provider)
    assert gpu.uses == [GpuUse(5, 520 * MIB, 2 * MIB)]
    assert (gpu.component, gpu.total, gpu.temperature_celsius) == (
        "vram:i915:0000:05:00.0",
        None,
        47,
    )
    (device / "drm/card0/lmem_total_bytes").write_text("17179869184\n")
    assert read_one(provider).total == 16 * GIB


@pytest.mark.parametrize(
    ("driver", "text", "gtt"),
    [("i915", I915_INTEGRATED, 6044 * KIB), ("xe", XE_INTEGRATED, 3 * MIB)],
)
def test_integrated_gpu_of_intel_has_system_memory_alone(
    driver: str, text: str, gtt: int, provider: DrmProvider, proc: Path, sysfs: Path
) -> None:
    """The system memory that it uses counts as `gtt`; the memory on the device is unknown."""
    write_integrated(sysfs, driver)
    write_process(proc, 5, text)
    gpu = read_one(provider)
    assert gpu.uses == [GpuUse(5, None, gtt)]
    assert (gpu.total, gpu.used, gpu.free, gpu.gtt_total) == (None, None, None, None)


@pytest.mark.parametrize("write", [write_i915, write_xe])
def test_power_is_the_average_since_the_last_reading(
    write: Callable[[Path], Path], provider: DrmProvider, sysfs: Path
) -> None:
    """i915 and xe count energy. The first reading has no power, nor has one after a reset."""
    device = write(sysfs)
    energy = max(device.glob("hwmon/*/energy1_input"), key=lambda each: int(each.read_text()))
    before = time.monotonic()
    assert read_one(provider).power_watts is None
    begun = time.monotonic()
    energy.write_text(f"{int(energy.read_text()) + 5_000_000}\n")
    ended = time.monotonic()
    power = read_one(provider).power_watts
    assert power is not None
    assert 5 / (time.monotonic() - before) <= power <= 5 / (ended - begun)
    energy.write_text("12\n")
    assert read_one(provider).power_watts is None


@pytest.mark.parametrize(
    ("file", "figures"),
    [
        ("mem_info_vram_total", {"total": None, "free": None}),
        ("mem_info_gtt_total", {"gtt_total": None}),
        ("mem_info_gtt_used", {"gtt_used": None}),
        ("gpu_busy_percent", {"utilization_percent": None}),
        ("hwmon/hwmon5/temp1_input", {"temperature_celsius": 63}),
        ("hwmon/hwmon5/power1_average", {"power_watts": None}),
        ("power/runtime_status", {}),
        ("uevent", {}),
        ("mem_info_vram_used", {"used": None, "free": None}),
    ],
)
@pytest.mark.parametrize("fault", ["missing", "failing", "text"])
def test_unreadable_figure_hides_no_other_figure(
    file: str, figures: dict[str, object], fault: str, provider: DrmProvider, sysfs: Path
) -> None:
    """All others are as before."""
    device = write_amd(sysfs)
    gpu = read_one(provider)
    (device / file).unlink()
    if fault == "failing":
        (device / file).symlink_to(FAILING)
    elif fault == "text":
        (device / file).write_text("N/A\n")
    assert read_one(provider) == msgspec.structs.replace(gpu, **figures)


@pytest.mark.parametrize(
    ("file", "figures"),
    [
        ("unique_id", {"uuid": "0000:04:00.0"}),
        ("product_name", {"name": None}),
        ("hwmon/hwmon5/name", {}),
        ("driver", {}),
    ],
)
def test_missing_name_hides_no_other_field(
    file: str, figures: dict[str, object], provider: DrmProvider, sysfs: Path
) -> None:
    """All other fields are as before; the driver's name is also in `uevent`."""
    device = write_amd(sysfs)
    gpu = read_one(provider)
    (device / file).unlink()
    assert read_one(provider) == msgspec.structs.replace(gpu, **figures)


def test_device_that_disappears_hides_no_other_device(
    provider: DrmProvider, proc: Path, sysfs: Path
) -> None:
    """A device without a folder is not listed, and one whose files fail has no figures."""
    write_amd(sysfs, 0, "0000:04:00.0")
    failing = write_amd(sysfs, 1, "0000:05:00.0")
    gone = write_amd(sysfs, 10, "0000:06:00.0")
    write_card(sysfs, 2, "nvidia", "0000:07:00.0", {})
    (sysfs / "class/drm/version").write_text("drm 1.1.0 20060810\n")
    write_process(proc, 5, AMDGPU)
    assert [gpu.index for gpu in provider.read()] == [0, 1, 10]
    for path in failing.glob("mem_info_*"):
        path.unlink()
        path.symlink_to(FAILING)
    shutil.rmtree(gone)
    first, second = provider.read()
    assert (first.used, second.used, second.index) == (3 * GIB, None, 1)


def test_sleeping_device_is_not_woken(provider: DrmProvider, sysfs: Path) -> None:
    """The driver would wake it to read the sensors; the memory can be read while it sleeps."""
    device = write_amd(sysfs)
    (device / "power/runtime_status").write_text("suspended\n")
    gpu = read_one(provider)
    assert gpu.utilization_percent is gpu.temperature_celsius is gpu.power_watts is None
    assert gpu.used == 3 * GIB


def test_machine_without_such_gpus_has_none(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Without a device no process is looked at, and nothing is logged."""
    provider = DrmProvider(proc=tmp_path / "missing", sysfs=tmp_path)
    assert list(provider.read()) == []
    write_card(tmp_path, 0, "nvidia", "0000:07:00.0", {})
    assert list(provider.read()) == []
    provider.close()
    assert logged(caplog) == []


def test_missing_gpu_is_logged_if_the_operator_asked_for_it(
    sysfs: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """If `gpu` is `drm`, it is logged once."""
    provider = DrmProvider(sysfs=sysfs, is_required=True)
    for _ in range(2):
        assert list(provider.read()) == []
    assert logged(caplog) == [
        f"{sysfs}/class/drm has no GPU of the drivers amdgpu, i915, xe (logged once)"
    ]


def test_unlisted_processes_are_unknown(sysfs: Path, tmp_path: Path) -> None:
    """Without procfs it is not known who uses the device, and the note says so."""
    write_amd(sysfs)
    gpu = read_one(DrmProvider(proc=tmp_path / "missing", sysfs=sysfs))
    assert gpu.uses is None
    assert gpu.note == "Processes cannot be listed, so it is not known which use the GPU."


def test_device_without_users_has_none(provider: DrmProvider, sysfs: Path) -> None:
    """It is known that no process uses it."""
    write_amd(sysfs)
    assert read_one(provider).uses == []


def test_process_with_unreported_memory_is_listed(
    provider: DrmProvider, proc: Path, sysfs: Path
) -> None:
    """Older kernels do not report the memory of processes on Intel's GPUs."""
    write_i915(sysfs)
    write_process(proc, 5, OLD_I915)
    gpu = read_one(provider)
    assert gpu.uses == [GpuUse(5, None)]


def make_reading(gpus: Sequence[Gpu], *pids: int) -> GpuReading:
    """Makes a reading in which the process of each PID has the start time 1."""
    device = DeviceReading(time.monotonic(), {pid: GpuProcess(1.0, "p", None) for pid in pids})
    return GpuReading(gpus, device.taken_at, {gpu.component: device for gpu in gpus})


def test_backend_with_an_unread_process_has_no_figure(
    provider: DrmProvider, proc: Path, sysfs: Path
) -> None:
    """The sum would be too small. A device of which nothing at all is known does not matter."""
    write_amd(sysfs)
    write_integrated(sysfs, "i915", 1)
    write_process(proc, 5, AMDGPU)
    write_process(proc, 6, AMDGPU.replace("id:\t4", "id:\t5"))
    (proc / "7/fd").mkdir(parents=True)
    (proc / "7/fd/3").write_text("")  # is no link, so it cannot be read
    gpus = provider.read()
    reading = make_reading(gpus, 5, 6)
    components = {
        "vram:amdgpu:0000:04:00.0": 2 * 44564 * KIB,
        "gtt:amdgpu:0000:04:00.0": 2 * 2392 * KIB,
    }
    assert reading.held_by([(5, 1.0), (6, 1.0)]) == Held(components, frozenset())
    assert reading.held_by([(5, 1.0), (7, 1.0)]) == Held({}, frozenset(components))
    assert [gpu.note for gpu in gpus] == 2 * [
        "Some processes cannot be read (Invalid argument), so their use of the GPU is not known. "
        "Run the monitor as root, in a container with the capability SYS_PTRACE."
    ]


def test_integrated_gpu_has_a_component_of_system_memory_alone(
    provider: DrmProvider, proc: Path, sysfs: Path
) -> None:
    """Its processes hold nothing on the device, which is not unknown."""
    write_integrated(sysfs, "i915")
    write_process(proc, 5, I915_INTEGRATED)
    held = make_reading(provider.read(), 5).held_by([(5, 1.0)])
    assert held == Held({"gtt:i915:0000:00:02.0": 6044 * KIB}, frozenset())


# Registers a process with the recorded GPUs, and ends when its standard input is closed.
MONITOR = """
import sys
import monitor_plugin

settings = monitor_plugin.Settings(listen="127.0.0.1:0", gpu="drm", sweep_interval_seconds=0)
with monitor_plugin.Monitor(settings) as monitor:
    pid = int(sys.argv[1])
    monitor.hook.monitor_backend_spawned(model="m", pid=pid, address="127.0.0.1:1")
    print(monitor.url, flush=True)
    sys.stdin.read()
"""
# Opens the device as descriptor 3, which its child inherits.
USER = 'exec 3<"$1"; sleep 1000 & echo $!; wait'


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount, and read the processes then")
def test_monitor_attributes_the_memory_to_its_users(
    spawner: Spawner, sysfs: Path, tmp_path: Path
) -> None:
    """Model, other process and what nobody owns add up to the used memory.

    The processes are real. In the monitor's own mount namespace, the recorded files are mounted
    over /sys and over the `fdinfo` of the processes.
    """
    device = tmp_path / "dri" / "renderD128"
    device.parent.mkdir()
    device.write_text("")
    users = [spawner.process("sh", "-c", USER, "sh", str(device)) for _ in range(2)]
    commands = [
        "mount --make-rprivate /",
        'mount --rbind /sys/fs "$1/fs"',
        'mount --rbind "$1" /sys',
    ]
    (sysfs / "fs").mkdir(parents=True)
    write_apu(sysfs)
    for text, user in zip([APU, APU.replace("id:\t27", "id:\t28")], users, strict=True):
        fdinfo = tmp_path / f"fdinfo{user.pid}"
        fdinfo.mkdir()
        (fdinfo / "3").write_text(text)
        assert user.stdout
        for pid in (user.pid, int(user.stdout.readline())):
            commands.append(f"mount --bind {fdinfo} /proc/{pid}/fdinfo")
    model, other = (user.pid for user in users)
    commands.append('shift; exec "$@"')
    namespace = in_namespace("--mount", "--propagation", "private")
    mounter = [*namespace, "sh", "-c", " && ".join(commands), "sh", str(sysfs)]
    monitor = spawner.process(
        *mounter, sys.executable, "-c", MONITOR, str(model), stdin=subprocess.PIPE
    )
    assert monitor.stdout
    client = Client(monitor.stdout.readline().strip())
    backends = client.request("GET", "/backends").json
    vram, gtt = 5348 * KIB, 25258000 * KIB
    assert backends["backends"][0]["memory"]["breakdown"] == {
        "vram:amdgpu:0000:c4:00.0": vram,
        "gtt:amdgpu:0000:c4:00.0": gtt,
    }
    (gpu,) = client.request("GET", "/gpus").json["gpus"]
    assert gpu["models"] == [{"model": "m", "pid": model, "memory": vram, "gtt": gtt}]
    (process,) = gpu["processes"]
    assert process == process | {"pid": other, "name": "sh", "memory": vram, "gtt": gtt}
    assert (gpu["ours"], gpu["others"]) == (vram, vram)
    assert gpu["unexplained"] == gpu["used"] - 2 * vram
    assert (gpu["gtt_used"], gpu["index"]) == (25 * GIB, 0)
