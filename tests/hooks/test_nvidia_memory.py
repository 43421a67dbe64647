"""The file that once read NVIDIA's GPUs: a host that still has it loses nothing."""

from __future__ import annotations

from pathlib import Path

from ..gpu.nvml import NOT_AVAILABLE, MakeDriver
from ..support import Spawner
from .support import spawn_tree, watch

MIB = 1024 * 1024


def test_breakdown_has_the_components_of_the_former_hook_file(
    make_driver: MakeDriver, spawner: Spawner, tmp_path: Path
) -> None:
    """They come from the monitor itself, with the core's names; the log has one line."""
    parent, child = spawn_tree(spawner)
    driver = make_driver()
    driver.configure(
        "devices 0 3",
        *(f"compute 0 {parent} {100 * MIB}", f"compute 0 {child} {7 * MIB}"),
        *(f"compute 1 {parent} {NOT_AVAILABLE}", f"compute 1 {child} {MIB}"),
        *(f"compute 2 {child} {2 * MIB} 3", f"compute 2 {child} {3 * MIB} 4"),
    )
    watched = watch(spawner, tmp_path, "nvidia_memory", {"m": parent}, **driver.environment)
    assert watched.breakdown() == {"vram:nvidia0": 107 * MIB, "vram:nvidia2": 5 * MIB}
    watched.close()
    (line,) = watched.log.splitlines()
    assert "the monitor itself reads NVIDIA's GPUs (setting `gpu`)" in line
