"""GPU memory by NVML: the real bindings with a fake driver library."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from monitor_plugin import Monitor, MonitorError

from ..gpu.nvml import DRIVER_NOT_LOADED, GPU_IS_LOST, NOT_AVAILABLE, NOT_SUPPORTED, MakeDriver
from ..support import Spawner, eventually
from .support import Watched, copy_hooks, spawn_tree, watch

MIB = 1024 * 1024


@pytest.fixture
def start(spawner: Spawner, tmp_path: Path) -> Callable[..., Watched]:
    """Starts a monitor with the hook, and a short time between retries."""

    def start(pids: dict[str, int], *, share_seconds: float = 0.01, **environment: str) -> Watched:
        environment["MONITOR_HOOK_NVIDIA_MEMORY_SHARE_SECONDS"] = str(share_seconds)
        environment["MONITOR_HOOK_NVIDIA_MEMORY_RETRY_SECONDS"] = "0.3"
        return watch(spawner, tmp_path, "nvidia_memory", pids, **environment)

    return start


def test_breakdown_has_tree_memory_by_device(
    make_driver: MakeDriver, start: Callable[..., Watched], spawner: Spawner
) -> None:
    """Each process counts once per device and MIG instance; unknown amounts have no figure.

    A failing device is logged once, omitted, and found again later.
    """
    parent, child = spawn_tree(spawner)
    driver = make_driver()
    results = [
        "devices 0 2",
        f"compute 0 {parent} {100 * MIB} -1",
        f"compute 0 {child} {7 * MIB} -1",
        f"graphics 0 {child} {NOT_AVAILABLE} -1",  # it does both
        f"compute 0 {os.getpid()} {1000 * MIB} -1",
    ]
    driver.configure(*results, f"compute 1 {parent} {NOT_AVAILABLE}", f"compute 1 {child} {MIB}")
    watched = start({"m": parent}, **driver.environment)
    assert watched.breakdown() == {"vram:nvidia0": 107 * MIB}

    results += [f"compute 1 {child} {2 * MIB} 3", f"compute 1 {child} {3 * MIB} 4"]
    driver.configure(*results, f"fails graphics 1 {NOT_SUPPORTED}")
    both = {"vram:nvidia0": 107 * MIB, "vram:nvidia1": 5 * MIB}
    eventually(lambda: watched.breakdown() == both)
    (listed,) = watched.client.request("GET", "/backends").json["backends"]
    assert listed["process"]["tree"]["vram"] == 112 * MIB
    assert watched.log == ""

    driver.configure(*results, f"fails compute 0 {GPU_IS_LOST}")
    eventually(lambda: watched.breakdown() == {"vram:nvidia1": 5 * MIB})
    calls = driver.calls("compute 0")
    eventually(lambda: watched.breakdown() and driver.calls("compute 0") > calls + 1)
    assert watched.log.count("\n") == 1
    assert "GPU 0: no GPU memory is available: GPU is lost" in watched.log
    driver.configure(*results)
    eventually(lambda: watched.breakdown() == both)
    assert driver.calls("init 0") > 1

    watched.close()
    assert driver.calls("shutdown 0") == driver.calls("init 0")


@pytest.mark.once
@pytest.mark.parametrize("newest", [1, 2])
def test_older_drivers_get_their_versions_of_calls(
    newest: int, make_driver: MakeDriver, start: Callable[..., Watched], spawner: Spawner
) -> None:
    """The hook uses the second version, or the first, whose structure has no MIG instances."""
    parent, child = spawn_tree(spawner)
    driver = make_driver(newest)
    driver.configure(
        *("devices 0 3", f"compute 0 {parent} {5 * MIB}", f"graphics 0 {child} {2 * MIB}"),
        *(f"compute 1 {parent} {MIB}", f"compute 1 {child} {NOT_AVAILABLE}"),
        f"fails compute 2 {GPU_IS_LOST}",
    )
    watched = start({"m": parent}, **driver.environment)
    assert watched.breakdown() == {"vram:nvidia0": 7 * MIB}
    assert "GPU 2: no GPU memory is available: GPU is lost" in watched.log


@pytest.mark.once
def test_device_is_read_once_for_all_backends(
    make_driver: MakeDriver, start: Callable[..., Watched], spawner: Spawner
) -> None:
    """Concurrent readings of many backends read each device once."""
    pids = {f"m{number}": spawner.sleeper().pid for number in range(12)}
    driver = make_driver()
    driver.configure("devices 0 2", *(f"compute 1 {pid} {MIB}" for pid in pids.values()))
    watched = start(pids, share_seconds=60, **driver.environment)
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(watched.breakdown, [*pids] * 4))
    assert found == [{"vram:nvidia1": MIB}] * 48
    assert [driver.calls(f"{kind} 0") for kind in ("compute", "graphics")] == [1, 1]


@pytest.mark.once
@pytest.mark.parametrize("missing", ["package", "library", "driver"])
def test_missing_library_or_driver_is_logged_once(
    missing: str,
    make_driver: MakeDriver,
    start: Callable[..., Watched],
    spawner: Spawner,
    tmp_path: Path,
) -> None:
    """Readings work without the package, the library or the driver; the log has one line."""
    environment = {}
    if missing == "package":
        (tmp_path / "pynvml.py").write_text("raise ImportError('not here')")
        environment["PYTHONPATH"] = f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"
        why = "nvidia-ml-py is not installed: pip install monitor-plugin[nvidia]"
    elif missing == "library":
        (tmp_path / "libnvidia-ml.so.1").write_text("no library")
        environment["LD_LIBRARY_PATH"] = str(tmp_path)
        why = "NVML Shared Library Not Found"
    else:
        driver = make_driver()
        driver.configure(f"fails init 0 {DRIVER_NOT_LOADED}")
        environment = driver.environment
        why = "Driver Not Loaded"
    pid = spawner.sleeper().pid
    watched = start({"m": pid}, **environment)
    assert watched.breakdown() == {}
    if missing == "driver":  # it was tried again, and is loaded at last
        eventually(lambda: watched.breakdown() == {} and driver.calls("init 0") > 1)
        driver.configure("devices 0 1", f"compute 0 {pid} {MIB}")
        eventually(lambda: watched.breakdown() == {"vram:nvidia0": MIB})
    assert watched.log.splitlines() == [
        f"monitor_plugin_hooks.nvidia_memory: NVML: no GPU memory is available: {why}"
    ]
    watched.close()


@pytest.mark.parametrize("setting", ["SHARE_SECONDS", "RETRY_SECONDS"])
def test_error_names_the_invalid_setting(
    setting: str,
    make_monitor: Callable[..., Monitor],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The monitor does not start; the error has the variable and its value."""
    variable = f"MONITOR_HOOK_NVIDIA_MEMORY_{setting}"
    monkeypatch.setenv(variable, "soon")
    with pytest.raises(MonitorError, match=f"{variable}='soon'.* seconds"):
        make_monitor(hooks_dir=str(copy_hooks(tmp_path / "hooks", "nvidia_memory")))
