"""GPU memory from fdinfo files: examples of the kernel's documentation, and a real monitor."""

from __future__ import annotations

import importlib.util
import os
import tempfile
from pathlib import Path
from types import ModuleType

import pytest

from monitor_plugin import Backend, PluginError

from ..support import Spawner, eventually, logged
from .conftest import MakeHooked
from .support import SHELF, spawn_tree, watch

KIB, MIB = 1024, 1024 * 1024

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
# Of kernels before 6.13.
OLD_AMDGPU = """pasid:\t32770
drm-driver:\tamdgpu
drm-pdev:\t0000:03:00.0
drm-client-id:\t27
drm-memory-vram:\t48596 KiB
drm-memory-gtt: \t100 KiB
drm-memory-cpu: \t7 KiB
amd-memory-visible-vram:\t48596 KiB
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
drm-pdev:\t0000:03:00.0
drm-total-system0:\t2048 KiB
drm-resident-system0:\t2048 KiB
drm-total-local0:\t600 MiB
drm-shared-local0:\t0
drm-resident-local0:\t512 MiB
drm-resident-stolen-local0:\t8 MiB
drm-resident-stolen-system0:\t4 MiB
drm-engine-render:\t500 ns
"""
I915_WITHOUT_MEMORY_OF_ITS_OWN = """drm-driver: i915
drm-client-id: 39
drm-pdev: 0000:00:02.0
drm-total-system0: 6044 KiB
drm-resident-system0: 6044 KiB
drm-total-stolen-system0: 0
drm-engine-render: 346249 ns
"""
NO_DEVICE = "pos:\t0\nflags:\t02\nmnt_id:\t9\ninotify wd:1 ino:2 sdev:3 mask:4\n"


@pytest.fixture
def hook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The hook, with a folder of the test as its procfs."""
    monkeypatch.setenv("MONITOR_HOOK_DRM_MEMORY_PROC", str(tmp_path))
    spec = importlib.util.spec_from_file_location("drm_memory", SHELF / "drm_memory.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write(proc: Path, pid: int, *texts: str) -> None:
    """Write the procfs files of a process that has files open on a GPU, and another file."""
    for folder in ("fd", "fdinfo"):
        (proc / str(pid) / folder).mkdir(parents=True)
    other = XE.replace("drm-client-id:  3", "drm-client-id:  77")
    links = ["/dev/null", *["/dev/dri/renderD128"] * len(texts)]
    for number, (link, text) in enumerate(zip(links, [other, *texts], strict=True)):
        (proc / str(pid) / "fd" / str(number)).symlink_to(link)
        (proc / str(pid) / "fdinfo" / str(number)).write_text(text)


@pytest.mark.parametrize(
    ("text", "component", "client", "amount"),
    [
        (AMDGPU, "vram:amdgpu:0000:04:00.0", "4", 44564 * KIB),
        (OLD_AMDGPU, "vram:amdgpu:0000:03:00.0", "27", 48596 * KIB),
        (XE, "vram:xe:0000:03:00.0", "3", 23992 * KIB + MIB),
        (I915, "vram:i915:0000:03:00.0", "11", 520 * MIB),
        ("drm-driver:new\ndrm-client-id:1\ndrm-total-vram:5 MiB", "vram:new", "1", 5 * MIB),
        (AMDGPU.replace("44564 KiB", "0"), "vram:amdgpu:0000:04:00.0", "4", 0),
    ],
)
def test_device_memory_is_read(
    text: str, component: str, client: str, amount: int, hook: ModuleType
) -> None:
    """The figure is the memory resident on the device, without system memory."""
    assert hook.device_memory(text) == (component, client, amount)


@pytest.mark.parametrize("text", [I915_WITHOUT_MEMORY_OF_ITS_OWN, NO_DEVICE, "", "drm-driver:xe\n"])
def test_system_memory_has_no_figure(text: str, hook: ModuleType) -> None:
    """A GPU without its own memory, and a file of no GPU, have no figure rather than 0."""
    assert hook.device_memory(text) is None


def test_invalid_folder_is_refused(hooked: MakeHooked) -> None:
    """Loading the file raises an error."""
    with pytest.raises(
        PluginError, match="_PROC='/no/proc': the folder does not exist; write a path"
    ):
        hooked("drm_memory", {"PROC": "/no/proc"})


@pytest.mark.parametrize("amount", ["some KiB", "4 kB", "1 2 KiB"])
def test_unknown_unit_omits_all_devices(
    amount: str, hook: ModuleType, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """An amount with an unknown unit is not counted as 0; it is logged once."""
    write(tmp_path, 5, XE, AMDGPU.replace("44564 KiB", amount))
    for _ in range(2):
        assert hook.monitor_memory_components(Backend("m", 5, "a:1", 0.0), [5]) == {}
    (record,) = caplog.records
    assert record.getMessage().startswith("no GPU memory for 'm': ")


def test_unreadable_process_omits_all_devices(
    hook: ModuleType, caplog: pytest.LogCaptureFixture
) -> None:
    """The sum would be too small without an unreadable process; ended processes do not matter."""
    backend = Backend("m", 5, "a:1", 0.0)
    user = os.geteuid()
    if user and Path("/proc/1").stat().st_uid == user:
        pytest.skip("every process here may be read")
    with tempfile.TemporaryDirectory() as folder:  # which others may read, unlike pytest's
        hook.__dict__["PROC"], proc = folder, Path(folder)
        write(proc, 5, XE)
        (proc / "6").symlink_to("/proc/1")  # a real one, of root
        proc.chmod(0o755)
        try:
            if user == 0:
                os.seteuid(65534)
            assert list(hook.monitor_memory_components(backend, [5, 7])) == ["vram:xe:0000:03:00.0"]
            assert hook.monitor_memory_components(backend, [5, 6, 7]) == {}
        finally:
            os.seteuid(user)
    assert "for 'm': [Errno 13] Permission denied: " in caplog.text


def test_a_child_that_nobody_waited_for_costs_nothing(
    hook: ModuleType, spawner: Spawner, caplog: pytest.LogCaptureFixture
) -> None:
    """A zombie uses no memory, although only root can list its open files."""
    user = os.geteuid()
    process = spawner.python(
        "import os; os.geteuid() or os.setuid(65534);"
        "os.execv('/bin/sh', ['sh', '-c', 'sleep 1 & echo $!; exec sleep 1000'])"
    )
    assert process.stdout
    zombie = int(process.stdout.readline())
    stat_file = Path(f"/proc/{zombie}/stat")
    eventually(lambda: stat_file.read_text().rpartition(")")[2].split()[0] == "Z")
    with tempfile.TemporaryDirectory() as folder:
        hook.__dict__["PROC"], proc = folder, Path(folder)
        write(proc, 5, XE)
        (proc / "6").symlink_to(f"/proc/{zombie}")
        proc.chmod(0o755)
        try:
            if user == 0:
                os.seteuid(65534)
            found = hook.monitor_memory_components(Backend("m", 5, "a:1", 0.0), [5, 6])
        finally:
            os.seteuid(user)
    assert list(found) == ["vram:xe:0000:03:00.0"]
    assert logged(caplog) == []


def test_monitor_shows_tree_memory(spawner: Spawner, tmp_path: Path) -> None:
    """Each client counts once, although two files and two processes have it open."""
    parent, child = spawn_tree(spawner)
    proc = tmp_path / "proc"
    other_client = XE.replace("drm-client-id:  3", "drm-client-id:  4")
    same_id_elsewhere = AMDGPU.replace("drm-client-id:\t4", "drm-client-id:\t3")
    write(proc, parent, XE, XE, NO_DEVICE)
    write(proc, child, XE, other_client, same_id_elsewhere, I915_WITHOUT_MEMORY_OF_ITS_OWN)
    write(proc, 1, XE.replace("drm-client-id:  3", "drm-client-id:  9"))
    watched = watch(
        spawner, tmp_path, "drm_memory", {"m": parent}, MONITOR_HOOK_DRM_MEMORY_PROC=str(proc)
    )
    assert watched.breakdown() == {
        "vram:amdgpu:0000:04:00.0": 44564 * KIB,
        "vram:xe:0000:03:00.0": 2 * (23992 * KIB + MIB),
    }
    watched.close()
    assert watched.log == ""
