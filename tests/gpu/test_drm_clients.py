"""Processes that use GPUs, from fdinfo files: the kernel's examples, and real processes."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from monitor_plugin import GpuUse
from monitor_plugin.gpu.drm_clients import DrmClientReader

from ..support import Spawner, eventually, logged, refuse_descriptors
from .drm_trees import (
    AMDGPU,
    APU,
    I915,
    I915_INTEGRATED,
    KIB,
    MIB,
    NO_DEVICE,
    OLD_I915,
    XE,
    XE_INTEGRATED,
    write_process,
)


@pytest.fixture
def reader(tmp_path: Path) -> DrmClientReader:
    return DrmClientReader(tmp_path)


def read(reader: DrmClientReader) -> Mapping[str, Sequence[GpuUse]]:
    """Read the uses of processes that may all be read."""
    usage = reader.read()
    assert (usage.unread, usage.error) == (frozenset(), None)
    return usage.uses


@pytest.mark.parametrize(
    ("text", "device", "memory", "gtt"),
    [
        (AMDGPU, "0000:04:00.0", 44564 * KIB, 2392 * KIB),
        (AMDGPU.replace("44564 KiB", "0"), "0000:04:00.0", 0, 2392 * KIB),
        (APU, "0000:c4:00.0", 5348 * KIB, 25258000 * KIB),
        (XE, "0000:03:00.0", 23992 * KIB + MIB, 192 * KIB),
        (I915, "0000:05:00.0", 520 * MIB, 2 * MIB),
        (I915_INTEGRATED, "0000:00:02.0", None, 6044 * KIB),
        (XE_INTEGRATED, "0000:00:02.0", None, 3 * MIB),
        (OLD_I915, "0000:05:00.0", None, None),
        ("drm-pdev:p\ndrm-client-id:1\ndrm-total-vram:5 MiB", "p", 5 * MIB, None),
    ],
)
def test_resident_memory_counts(
    text: str,
    device: str,
    memory: int | None,
    gtt: int | None,
    reader: DrmClientReader,
    tmp_path: Path,
) -> None:
    """The figures are the memory on the device, and the system memory that the GPU uses."""
    write_process(tmp_path, 5, text)
    assert read(reader) == {device: [GpuUse(5, memory, gtt)]}


@pytest.mark.parametrize("text", [NO_DEVICE, "", "drm-driver:xe\n", "drm-pdev: 0000:03:00.0\n"])
def test_file_of_no_client_does_not_count(
    text: str, reader: DrmClientReader, tmp_path: Path
) -> None:
    """Neither does a client's fdinfo behind a file that is not in /dev/dri."""
    write_process(tmp_path, 5, text)
    (tmp_path / "self").mkdir()
    assert read(reader) == {}


def test_client_counts_once(reader: DrmClientReader, tmp_path: Path) -> None:
    """For the process with the smallest PID, although several files and processes have it."""
    other_client = XE.replace("drm-client-id:  3", "drm-client-id:  4")
    same_id_elsewhere = AMDGPU.replace("drm-client-id:\t4", "drm-client-id:\t3")
    write_process(tmp_path, 16, XE, other_client, same_id_elsewhere)  # a set has 16 before 9
    write_process(tmp_path, 9, XE, XE, NO_DEVICE, file="/dev/dri/card0")
    write_process(tmp_path, 24, XE)
    memory, gtt = 23992 * KIB + MIB, 192 * KIB
    assert read(reader) == {
        "0000:03:00.0": [GpuUse(9, memory, gtt), GpuUse(16, memory, gtt)],
        "0000:04:00.0": [GpuUse(16, 44564 * KIB, 2392 * KIB)],
    }


def test_clients_of_a_process_are_added(reader: DrmClientReader, tmp_path: Path) -> None:
    """The sum is unknown if the amount of any client is."""
    second = I915.replace("drm-client-id:\t11", "drm-client-id:\t12")
    write_process(tmp_path, 5, I915, second)
    write_process(tmp_path, 6, OLD_I915, I915.replace("drm-client-id:\t11", "drm-client-id:\t13"))
    assert read(reader) == {"0000:05:00.0": [GpuUse(5, 1040 * MIB, 4 * MIB), GpuUse(6, None, None)]}


@pytest.mark.parametrize("amount", ["some KiB", "4 kB", "1 2 KiB", "-4 KiB", ""])
def test_invalid_amount_is_unknown(
    amount: str, reader: DrmClientReader, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It does not count as 0, and is logged once; other amounts and processes are known."""
    write_process(tmp_path, 5, AMDGPU.replace("44564 KiB", amount))
    write_process(tmp_path, 6, XE)
    for _ in range(2):
        uses = read(reader)
        assert uses["0000:04:00.0"] == [GpuUse(5, None, 2392 * KIB)]
        assert uses["0000:03:00.0"] == [GpuUse(6, 23992 * KIB + MIB, 192 * KIB)]
    (message,) = logged(caplog)
    assert message.startswith("the GPU memory of processes is not known: the driver 'amdgpu' ")


def test_unreadable_process_is_named() -> None:
    """Its use is unknown, and so is each sum that includes it. Ended processes do not matter."""
    user = os.geteuid()
    if user and Path("/proc/1").stat().st_uid == user:
        pytest.skip("every process here may be read")
    with tempfile.TemporaryDirectory() as folder:  # which others may read, unlike pytest's
        proc = Path(folder)
        reader = DrmClientReader(proc)
        write_process(proc, 5, XE)
        (proc / "6").symlink_to("/proc/1")  # a real one, of root
        (proc / "7").mkdir()
        proc.chmod(0o755)
        try:
            if user == 0:
                os.seteuid(65534)
            usages = [reader.read() for _ in range(2)]
        finally:
            os.seteuid(user)
    for usage in usages:
        assert list(usage.uses) == ["0000:03:00.0"]
        assert (usage.unread, usage.error) == (frozenset({6}), "Permission denied")


def test_no_process_is_read_without_descriptors(
    reader: DrmClientReader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All are unread then, and read again later."""
    write_process(tmp_path, 5, XE)
    with monkeypatch.context() as patch:
        refuse_descriptors(patch, os, "open")
        usage = reader.read()
    assert (usage.unread, usage.error) == (frozenset({5}), "Too many open files")
    eventually(lambda: [use.pid for use in reader.read().uses.get("0000:03:00.0", ())] == [5])


def test_zombie_without_rights_to_its_files_is_read(spawner: Spawner) -> None:
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
        proc = Path(folder)
        (proc / "6").symlink_to(f"/proc/{zombie}")
        proc.chmod(0o755)
        try:
            if user == 0:
                os.seteuid(65534)
            assert read(DrmClientReader(proc)) == {}
        finally:
            os.seteuid(user)


def test_process_that_opens_a_device_later_is_found(spawner: Spawner, tmp_path: Path) -> None:
    """Processes without such a file are searched again; their descriptors are real here."""
    device = tmp_path / "dri" / "renderD128"
    device.parent.mkdir()
    device.write_text("")
    process = spawner.python(
        f"input(); file = open({str(device)!r}); print(file.fileno(), flush=True); input()",
        stdin=subprocess.PIPE,
    )
    folder = tmp_path / "proc" / str(process.pid)
    (folder / "fdinfo").mkdir(parents=True)
    (folder / "fd").symlink_to(f"/proc/{process.pid}/fd")
    reader = DrmClientReader(tmp_path / "proc")
    assert read(reader) == {}
    assert process.stdin
    assert process.stdout
    process.stdin.write("\n")
    process.stdin.flush()
    (folder / "fdinfo" / process.stdout.readline().strip()).write_text(XE)
    eventually(lambda: list(read(reader)) == ["0000:03:00.0"])


def test_long_search_is_repeated_seldom(
    reader: DrmClientReader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until then only new processes are searched, and known clients are read."""
    write_process(tmp_path, 5, I915)
    write_process(tmp_path, 6)
    with monkeypatch.context() as patch:
        patch.setattr(time, "thread_time", itertools.count(0, 1000).__next__)  # takes 1000 s
        assert list(read(reader)) == ["0000:05:00.0"]
    (tmp_path / "6/fd/1").symlink_to("/dev/dri/renderD128")
    (tmp_path / "6/fdinfo/1").write_text(XE)
    write_process(tmp_path, 7, AMDGPU)
    (tmp_path / "5/fdinfo/1").write_text(I915.replace("512 MiB", "2 MiB"))
    assert read(reader) == {
        "0000:04:00.0": [GpuUse(7, 44564 * KIB, 2392 * KIB)],
        "0000:05:00.0": [GpuUse(5, 10 * MIB, 2 * MIB)],
    }


def test_later_process_with_the_pid_of_an_ended_one_is_searched(
    reader: DrmClientReader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ended ones had no device file open (6), or could not be read (7)."""
    write_process(tmp_path, 6)
    (tmp_path / "7").write_text("not a folder")
    with monkeypatch.context() as patch:
        patch.setattr(time, "thread_time", itertools.count(0, 1000).__next__)  # takes 1000 s
        assert reader.read().unread == {7}
    shutil.rmtree(tmp_path / "6")
    (tmp_path / "7").unlink()
    assert read(reader) == {}
    write_process(tmp_path, 6, AMDGPU)
    write_process(tmp_path, 7, XE)
    assert [use.pid for uses in read(reader).values() for use in uses] == [6, 7]
